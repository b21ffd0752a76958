#!/usr/bin/env python3
"""Random requests: none stays without an answer, none is answered with 5xx, and the server serves on.

    python fuzz.py /path/to/lapis [--requests 100000] [--seed 1]

Needs Python alone. Bodies are sound ones with values changed, parts cut out, doubled and swapped; some are bytes only. What the
server has to answer is HTTP in form: for what is not, any answer or a closed connection will do, and the next one is served.
"""

import argparse
import collections
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time

CHAT = {"model": "default", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}], "max_tokens": 1, "temperature": 0.5, "top_p": 0.9,
        "top_k": 3, "min_p": 0.1, "seed": 4, "stop": ["x"], "n": 1, "stream": False, "logprobs": True, "top_logprobs": 2, "logit_bias": {"5": 1.5}, "presence_penalty": 0.1,
        "repetition_penalty": 1.1, "repetition_context_size": 20, "xtc_probability": 0.1, "xtc_threshold": 0.1, "response_format": {"type": "json_object"},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}], "tool_choice": "none",
        "chat_template_kwargs": {"a": 1}, "stream_options": {"include_usage": True}, "reasoning_effort": "low"}
COMPLETION = {"model": "", "prompt": "Once upon", "max_tokens": 1, "echo": True, "logprobs": 2, "best_of": 1, "suffix": "", "n": 1, "stop": None}
MESSAGE = {"model": "default", "max_tokens": 1, "system": [{"type": "text", "text": "Be brief."}], "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
           "tools": [{"name": "f", "input_schema": {"type": "object"}}], "tool_choice": {"type": "none"}, "thinking": {"type": "disabled"}, "stop_sequences": ["x"], "top_k": 1,
           "output_config": {"effort": "low"}, "stream": False}
RESPONSE = {"model": "default", "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}], "max_output_tokens": 1, "instructions": "x",
            "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}], "tool_choice": "none", "text": {"format": {"type": "text"}}, "reasoning": {"effort": "low"},
            "truncation": "disabled", "store": False, "include": [], "top_logprobs": 1, "stream": False}
SEEDS = [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION), ("/v1/messages", MESSAGE), ("/v1/messages/count_tokens", MESSAGE), ("/v1/responses", RESPONSE),
         ("/v1/embeddings", {"model": "default", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 4}), ("/tokenize", {"content": "hi", "with_pieces": True}),
         ("/detokenize", {"tokens": [1, 2, 3]}), ("/apply-template", {"messages": CHAT["messages"]}), ("/api/show", {"model": "x"})]
ODD = [None, True, False, 0, -0.0, -1, 1, 2**31, 2**63, -(2**63), 2**64, 10**30, 1e308, 1e-320, "", "1", "\0", "😀", "\ud83d", "a" * 5000, [], {}, [[]], [None], {"": None}, [1, "a"],
       {"type": "x"}, {"$ref": "#"}, "{{ 1/0 }}", "<|im_end|>", "../../etc/passwd", [0.5], {"a": {"b": {"c": []}}}, "none", "auto", "required"]
# Texts that JSON readers disagree on.
TEXTS = [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"01", b"0x10", b"'a'", b"{,}", b"[1,]", b"\xff", b"\xef\xbb\xbf{}", b'"\\ud800"', b"[" * 300, b'{"a":' * 200, b"1" * 400, b"//", b""]
LIMITS = {"max_tokens", "max_output_tokens", "max_completion_tokens", "n", "best_of"}  # kept small, so that time goes into requests


def places(value, found, at=()):
    """All places inside a value."""
    found.append(at)
    if isinstance(value, dict):
        for key in value:
            places(value[key], found, (*at, key))
    elif isinstance(value, list):
        for i in range(len(value)):
            places(value[i], found, (*at, i))


def odd(r):
    """One of the odd values, for itself."""
    return json.loads(json.dumps(r.choice(ODD)))


def changed(r, value):
    for _ in range(r.choice([1, 1, 2, 5])):
        found = []
        places(value, found)
        at = r.choice(found[1:] or [()])
        if not at:
            return value
        inner = value
        for key in at[:-1]:
            inner = inner[key]
        kind = r.random()
        if kind < 0.2:
            del inner[at[-1]]
        elif kind < 0.3 and isinstance(inner, list):
            inner.append(odd(r))
        elif kind < 0.35 and isinstance(inner, dict):
            inner[r.choice(["type", "content", "x", "", "a" * 300])] = odd(r)
        else:
            inner[at[-1]] = odd(r)
    if isinstance(value, dict):
        for name in LIMITS & set(value):
            if isinstance(value[name], (int, float)) and value[name] > 2 or value[name] is None:
                value[name] = 1
        for name in ("max_tokens", "max_output_tokens"):
            value.setdefault(name, 1)
    return value


def request(r):
    """A request and whether it must be answered."""
    path, seed = r.choice(SEEDS)
    body = json.dumps(changed(r, json.loads(json.dumps(seed)))).encode()
    kind = r.random()
    if kind < 0.08:
        at = r.randrange(len(body) + 1)
        body = body[:at] + r.choice(TEXTS) + body[at + r.choice([0, 1, 5]) :]
    elif kind < 0.12:
        body = body[: r.randrange(len(body) + 1)]
    elif kind < 0.15:
        body = r.randbytes(r.randrange(200))
    elif kind < 0.17:
        path = r.choice(["/", "/nope", "/v1/models", "/v1/models/x%2fy", "/health", "/metrics", "/%ff", "/v1//chat", path + "?beta=true&x=%zz"])
    method = r.choice(["POST"] * 30 + ["GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"])
    head = [f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    if r.random() < 0.05:
        head.append(r.choice(["X-Request-Id: \x7f", "Accept: " + "a" * 2000, "Origin: http://localhost:1", "Authorization: Bearer x", "Expect: 100-continue", "X-Api-Key: é"]))
    if r.random() < 0.1:
        head.append("Transfer-Encoding: chunked")
        body = b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n" if body else b"0\r\n\r\n"
    else:
        head.append(f"Content-Length: {len(body)}")
    return method, "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


def answer(file, method):
    """The status of one answer, and its body."""
    while True:
        line = file.readline()
        if not line:
            return None, b"", True
        status, length, chunked, closes = int(line.split()[1]), 0, False, False
        while line := file.readline().strip().lower():
            name, _, value = line.partition(b":")
            length = int(value) if name == b"content-length" else length
            chunked |= name == b"transfer-encoding"
            closes |= name == b"connection" and b"close" in value
        if status != 100:
            break
    if method == "HEAD":
        return status, b"", closes
    if not chunked:
        return status, file.read(length), closes
    body = b""
    while size := int(file.readline(), 16):
        body += file.read(size)
        file.readline()
    file.readline()
    return status, body, closes


def main():
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("program")
    flags.add_argument("--requests", type=int, default=100_000)
    flags.add_argument("--seed", type=int, default=1)
    flags = flags.parse_args()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LAPIS_")}
    server = subprocess.Popen([flags.program, "serve", "--port", "0", "--pooling", "mean", "--log-level", "error"], stderr=subprocess.PIPE, text=True, env=environment)
    for line in server.stderr:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
            break
    port = int(found[1])
    threading.Thread(target=server.stderr.read, daemon=True).start()
    counts, bad, lock, left = collections.Counter(), [], threading.Lock(), [flags.requests]

    def work(number):
        r = random.Random(flags.seed * 1000 + number)
        connection = file = None
        before = b""
        while True:
            with lock:
                if left[0] <= 0 or len(bad) > 20:
                    return
                left[0] -= 1
            method, data = request(r)
            try:
                if connection is None:
                    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
                    file = connection.makefile("rb")
                connection.sendall(data)
                status, body, closes = answer(file, method)
            except OSError as e:
                status, body, closes = type(e).__name__, b"", True
            with lock:
                counts[status] += 1
                if not isinstance(status, int) or status >= 500:
                    bad.append((status, data[:3000], body[:500], "after", before[:1500]))
            before = data
            if closes:
                connection = None

    begin = time.monotonic()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alive = server.poll() is None
    server.kill()
    server.wait()
    print(f"{sum(counts.values())} requests in {time.monotonic() - begin:.0f} s:", ", ".join(f"{k}: {n}" for k, n in sorted(counts.items(), key=str)))
    for each in bad[:8]:
        print("BAD", *each)
    return 0 if alive and not bad and sum(counts.values()) == flags.requests else 1


if __name__ == "__main__":
    sys.exit(main())
