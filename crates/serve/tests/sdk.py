#!/usr/bin/env python3
"""Cases of the OpenAI routes, driven by the official client, by httpx and by plain sockets; runs all others, too.

    pip install openai anthropic httpx
    python sdk.py /path/to/lapis [part of a case's name]

Starts its own servers on free ports. Prints a line for each failure and a count; exits with 1 on a failure.
"""

import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import httpx
import openai

import sdk_embeddings
import sdk_responses
import sdk_scores

DEMO = pathlib.Path(__file__).resolve().parents[3] / "examples" / "demo-model" / "model"
END = "2"  # the id of <|im_end|>, which ends a reply
SHORT = {END: 100}  # a bias that ends replies at once
ENDLESS = {END: -100}  # a bias that keeps replies going
FOX = [{"role": "user", "content": "Tell me a story about a fox"}]
HI = [{"role": "user", "content": "hi"}]

TEMPLATE = """{% if tools %}<|im_start|>system
A call is <tool_call>
{"name": <name>, "arguments": <object>}
</tool_call>
{% for tool in tools %}{{ tool.function.name }} {% endfor %}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content or '' }}{% for call in m.tool_calls or [] %}<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


class Server:
    """A server of its own."""

    def __init__(self, program, *flags, key=None):
        self.key = key
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LAPIS_")}
        self.process = subprocess.Popen(
            [program, "serve", "--port", "0", *flags], stderr=subprocess.PIPE, text=True, env=environment
        )
        self.lines = []
        for line in self.process.stderr:
            self.lines.append(line)
            found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
            if found:
                break
        else:
            raise RuntimeError("no address: " + "".join(self.lines))
        self.port = int(found[1])
        threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.port}"
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.Client(base_url=self.url, timeout=60, headers=headers)
        self.client = openai.OpenAI(base_url=self.url + "/v1", api_key=key or "none", max_retries=0, timeout=60)
        until(lambda: self.http.get("/ready").status_code == 200, 30, "/ready is not 200")

    def post(self, path, body, **more):
        return self.http.post(path, json=body, **more)

    def raw(self, data, answers=1, timeout=20):
        """Sends bytes, gives the answers as (status, headers, body)."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as s:
            try:
                s.sendall(data)
            except ConnectionError:
                pass
            file = s.makefile("rb")
            return [answer(file) for _ in range(answers)]

    def metric(self, name):
        found = re.search(rf"^lapis_{name} (\S+)$", self.http.get("/metrics").text, re.M)
        assert found, f"no metric {name}"
        return float(found[1])

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def answer(file):
    """One answer from a connection; 1xx are given as they are."""
    line = file.readline()
    assert line, "the connection was closed without an answer"
    status, headers = int(line.split()[1]), {}
    while (line := file.readline().strip()):
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    return status, headers, file.read(int(headers.get("content-length", 0)))


def until(check, seconds, what):
    """Asks again and again."""
    end = time.monotonic() + seconds
    while True:
        try:
            if check():
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < end, what
        time.sleep(0.01)


def equal(got, want, what=""):
    assert got == want, f"{what} got {got!r:.300}, want {want!r:.300}"


def error(response, status, param=None, kind=None, holds=""):
    """Checks an answer that refuses."""
    equal(response.status_code, status, response.text)
    body = response.json()
    equal(list(body), ["error"])
    equal(set(body["error"]), {"message", "type", "param", "code"})
    if param:
        equal(body["error"]["param"], param, body["error"]["message"])
    if kind:
        equal(body["error"]["type"], kind)
    assert holds in body["error"]["message"], f"{holds!r} is not in {body['error']['message']!r}"
    return body["error"]


def holds(schema, value, at="$"):
    """Checks a value by the few words of JSON Schema that are used here."""
    if "enum" in schema:
        assert value in schema["enum"], f"{at}: {value!r}"
        return
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}
    kind = schema["type"]
    assert isinstance(value, kinds[kind]) and (kind == "boolean" or not isinstance(value, bool)), f"{at}: {value!r}"
    if kind == "object":
        for name in schema.get("required", []):
            assert name in value, f"{at} lacks {name}"
        for name, part in value.items():
            assert name in schema["properties"], f"{at} has {name}"
            holds(schema["properties"][name], part, f"{at}.{name}")
    if kind == "array":
        assert schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 1 << 30), f"{at}: {value}"
        for part in value:
            holds(schema["items"], part, at + "[]")
    if kind in ("integer", "number"):
        assert schema.get("minimum", value) <= value <= schema.get("maximum", value), f"{at}: {value}"


CASES = []


def case(*table):
    """Puts a function among the cases: once, or once for each row of a table."""

    def add(function):
        for row in table or [()]:
            row = row if isinstance(row, tuple) else (row,)
            label = function.__name__ + (f" {row!r:.100}" if row else "")
            CASES.append((label, lambda function=function, row=row: function(*row)))
        return function

    return add


PLAIN = KEYED = TOOLS = EMBEDDER = None
PROGRAM = ""


def chat(messages=None, server=None, **more):
    more.setdefault("model", "default")
    return (server or PLAIN).client.chat.completions.create(messages=messages or HI, **more)


def text(reply, i=0):
    return reply.choices[i].message.content


def joined(stream):
    """The text, the reasons and the chunks of a stream."""
    chunks = list(stream)
    parts = [c.choices[0] for c in chunks if c.choices]
    return "".join(p.delta.content or "" for p in parts), [p.finish_reason for p in parts if p.finish_reason], chunks


# Chat


@case()
def chat_plain():
    reply = chat(max_tokens=8, seed=1)
    equal(reply.object, "chat.completion")
    assert reply.id.startswith("chatcmpl-") and reply.created > 1.6e9 and reply.system_fingerprint
    equal(reply.model, "default")
    equal(reply.choices[0].message.role, "assistant")
    assert text(reply)
    u = reply.usage
    equal(u.total_tokens, u.prompt_tokens + u.completion_tokens)
    assert u.prompt_tokens_details.cached_tokens >= 0 and u.completion_tokens_details.reasoning_tokens == 0


@case("", "default", "default_model", "lapis-demo", None)
def chat_model_names(name):
    response = PLAIN.post("/v1/chat/completions", {"model": name, "messages": HI, "max_tokens": 1})
    equal(response.status_code, 200, response.text)
    equal(response.json()["model"], name or "lapis-demo")


@case()
def chat_without_v1():
    equal(PLAIN.post("/chat/completions", {"messages": HI, "max_tokens": 1}).status_code, 200)


@case()
def chat_no_null_keys():
    choice = PLAIN.post("/v1/chat/completions", {"messages": HI, "max_tokens": 1}).json()["choices"][0]
    equal([k for k, v in choice["message"].items() if v is None], [])
    assert "tool_calls" not in choice["message"]


@case()
def chat_stream():
    whole = text(chat(temperature=0, max_tokens=10))
    got, reasons, chunks = joined(chat(temperature=0, max_tokens=10, stream=True))
    equal(got, whole)
    equal(reasons, ["length"])
    equal(chunks[0].choices[0].delta.role, "assistant")
    assert all(c.choices[0].delta.role is None for c in chunks[1:])
    equal(len({c.id for c in chunks}), 1)
    equal({c.object for c in chunks}, {"chat.completion.chunk"})


@case({"include_usage": True}, {}, {"include_usage": False}, None)
def chat_stream_usage(options):
    _, _, chunks = joined(chat(max_tokens=3, stream=True, stream_options=options))
    if options and options.get("include_usage"):
        equal(chunks[-1].choices, [])
        equal(chunks[-1].usage.completion_tokens, 3)
        assert all(c.usage is None for c in chunks[:-1])
    else:
        assert all(c.choices for c in chunks) and all(c.usage is None for c in chunks)


@case()
def chat_stream_form():
    with PLAIN.http.stream("POST", "/v1/chat/completions", json={"messages": HI, "max_tokens": 3, "stream": True}) as r:
        body = r.read().decode()
    equal(r.headers["content-type"].split(";")[0], "text/event-stream")
    equal(r.headers.get("cache-control"), "no-store")
    equal(r.headers.get("x-accel-buffering"), "no")
    assert "content-encoding" not in r.headers and "x-request-id" in r.headers
    assert body.endswith("data: [DONE]\n\n"), body[-100:]
    for event in body.split("\n\n")[:-2]:
        assert event.startswith("data: ") or event.startswith(":"), event


@case()
def chat_stream_whole_characters():
    # Tokens of single bytes are made likely, so that characters come in parts.
    bias = {str(i): 8 for i in range(130, 260)}
    _, _, chunks = joined(chat(max_tokens=60, stream=True, seed=3, logit_bias=bias))
    for c in chunks:
        (c.choices[0].delta.content or "").encode()
    whole = text(chat(max_tokens=60, seed=3, logit_bias=bias))
    equal("".join(c.choices[0].delta.content or "" for c in chunks), whole)


@case(1, 2, 5, 16)
def chat_n(n):
    reply = chat(FOX, n=n, max_tokens=6, seed=5, temperature=1)
    equal(sorted(c.index for c in reply.choices), list(range(n)))
    assert reply.usage.completion_tokens <= 6 * n and all(text(reply, i) for i in range(n))


@case()
def chat_n_differ():
    reply = chat(FOX, n=6, max_tokens=20, seed=5, temperature=1.5)
    assert len({c.message.content for c in reply.choices}) > 1


@case()
def chat_n_stream():
    whole = chat(FOX, n=3, max_tokens=8, seed=9, temperature=1)
    got = ["", "", ""]
    reasons = {}
    for c in chat(FOX, n=3, max_tokens=8, seed=9, temperature=1, stream=True):
        for part in c.choices:
            got[part.index] += part.delta.content or ""
            if part.finish_reason:
                assert part.index not in reasons
                reasons[part.index] = part.finish_reason
    equal(got, [c.message.content for c in sorted(whole.choices, key=lambda c: c.index)])
    equal(reasons, {c.index: c.finish_reason for c in whole.choices})


def across():
    """A text, and a stop that begins in one of its tokens and ends in the next."""
    whole = text(chat(FOX, temperature=0, max_tokens=40))
    pieces = [t["piece"] for t in PLAIN.post("/tokenize", {"content": whole, "with_pieces": True}).json()["tokens"]]
    for a, b in zip(pieces[8:], pieces[9:]):
        if len(a) > 3 and len(b) > 3 and (a + b)[len(a) - 2 : len(a) + 3] in whole:
            return whole, (a + b)[len(a) - 2 : len(a) + 3]
    raise AssertionError("no two long tokens")


@case(False, True)
def chat_stop_across_tokens(stream):
    whole, stop = across()
    reply = chat(FOX, temperature=0, max_tokens=40, stop=stop, stream=stream)
    got, reason = joined(reply)[:2] if stream else (text(reply), [reply.choices[0].finish_reason])
    equal(got, whole[: whole.index(stop)])
    equal(reason, ["stop"])


@case(False, True)
def chat_stop_list(stream):
    whole, stop = across()
    reply = chat(FOX, temperature=0, max_tokens=40, stop=["never there", stop, "\u00e9"], stream=stream)
    equal(joined(reply)[0] if stream else text(reply), whole[: whole.index(stop)])


@case()
def chat_stop_begun_and_not_ended():
    # A stop that begins at the end of the text and never ends is text.
    whole, _ = across()
    got, _, _ = joined(chat(FOX, temperature=0, max_tokens=40, stop=whole[-4:] + "\u00e9\u00e9", stream=True))
    equal(got, whole)


@case()
def chat_stop_first():
    whole, _ = across()
    reply = chat(FOX, temperature=0, max_tokens=40, stop=whole[0])
    equal((text(reply), reply.choices[0].finish_reason), ("", "stop"))


@case(
    (["x"] * 17,), ("x" * 257,), (["x", 1],), (5,), ({"a": 1},), ([["x"]],),
)
def chat_stop_wrong(stop):
    error(PLAIN.post("/v1/chat/completions", {"messages": HI, "stop": stop, "max_tokens": 1}), 400, "stop")


@case((["x"] * 16,), ("x" * 256,), ([],), (None,))
def chat_stop_right(stop):
    r = PLAIN.post("/v1/chat/completions", {"messages": HI, "stop": stop, "max_tokens": 1})
    equal(r.status_code, 200, r.text)


@case(0, 7, -1, -(2**63), 2**63, 2**64 - 1)
def seeds_alone(seed):
    one, two = (text(chat(FOX, seed=seed, temperature=1.2, max_tokens=16)) for _ in range(2))
    equal(two, one)


@case()
def seeds_among_others():
    seeds = [1, 2, 3, 4, 5, 6, 7, 8]
    ask = lambda seed: text(chat(FOX, seed=seed, temperature=1.2, max_tokens=30))
    alone = [ask(seed) for seed in seeds]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        equal(list(pool.map(ask, seeds)), alone)
    assert len(set(alone)) > 4


@case()
def seeds_same_among_eight():
    ask = lambda _: text(chat(FOX, seed=11, temperature=1.2, max_tokens=30, top_p=0.9))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        equal(len(set(pool.map(ask, range(8)))), 1)


@case()
def seeds_stream_as_whole():
    got, _, _ = joined(chat(FOX, seed=4, temperature=1, max_tokens=20, stream=True))
    equal(got, text(chat(FOX, seed=4, temperature=1, max_tokens=20)))


@case()
def seeds_told():
    first = PLAIN.post("/v1/chat/completions", {"messages": FOX, "temperature": 1, "max_tokens": 12}).json()
    assert "seed" in first["timings"]
    equal(text(chat(FOX, temperature=1, max_tokens=12, seed=first["timings"]["seed"])),
          first["choices"][0]["message"]["content"])


@case(1, 60)
def timings_make_sense(times):
    messages = [{"role": "user", "content": "no one knew " * times}]
    t = PLAIN.post("/v1/chat/completions", {"messages": messages, "max_tokens": 2, "cache_salt": str(time.time())}).json()["timings"]
    equal(sorted({"queue_ms", "prefill_ms", "ttft_ms", "prompt_tps", "decode_tps", "draft_accepted"} - set(t)), [])
    assert t["prompt_tps"] < 1e6, f"prompt_tps {t['prompt_tps']}, prefill_ms {t['prefill_ms']}, queue_ms {t['queue_ms']}"


@case(("max_tokens", 1), ("max_tokens", 7), ("max_completion_tokens", 1), ("max_completion_tokens", 7))
def chat_max(name, most):
    reply = chat(FOX, **{name: most})
    equal((reply.usage.completion_tokens, reply.choices[0].finish_reason), (most, "length"))


@case()
def chat_max_completion_first():
    equal(chat(FOX, max_tokens=2, max_completion_tokens=5).usage.completion_tokens, 5)


@case()
def chat_max_bounded_by_context():
    reply = chat(max_tokens=100000, logit_bias=ENDLESS)
    equal((reply.usage.total_tokens, reply.choices[0].finish_reason), (512, "length"))


@case()
def chat_ends():
    reply = chat(logit_bias=SHORT)
    equal(reply.choices[0].finish_reason, "stop")


@case()
def chat_too_long():
    e = error(PLAIN.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "word " * 2000}]}), 400)
    equal(e["code"], "context_length_exceeded")
    assert "512" in e["message"] and len(re.findall(r"\d+", e["message"])) >= 2, e["message"]


@case(0, 1, 5, 20)
def chat_logprobs(top):
    reply = chat(FOX, max_tokens=5, temperature=0, logprobs=True, top_logprobs=top)
    entries = reply.choices[0].logprobs.content
    equal("".join(e.token for e in entries), text(reply))
    equal(len(entries), 5)
    for e in entries:
        assert e.logprob <= 1e-4 and bytes(e.bytes).decode() == e.token and len(e.top_logprobs) == top
        scores = [t.logprob for t in e.top_logprobs]
        equal(scores, sorted(scores, reverse=True))
        if top:
            equal(e.top_logprobs[0].token, e.token)
            assert abs(e.top_logprobs[0].logprob - e.logprob) < 1e-4


@case()
def chat_logprobs_stream():
    ask = dict(max_tokens=6, temperature=0, logprobs=True, top_logprobs=2)
    whole = [(e.token, round(e.logprob, 3)) for e in chat(FOX, **ask).choices[0].logprobs.content]
    got = []
    for c in chat(FOX, stream=True, **ask):
        for part in c.choices:
            got += [(e.token, round(e.logprob, 3)) for e in (part.logprobs.content if part.logprobs else None) or []]
    equal(got, whole)


@case()
def chat_top_logprobs_alone():
    error(PLAIN.post("/v1/chat/completions", {"messages": HI, "max_tokens": 1, "top_logprobs": 3}), 400, "top_logprobs")


@case("system", "developer")
def chat_roles(role):
    messages = [{"role": role, "content": "Be brief."}, {"role": role, "content": "Be kind."}, *HI]
    prompt = PLAIN.post("/apply-template", {"messages": messages}).json()["prompt"]
    assert "Be brief." in prompt and "Be kind." in prompt, prompt
    assert text(chat(messages, max_tokens=4))


@case()
def chat_parts():
    parts = [{"role": "user", "content": [{"type": "text", "text": "Tell me a story "}, {"type": "text", "text": "about a fox"}]}]
    equal(text(chat(parts, temperature=0, max_tokens=10)), text(chat(FOX, temperature=0, max_tokens=10)))


@case("image_url", "input_image")
def chat_images_refused(kind):
    part = {"type": kind, "image_url": {"url": "data:image/png;base64,AAAA"}}
    error(PLAIN.post("/v1/chat/completions", {"messages": [{"role": "user", "content": [part]}], "max_tokens": 1}), 400, "messages")


@case(([],), ("hi",), (["hi"],), ([None],), ({},), ([{"content": "x"}],), ([{"role": "pirate", "content": "x"}],),
      ([{"role": "user", "content": 5}],), ([{"role": 5, "content": "x"}],), ([{"role": "user", "content": [5]}],),
      ([{"role": "user", "content": {"type": "text"}}],), (None,), ([{"role": "user", "content": [{"type": "text"}]}],),
      ([{"role": "user", "content": [{"type": "what", "text": "x"}]}],))
def chat_messages_wrong(messages):
    error(PLAIN.post("/v1/chat/completions", {"messages": messages, "max_tokens": 1}), 400, "messages")


@case()
def chat_messages_missing():
    error(PLAIN.post("/v1/chat/completions", {"max_tokens": 1}), 400, "messages")


@case("temperature", "top_p", "n", "stream", "stop", "max_tokens", "logit_bias", "tools", "tool_choice", "seed", "user",
      "response_format", "functions", "function_call", "stream_options", "logprobs", "top_logprobs", "metadata",
      "parallel_tool_calls", "reasoning_effort", "modalities", "audio", "max_completion_tokens")
def chat_null_is_absent(name):
    body = {"messages": HI, "max_completion_tokens": 1, name: None}
    if name == "max_completion_tokens":
        body["max_tokens"] = 1
    r = PLAIN.post("/v1/chat/completions", body)
    equal(r.status_code, 200, r.text)
    assert name not in r.headers.get("x-lapis-warnings", "")


@case("audio", "adapters", "chat_template")
def chat_refused_fields(name):
    value = {"audio": {"voice": "x", "format": "wav"}, "adapters": "x", "chat_template": "{{ 1 }}"}[name]
    r = PLAIN.post("/v1/chat/completions", {"messages": HI, "max_tokens": 1, name: value})
    assert r.status_code in (400, 403), r.text
    error(r, r.status_code, name)


@case()
def chat_modalities():
    error(PLAIN.post("/v1/chat/completions", {"messages": HI, "modalities": ["text", "audio"]}), 400, "modalities")
    equal(PLAIN.post("/v1/chat/completions", {"messages": HI, "max_tokens": 1, "modalities": ["text"]}).status_code, 200)


@case(({"x": 1},), ({"-1": 1},), ({"99999999": 1},), ({"4294967296": 1},), ({"3": "1"},), ({"3": None},), ({str(i): 0 for i in range(1025)},), ([],), (3,))
def chat_bias_wrong(bias):
    error(PLAIN.post("/v1/chat/completions", {"messages": HI, "max_tokens": 1, "logit_bias": bias}), 400, "logit_bias")


@case()
def chat_bias_works():
    reply = chat(max_tokens=3, logit_bias={"3": 100})
    equal(text(reply), "!!!")


@case("foo", "max_token", "Temperature")
def unknown_field_warned(name):
    r = PLAIN.post("/v1/chat/completions", {"messages": HI, "max_tokens": 1, name: 1})
    equal(r.status_code, 200)
    assert name in r.headers.get("x-lapis-warnings", ""), dict(r.headers)


@case("store", "metadata", "user", "safety_identifier", "service_tier", "prediction", "verbosity",
      "prompt_cache_retention", "web_search_options", "moderation")
def idle_field_warned(name):
    r = PLAIN.post("/v1/chat/completions", {"messages": HI, "max_tokens": 1, name: "x"})
    equal(r.status_code, 200, r.text)
    assert name in r.headers.get("x-lapis-warnings", ""), dict(r.headers)


@case("a\nb", "a\r\nx-evil: 1", "\u00e9", "x" * 50000)
def unknown_field_odd_name(name):
    r = PLAIN.post("/v1/chat/completions", {"messages": HI, "max_tokens": 1, name: 1})
    equal(r.status_code, 200, r.text[:200])
    assert "x-evil" not in r.headers and "x-lapis-warnings" in r.headers


@case()
def no_warning_without_cause():
    assert "x-lapis-warnings" not in PLAIN.post("/v1/chat/completions", {"messages": HI, "max_tokens": 1}).headers


# Formats

SCHEMA = {"type": "object", "additionalProperties": False, "required": ["yes", "kind", "count", "list"],
          "properties": {"yes": {"type": "boolean"}, "kind": {"enum": ["fox", "owl"]},
                         "count": {"type": "integer", "minimum": 0, "maximum": 9},
                         "list": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}}}


@case(*[(seed, strict, stream) for seed in (1, 2) for strict in (True, False, None) for stream in (False, True)])
def format_schema(seed, strict, stream):
    format = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": strict}}
    reply = chat(FOX, seed=seed, temperature=1, response_format=format, stream=stream)
    got, reasons = joined(reply)[:2] if stream else (text(reply), [reply.choices[0].finish_reason])
    value = json.loads(got)
    equal(reasons, ["stop"])
    holds(SCHEMA, value)
    equal(list(value), list(SCHEMA["properties"]))


@case(False, True)
def format_object(stream):
    bias = {str(t): 12 for t in PLAIN.post("/tokenize", {"content": "}"}).json()["tokens"]}
    reply = chat(FOX, seed=1, response_format={"type": "json_object"}, logit_bias=bias, stream=stream)
    assert isinstance(json.loads(joined(reply)[0] if stream else text(reply)), dict)


@case()
def format_text():
    equal(text(chat(FOX, temperature=0, max_tokens=5, response_format={"type": "text"})), text(chat(FOX, temperature=0, max_tokens=5)))


@case()
def format_regex():
    r = PLAIN.post("/v1/chat/completions", {"messages": FOX, "response_format": {"type": "regex", "regex": "[a-c]{3}-[0-9]{2}"}})
    got = r.json()["choices"][0]["message"]["content"]
    assert re.fullmatch("[a-c]{3}-[0-9]{2}", got), got


@case()
def format_cut_says_length():
    reply = chat(FOX, max_tokens=2, response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}})
    equal(reply.choices[0].finish_reason, "length")


@case()
def format_among_others():
    format = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    ask = lambda i: text(chat(FOX, seed=i, max_tokens=200, **({"response_format": format} if i % 2 else {})))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for i, got in enumerate(pool.map(ask, range(8))):
            if i % 2:
                holds(SCHEMA, json.loads(got))


@case({"type": "what"}, {}, {"type": 5}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {}},
      {"type": "json_schema", "json_schema": {"name": "a", "schema": 5}}, {"type": "regex", "regex": "("}, {"type": "regex"},
      {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nonsense"}}},
      {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": []}}},
      {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "#/nowhere"}}},
      {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": {"type": "object", "not": {}}}})
def format_wrong(format):
    error(PLAIN.post("/v1/chat/completions", {"messages": HI, "max_tokens": 3, "response_format": format}), 400, "response_format")


# Tools


def tool(name, schema=SCHEMA):
    return {"type": "function", "function": {"name": name, "description": "It does a thing.", "parameters": schema}}


TWO = [tool("look"), tool("take", {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 5}}, "required": ["n"], "additionalProperties": False})]


def parameters(name):
    return next(t["function"]["parameters"] for t in TWO if t["function"]["name"] == name)


def check_call(call):
    assert call.id and call.type == "function"
    holds(parameters(call.function.name), json.loads(call.function.arguments))


@case("look", "take")
def tool_by_name(name):
    reply = chat(FOX, TOOLS, tools=TWO, tool_choice={"type": "function", "function": {"name": name}}, seed=1, max_tokens=300)
    choice = reply.choices[0]
    equal(choice.finish_reason, "tool_calls")
    equal(choice.message.content, None)
    equal([c.function.name for c in choice.message.tool_calls], [name])
    check_call(choice.message.tool_calls[0])


@case(1, 2, 3)
def tool_required(seed):
    reply = chat(FOX, TOOLS, tools=TWO, tool_choice="required", seed=seed, max_tokens=300, parallel_tool_calls=False)
    calls = reply.choices[0].message.tool_calls
    equal((len(calls), reply.choices[0].finish_reason), (1, "tool_calls"))
    check_call(calls[0])


@case(1, 2)
def tool_required_many(seed):
    reply = chat(FOX, TOOLS, tools=TWO, tool_choice="required", seed=seed, max_tokens=300)
    calls = reply.choices[0].message.tool_calls
    assert calls
    for call in calls[: len(calls) - (reply.choices[0].finish_reason == "length")]:
        check_call(call)
    equal(len({c.id for c in calls}), len(calls))


@case("look", "take")
def tool_stream(name):
    ask = dict(tools=TWO, tool_choice={"type": "function", "function": {"name": name}}, seed=1, max_tokens=300)
    whole = chat(FOX, TOOLS, **ask).choices[0].message.tool_calls
    calls, reasons = {}, []
    for c in chat(FOX, TOOLS, stream=True, **ask):
        for part in c.choices:
            reasons += [part.finish_reason] if part.finish_reason else []
            assert not part.delta.content, part.delta
            for delta in part.delta.tool_calls or []:
                if delta.index not in calls:
                    assert delta.id and delta.type == "function" and delta.function.name
                    calls[delta.index] = [delta.function.name, ""]
                else:
                    assert delta.id is None and delta.type is None and delta.function.name is None, delta
                assert delta.function.arguments is None or isinstance(delta.function.arguments, str)
                calls[delta.index][1] += delta.function.arguments or ""
    equal(reasons, ["tool_calls"])
    equal(list(calls), [0])
    equal(calls[0], [whole[0].function.name, whole[0].function.arguments])
    holds(parameters(name), json.loads(calls[0][1]))


@case()
def tool_stream_in_fragments():
    ask = dict(tools=TWO, tool_choice={"type": "function", "function": {"name": "look"}}, seed=1, max_tokens=300)
    deltas = [c for c in chat(FOX, TOOLS, stream=True, **ask) if c.choices and c.choices[0].delta.tool_calls]
    assert len(deltas) > 3, f"{len(deltas)} deltas"


@case()
def tool_older_form():
    reply = chat(FOX, TOOLS, functions=[t["function"] for t in TWO], function_call={"name": "take"}, max_tokens=100)
    calls = reply.choices[0].message.tool_calls
    assert calls or reply.choices[0].message.function_call, reply
    holds(parameters("take"), json.loads((calls[0].function if calls else reply.choices[0].message.function_call).arguments))


@case()
def tool_allowed():
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "take"}}]}}
    for call in chat(FOX, TOOLS, tools=TWO, tool_choice=choice, max_tokens=60, parallel_tool_calls=False).choices[0].message.tool_calls:
        equal(call.function.name, "take")


@case("none", "auto")
def tool_free(choice):
    reply = chat(FOX, TOOLS, tools=TWO, tool_choice=choice, max_tokens=10, temperature=0)
    assert text(reply)


@case()
def tool_none_leaves_prompt():
    ask = {"messages": FOX, "tools": TWO}
    assert "take" in TOOLS.post("/apply-template", ask).json()["prompt"]
    plain = chat(FOX, TOOLS, max_tokens=1).usage.prompt_tokens
    equal(chat(FOX, TOOLS, tools=TWO, tool_choice="none", max_tokens=1).usage.prompt_tokens, plain)


@case('{"n": 3}', {"n": 3}, "", "not json")
def tool_history(arguments):
    messages = [*FOX, {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "take", "arguments": arguments}}]},
                {"role": "tool", "tool_call_id": "call_1", "content": "done"}]
    r = TOOLS.post("/v1/chat/completions", {"messages": messages, "tools": TWO, "max_tokens": 2})
    equal(r.status_code, 200, r.text)


@case((TWO, "what", "tool_choice"), (TWO, 5, "tool_choice"), (TWO, {"type": "function", "function": {"name": "no"}}, "tool_choice"),
      (None, "required", "tool_choice"), ([], "required", "tool_choice"), ([5], None, "tools"), ([{}], None, "tools"), ("x", None, "tools"),
      ([{"type": "function"}], None, "tools"), ([{"type": "function", "function": {"name": ""}}], None, "tools"),
      ([tool("a", 5)], None, "tools"), ([tool("t")] * 513, None, "tools"), (TWO, {}, "tool_choice"), (TWO, [], "tool_choice"),
      ([tool("a", {"type": "nonsense"})], "required", "tools"))
def tool_wrong(tools, choice, param):
    error(TOOLS.post("/v1/chat/completions", {"messages": HI, "max_tokens": 2, "tools": tools, "tool_choice": choice}), 400, param)


@case(None, {}, {"type": "object"}, {"type": "object", "properties": {}})
def tool_without_parameters(schema):
    t = tool("go", schema)
    reply = chat(FOX, TOOLS, tools=[t], tool_choice="required", parallel_tool_calls=False, max_tokens=200, logit_bias={str(i): 12 for i in TOOLS.post("/tokenize", {"content": "}"}).json()["tokens"]})
    call = reply.choices[0].message.tool_calls[0]
    equal(call.function.name, "go")
    assert isinstance(json.loads(call.function.arguments), dict)


# Completions


def complete(prompt, **more):
    return PLAIN.client.completions.create(model="default", prompt=prompt, **more)


@case()
def completion_plain():
    reply = complete("Once there was", max_tokens=6)
    equal(reply.object, "text_completion")
    assert reply.choices[0].text and reply.usage.completion_tokens == 6


@case()
def completion_forms():
    tokens = PLAIN.post("/tokenize", {"content": "Once there was"}).json()["tokens"]
    ask = dict(max_tokens=8, temperature=0)
    want = complete("Once there was", **ask).choices[0].text
    equal(complete(tokens, **ask).choices[0].text, want)
    equal([c.text for c in complete([tokens, tokens], **ask).choices], [want, want])
    equal([c.text for c in complete(["Once there was", "Once there was"], **ask).choices], [want, want])


@case()
def completion_many():
    reply = complete(["One day", "The fox", "At night"], n=2, max_tokens=4, seed=1)
    equal([c.index for c in reply.choices], list(range(6)))


@case(False, True)
def completion_echo(stream):
    ask = dict(max_tokens=5, temperature=0)
    want = "The fox" + complete("The fox", **ask).choices[0].text
    reply = complete("The fox", echo=True, stream=stream, **ask)
    equal("".join(c.choices[0].text for c in reply) if stream else reply.choices[0].text, want)


@case()
def completion_echo_logprobs():
    logprobs = complete("The fox walked", echo=True, logprobs=1, max_tokens=2, temperature=0).choices[0].logprobs
    equal(logprobs.token_logprobs[0], None)
    assert "".join(logprobs.tokens).startswith("The fox walked")


@case()
def completion_echo_score():
    choice = complete("The fox walked", echo=True, logprobs=0, max_tokens=0).choices[0]
    equal(choice.text, "The fox walked")


@case(0, 1, 5, 20)
def completion_logprobs(top):
    choice = complete("The fox", max_tokens=4, temperature=0, logprobs=top).choices[0]
    l = choice.logprobs
    equal("".join(l.tokens), choice.text)
    equal((len(l.token_logprobs), len(l.text_offset)), (4, 4))
    at = l.text_offset[0]
    for token, offset in zip(l.tokens, l.text_offset):
        equal(offset, at)
        at += len(token)
    if top:
        for token, score, tops in zip(l.tokens, l.token_logprobs, l.top_logprobs):
            assert len(tops) <= top + 1 and abs(tops[token] - score) < 1e-4


@case()
def completion_stream():
    ask = dict(max_tokens=10, seed=3)
    parts = list(complete("The fox", stream=True, **ask))
    equal("".join(p.choices[0].text for p in parts), complete("The fox", **ask).choices[0].text)
    equal({p.object for p in parts}, {"text_completion"})
    equal([p.choices[0].finish_reason for p in parts if p.choices[0].finish_reason], ["length"])


@case(False, True)
def completion_keeps_first_space(stream):
    token, = PLAIN.post("/tokenize", {"content": " one"}).json()["tokens"]
    reply = complete("The fox", max_tokens=1, logit_bias={str(token): 100}, stream=stream)
    equal("".join(c.choices[0].text for c in reply) if stream else reply.choices[0].text, " one")


@case(False, True)
def completion_stop(stream):
    whole = complete("The fox", max_tokens=30, temperature=0).choices[0].text
    stop = whole[20:26]
    reply = complete("The fox", max_tokens=30, temperature=0, stop=stop, stream=stream)
    got = "".join(c.choices[0].text for c in reply) if stream else reply.choices[0].text
    equal(got, whole[: whole.index(stop)])


@case()
def completion_best_of():
    equal(len(complete("The fox", n=2, best_of=4, max_tokens=4, seed=1).choices), 2)
    error(PLAIN.post("/v1/completions", {"prompt": "a", "n": 3, "best_of": 2, "max_tokens": 1}), 400, "best_of")


@case()
def completion_suffix():
    error(PLAIN.post("/v1/completions", {"prompt": "a", "suffix": "b", "max_tokens": 1}), 400, "suffix")


@case((5,), ([],), ({},), (None,), ([5, "a"],), ([["a"]],), ([-1],), ([1.5],), ([99999999],), ([[99999999]],), ([2**63],), ([[]],), ("",), (True,))
def completion_prompt_wrong(prompt):
    r = PLAIN.post("/v1/completions", {"prompt": prompt, "max_tokens": 1})
    if prompt == "" and r.status_code == 200:
        return
    error(r, 400, "prompt")


# Models, tokens, templates


@case()
def models_list():
    models = list(PLAIN.client.models.list())
    equal([m.id for m in models], ["lapis-demo"])
    m = models[0].model_dump()
    equal((m["object"], m["context_length"], m["loaded"]), ("model", 512, True))
    body = PLAIN.http.get("/v1/models?client_version=1").json()
    equal(body["models"][0]["slug"], "lapis-demo")
    assert "/" not in json.dumps(body["data"])


@case("/models", "/v1/models/", "/v1/models?x=1")
def models_paths(path):
    equal(PLAIN.http.get(path).status_code, 200)


@case()
def models_one():
    equal(PLAIN.client.models.retrieve("lapis-demo").id, "lapis-demo")


@case("/v1/models/lapis%2Ddemo")
def models_percent(path):
    equal(PLAIN.http.get(path).json()["id"], "lapis-demo")


@case("nothing", "a/b", "a%2Fb", "..%2F..%2Fetc%2Fpasswd", "/etc/passwd", "%ff")
def models_unknown(name):
    error(PLAIN.http.get("/v1/models/" + name), 404, kind="not_found_error")


@case(("/v1/chat/completions", "lapis-dmo"), ("/v1/completions", "lapis_demo"), ("/tokenize", "lapisdemo"))
def unknown_model(path, name):
    r = PLAIN.post(path, {"model": name, "messages": HI, "prompt": "x", "max_tokens": 1})
    e = error(r, 404, kind="not_found_error", holds="lapis-demo")
    assert e["param"] in ("model", None)


@case()
def unknown_model_sdk():
    try:
        chat(model="gpt-4o")
    except openai.NotFoundError as e:
        equal(e.type, "not_found_error")
    else:
        raise AssertionError("no error")


@case("../x", "/etc/passwd", "a\u0000b", "x" * 10000, "C:\\x", "\u00e9")
def odd_model(name):
    r = PLAIN.post("/v1/chat/completions", {"model": name, "messages": HI, "max_tokens": 1})
    assert r.status_code in (400, 403, 404), r.text[:200]


@case("hello world", "", " a  b\n\n\tc ", "h\u00e9llo \u4e16\u754c \U0001f98a", "<|im_start|>user\n", "\u0000\u0001", "a" * 3000, "e\u0301")
def tokens_round(content):
    for prefix in ("", "/v1"):
        t = PLAIN.post(prefix + "/tokenize", {"content": content, "add_special": False}).json()
        equal((t["count"], t["max_model_len"]), (len(t["tokens"]), 512))
        back = PLAIN.post(prefix + "/detokenize", {"tokens": t["tokens"]}).json()
        equal((back["content"], back["prompt"]), (content, content))


@case("content", "prompt", "text")
def tokens_names(name):
    equal(PLAIN.post("/tokenize", {name: "hi"}).json()["tokens"], PLAIN.post("/tokenize", {"content": "hi"}).json()["tokens"])


@case()
def tokens_pieces():
    tokens = PLAIN.post("/tokenize", {"content": "h\u00e9llo \U0001f98a", "with_pieces": True}).json()["tokens"]
    pieces = [t["piece"] for t in tokens]
    equal(b"".join(p.encode() if isinstance(p, str) else bytes(p) for p in pieces).decode(), "h\u00e9llo \U0001f98a")


@case()
def tokens_of_messages():
    t = PLAIN.post("/tokenize", {"messages": HI}).json()
    equal(t["count"], chat(max_tokens=1).usage.prompt_tokens)


@case(([-1],), ([2**40],), ([99999999],), (["a"],), ([1.5],), ([None],), ("a",), (None,), ({},))
def detokenize_wrong(tokens):
    error(PLAIN.post("/detokenize", {"tokens": tokens}), 400, "tokens")


@case({}, {"content": 5}, {"content": ["a"]}, {"messages": []}, {"content": "a", "with_pieces": "yes"})
def tokenize_wrong(body):
    error(PLAIN.post("/tokenize", body), 400)


@case((True,), (False,))
def template(begun):
    prompt = PLAIN.post("/apply-template", {"messages": HI, "add_generation_prompt": begun}).json()["prompt"]
    equal(prompt.endswith("<|im_start|>assistant\n"), begun, prompt)
    equal(PLAIN.post("/v1/apply-template", {"messages": HI, "add_generation_prompt": begun}).json()["prompt"], prompt)


@case({}, {"messages": []}, {"messages": "x"}, {"messages": [5]}, {"messages": HI, "chat_template_kwargs": 5})
def template_wrong(body):
    error(PLAIN.post("/apply-template", body), 400)


# Numbers

ANY = (None, None)
NUMBERS = {
    "/v1/chat/completions": {
        "max_tokens": (1, ANY), "max_completion_tokens": (1, ANY), "temperature": (0, ANY), "top_p": (0, 1), "top_k": (0, ANY),
        "min_p": (0, 1), "seed": (-(2**63), 2**64 - 1), "n": (1, 16), "repetition_penalty": ANY, "presence_penalty": ANY,
        "frequency_penalty": ANY, "repetition_context_size": (0, ANY), "presence_context_size": (0, ANY),
        "frequency_context_size": (0, ANY), "xtc_probability": (0, 1), "xtc_threshold": (0, 0.5), "top_logprobs": (0, 20),
    },
    "/v1/completions": {"max_tokens": (0, ANY), "logprobs": (0, 20), "best_of": (1, 16), "n": (1, 16), "temperature": (0, ANY),
                        "seed": (-(2**63), 2**64 - 1)},
}
VALUES = ["-9223372036854775808", "-1", "-0.0", "0", "1", "2147483648", "9223372036854775808", "1e308", "-1e308", "1e400", "0.5",
          "NaN", "Infinity", "null", '"1"', "[]", "{}", "true"]


@case(*[(route, field, value) for route, fields in NUMBERS.items() for field in fields for value in VALUES])
def number(route, field, value):
    least, most = NUMBERS[route][field]
    base = {"messages": HI, "prompt": "hi", "logit_bias": SHORT, "max_completion_tokens": 1}
    base = {k: v for k, v in base.items() if k in (("messages", "logit_bias") if "chat" in route else ("prompt", "logit_bias"))}
    if field == "top_logprobs":
        base["logprobs"] = True
    if not field.startswith("max_"):
        base["max_tokens"] = 1
    body = json.dumps(base)[:-1] + f', "{field}": {value}}}'
    r = PLAIN.http.post(route, content=body, headers={"content-type": "application/json"})
    assert r.status_code in (200, 400), f"{r.status_code} {r.text[:200]}"
    if value in ("NaN", "Infinity", "1e400"):
        error(r, 400)
    elif value == "null":
        equal(r.status_code, 200, r.text)
    elif value in ('"1"', "[]", "{}", "true"):
        error(r, 400, field)
    elif r.status_code == 400:
        error(r, 400, field)
    n = float(value) if value[0] in "-.0123456789" else None
    if n is not None:
        whole = "." not in value and "e" not in value
        if isinstance(least, (int, float)) and n < least:
            equal(r.status_code, 400, "below the least:")
        elif isinstance(most, (int, float)) and n > most:
            equal(r.status_code, 400, "above the most:")
        elif isinstance(least, int) and whole and isinstance(most, int):
            equal(r.status_code, 200, r.text)
        elif value == "1":
            equal(r.status_code, 200, r.text)
    equal(PLAIN.http.get("/health").status_code, 200)


@case()
def number_next_works():
    equal(text(chat(max_tokens=3, logit_bias={"3": 100})), "!!!")


# Bodies and routes

ROUTES = [("POST", p) for p in ("/v1/chat/completions", "/chat/completions", "/v1/completions", "/completions", "/tokenize",
                                "/v1/tokenize", "/detokenize", "/v1/detokenize", "/apply-template", "/v1/apply-template")]
READS = [("GET", p) for p in ("/v1/models", "/models", "/v1/models/lapis-demo", "/metrics")]
JSON = {"content-type": "application/json"}


@case(b"", b"{", b"[]", b"5", b'"x"', b"null", b"{} {}", b'{"messages": [}', b"{'a': 1}", b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
      b"[" * 100000, b'{"messages": ' + b"[" * 200 + b"]" * 200 + b"}", b'{"a":' * 5000 + b"1" + b"}" * 5000, b'{"messages": "\\ud800"}', b"\xef\xbb\xbf5")
def bad_json(body):
    begin = time.monotonic()
    r = PLAIN.http.post("/v1/chat/completions", content=body, headers=JSON)
    error(r, 400, kind="invalid_request_error")
    assert time.monotonic() - begin < 1


@case(*[p for _, p in ROUTES])
def bad_json_routes(path):
    error(PLAIN.http.post(path, content=b"{", headers=JSON), 400)


@case("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", None, "application/jsonx")
def content_type(kind):
    headers = {} if kind is None else {"content-type": kind}
    error(PLAIN.http.post("/v1/chat/completions", content=b'{"messages":[]}', headers=headers), 415)


@case("application/json; charset=utf-8", "Application/JSON", "application/json;charset=UTF-8")
def content_type_right(kind):
    r = PLAIN.http.post("/v1/chat/completions", content=json.dumps({"messages": HI, "max_tokens": 1}), headers={"content-type": kind})
    equal(r.status_code, 200, r.text)


@case(*[(m, p) for wrong, routes in ((("GET", "DELETE", "PUT"), ROUTES), (("POST", "DELETE"), [*READS, ("GET", "/health"), ("GET", "/ready")])) for _, p in routes for m in wrong])
def wrong_method(method, path):
    r = PLAIN.http.request(method, path, content=b"{}" if method != "GET" else None, headers=JSON)
    error(r, 405)
    allowed = [a.strip() for a in r.headers.get("allow", "").split(",")]
    assert ("POST" if ("POST", path) in ROUTES else "GET") in allowed, allowed


@case("/nope", "/v1/nope", "/v1", "/v1/chat", "/v1/chat/completions/x", "/v1/v1/models", "/%00", "/..%2f..%2fetc", "/V1/models")
def unknown_route(path):
    error(PLAIN.http.get(path), 404, kind="not_found_error")


@case(("POST", "/api/chat"), ("POST", "/api/generate"), ("GET", "/api/nope"))
def unknown_ollama(method, path):
    r = PLAIN.http.request(method, path, json={} if method == "POST" else None)
    equal(r.status_code, 404)
    assert "/v1" in r.json()["error"], r.text


@case("/health", "/ready", "/v1/models")
def head(path):
    r = PLAIN.http.head(path)
    equal((r.status_code, r.content), (200, b""))


@case()
def health():
    equal(PLAIN.http.get("/health").json(), {"status": "ok"})
    equal(PLAIN.http.get("/ready").status_code, 200)


@case("abc-123", "req_x.y")
def request_id_kept(name):
    equal(PLAIN.http.get("/health", headers={"x-request-id": name}).headers["x-request-id"], name)


@case("x" * 5000, "a b\tc;", "\u00e9".encode())
def request_id_odd(name):
    assert PLAIN.http.get("/health", headers={"x-request-id": name}).headers["x-request-id"] not in (name, "")


@case("/health", "/nope", "/v1/models", "/v1/chat/completions")
def request_id_always(path):
    one, two = (PLAIN.http.get(path).headers.get("x-request-id") for _ in range(2))
    assert one and two and one != two


# Keys


@case(*ROUTES, *READS, ("GET", "/nope"), ("GET", "/openapi.json"), ("GET", "/api/tags"))
def key_needed(method, path):
    body = json.dumps({"messages": HI, "prompt": "hi", "content": "a", "tokens": [1], "max_tokens": 1}) if method == "POST" else None
    for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}, {"authorization": "Basic " + KEYED.key}, {"authorization": KEYED.key},
                    {"authorization": "Bearer"}, {"authorization": "Bearer " + KEYED.key + "x"}, {"authorization": "Bearer " + KEYED.key[:-1]}):
        r = httpx.request(method, KEYED.url + path, content=body, headers={**JSON, **headers})
        # OpenAI's form on its own routes, another's elsewhere.
        equal(r.status_code, 401, f"{headers} {r.text}")
        assert KEYED.key not in r.text
        if not path.startswith("/api"):
            error(r, 401, kind="authentication_error")


@case(*ROUTES, *READS)
def key_taken(method, path):
    body = json.dumps({"messages": HI, "prompt": "hi", "content": "a", "tokens": [1], "max_tokens": 1}) if method == "POST" else None
    for headers in ({"authorization": "Bearer " + KEYED.key}, {"x-api-key": KEYED.key}, {"authorization": "bearer " + KEYED.key}, {"x-api-key": "second-key"}):
        r = httpx.request(method, KEYED.url + path, content=body, headers={**JSON, **headers})
        equal(r.status_code, 200, f"{headers} {r.text}")


@case(("GET", "/v1/chat/completions"), ("POST", "/v1/models"))
def key_before_method(method, path):
    equal(httpx.request(method, KEYED.url + path).status_code, 401)


@case("/health", "/ready")
def key_not_needed(path):
    equal(httpx.get(KEYED.url + path).status_code, 200)


@case()
def key_sdk():
    assert text(chat(server=KEYED, max_tokens=2))
    try:
        openai.OpenAI(base_url=KEYED.url + "/v1", api_key="wrong", max_retries=0).models.list()
    except openai.AuthenticationError:
        return
    raise AssertionError("no error")


@case()
def key_before_body():
    # Without a key a body is not read.
    with socket.create_connection(("127.0.0.1", KEYED.port), timeout=5) as s:
        s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n")
        equal(answer(s.makefile("rb"))[0], 401)


@case()
def key_not_in_log():
    time.sleep(0.1)
    assert KEYED.key not in "".join(KEYED.lines)


# Hosts, origins


@case("evil.com", "evil.com:80", "localhost.evil.com", "127.0.0.1.evil.com", "a@b")
def host_foreign(host):
    error(PLAIN.http.get("/v1/models", headers={"host": host}), 403, kind="permission_error", holds="--allowed-host")
    equal(PLAIN.http.get("/health", headers={"host": host}).status_code, 403)


@case("localhost", "LocalHost:99", "127.0.0.1", "[::1]:80", "a.localhost", "box.local", "host.docker.internal", "192.168.1.1:80")
def host_near(host):
    equal(PLAIN.http.get("/v1/models", headers={"host": host}).status_code, 200)


@case("https://evil.com", "null", "http://localhost.evil.com", "chrome-extension://abc", "file://", "localhost", "", "http://127.0.0.1.evil.com")
def origin_foreign(origin):
    r = PLAIN.http.get("/v1/models", headers={"origin": origin})
    error(r, 403, kind="permission_error")
    assert "access-control-allow-origin" not in r.headers
    equal(PLAIN.http.options("/v1/models", headers={"origin": origin, "access-control-request-method": "GET"}).status_code, 403)


@case("http://localhost:3000", "https://localhost", "http://127.0.0.1:1", "http://[::1]:5", "tauri://localhost", "app://x", "vscode-webview://abc")
def origin_near(origin):
    r = PLAIN.http.get("/v1/models", headers={"origin": origin})
    equal(r.status_code, 200)
    equal(r.headers.get("access-control-allow-origin"), origin)
    assert "origin" in r.headers.get("vary", "").lower()


@case("authorization", "content-type", "x-api-key", "x-request-id", "x-stainless-lang", "x-stainless-retry-count", "anthropic-version", "anthropic-beta", "openai-organization")
def preflight(header):
    asked = {"origin": "http://localhost:3000", "access-control-request-method": "POST", "access-control-request-headers": header}
    for server in (PLAIN, KEYED):
        r = httpx.options(server.url + "/v1/chat/completions", headers=asked)
        assert r.status_code in (200, 204), r.text
        equal(r.headers["access-control-allow-origin"], asked["origin"])
        assert header in [h.strip().lower() for h in r.headers["access-control-allow-headers"].split(",")], dict(r.headers)
        for method in ("GET", "POST", "DELETE", "OPTIONS"):
            assert method in r.headers["access-control-allow-methods"], dict(r.headers)
        equal(r.headers.get("access-control-max-age"), "600")


@case()
def preflight_foreign_header():
    r = PLAIN.http.options("/v1/models", headers={"origin": "http://localhost:3000", "access-control-request-method": "GET", "access-control-request-headers": "x-evil"})
    assert "x-evil" not in r.headers.get("access-control-allow-headers", ""), dict(r.headers)


@case()
def preflight_private_network():
    ask = {"origin": "http://localhost:3000", "access-control-request-method": "POST", "access-control-request-private-network": "true"}
    equal(PLAIN.http.options("/v1/models", headers=ask).headers.get("access-control-allow-private-network"), "true")
    bad = PLAIN.http.options("/v1/models", headers={**ask, "origin": "https://evil.com"})
    assert "access-control-allow-private-network" not in bad.headers


@case()
def cross_site():
    error(PLAIN.http.get("/v1/models", headers={"sec-fetch-site": "cross-site"}), 403)
    equal(PLAIN.http.get("/v1/models", headers={"sec-fetch-site": "same-origin"}).status_code, 200)


# The wire


def request(body, *headers, path="/v1/chat/completions"):
    body = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


ONE = {"messages": HI, "max_tokens": 1}


@case(33554433, 2**40, 2**63 - 1)
def body_too_large(length):
    begin = time.monotonic()
    (status, _, body), = PLAIN.raw(f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n".encode())
    equal(status, 413)
    assert json.loads(body)["error"]["message"] and time.monotonic() - begin < 2


@case()
def body_too_large_chunked():
    piece = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    (status, _, _), = PLAIN.raw(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" + piece * 33 + b"0\r\n\r\n")
    equal(status, 413)


@case("Content-Length: -1", "Content-Length: x", "Content-Length: 5\r\nContent-Length: 6", "Content-Length: 5\r\nTransfer-Encoding: chunked", "Content-Length: 99999999999999999999999")
def body_length_wrong(lines):
    with socket.create_connection(("127.0.0.1", PLAIN.port), timeout=10) as s:
        s.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{lines}\r\n\r\n0\r\n\r\n".encode())
        file = s.makefile("rb")
        status = answer(file)[0]
        assert status in (400, 413), status
        equal(file.read(), b"")


@case(1, 7, 100000)
def body_chunked(size):
    body = json.dumps({"messages": HI, "max_tokens": 1, "user": "x" * 50}).encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(body[i : i + size]), body[i : i + size]) for i in range(0, len(body), size))
    (status, _, got), = PLAIN.raw(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
    equal(status, 200, got)


@case()
def body_chunked_bad():
    (status, _, _), = PLAIN.raw(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
    equal(status, 400)


@case()
def body_expected():
    data = request(ONE, "Expect: 100-continue")
    head, _, body = data.partition(b"\r\n\r\n")
    with socket.create_connection(("127.0.0.1", PLAIN.port), timeout=10) as s:
        file = s.makefile("rb")
        s.sendall(head + b"\r\n\r\n")
        equal(answer(file)[0], 100)
        s.sendall(body)
        equal(answer(file)[0], 200)


@case()
def pipelined():
    answers = PLAIN.raw(request(ONE) + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + request({"content": "hi"}, path="/tokenize") + request({}), 4)
    equal([a[0] for a in answers], [200, 200, 200, 400])
    assert b"chat.completion" in answers[0][2] and b"ok" in answers[1][2] and b"tokens" in answers[2][2]


@case()
def kept_alive():
    with socket.create_connection(("127.0.0.1", PLAIN.port), timeout=10) as s:
        file = s.makefile("rb")
        for _ in range(5):
            s.sendall(request(ONE))
            equal(answer(file)[0], 200)
        s.sendall(request({"messages": 5}))
        equal(answer(file)[0], 400)
        s.sendall(request(ONE, "Connection: close"))
        equal(answer(file)[0], 200)
        equal(file.read(), b"")


@case()
def host_missing():
    # HTTP/1.1 asks for 400.
    equal(PLAIN.raw(b"GET /v1/models HTTP/1.1\r\n\r\n")[0][0], 400)


@case()
def host_twice():
    status = PLAIN.raw(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil.com\r\n\r\n")[0][0]
    assert status in (400, 403), status


@case()
def host_in_target():
    equal(PLAIN.raw(b"GET http://evil.com/v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")[0][0], 403)


@case()
def slow_bytes():
    with socket.create_connection(("127.0.0.1", PLAIN.port), timeout=10) as s:
        for b in request({"content": "hi"}, path="/tokenize"):
            s.sendall(bytes([b]))
        equal(answer(s.makefile("rb"))[0], 200)


@case(("x: " + "y" * 40000,), ("\r\n".join(f"x-{i}: y" for i in range(150)),))
def headers_too_large(lines):
    (status, _, _), = PLAIN.raw(f"GET /health HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n\r\n".encode())
    assert status in (400, 413, 431), status


@case(b"hello\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n")
def no_http(data):
    try:
        (status, _, _), = PLAIN.raw(data, timeout=5)
        assert 400 <= status < 600, status
    except (AssertionError, ConnectionError) as e:
        assert "closed" in str(e) or isinstance(e, ConnectionError), e
    equal(PLAIN.http.get("/health").status_code, 200)


# Clients that leave


def leave(body):
    with socket.create_connection(("127.0.0.1", PLAIN.port), timeout=10) as s:
        s.sendall(request(body))
        until(lambda: PLAIN.metric("running") >= 1, 5, "nothing runs")
    begin = time.monotonic()
    until(lambda: PLAIN.metric("running") == 0, 1, "still running 1 s after the client left")
    return time.monotonic() - begin


@case(*[(stream, n) for stream in (False, True) for n in (1, 4)])
def cancelled(stream, n):
    before = PLAIN.metric("cancelled_total")
    leave({"messages": FOX, "logit_bias": ENDLESS, "stream": stream, "n": n})
    until(lambda: PLAIN.metric("cancelled_total") > before, 1, "lapis_cancelled_total has not grown")
    assert text(chat(max_tokens=1)) is not None


@case()
def cancelled_by_sdk():
    stream = chat(FOX, logit_bias=ENDLESS, stream=True)
    next(iter(stream))
    stream.close()
    until(lambda: PLAIN.metric("running") == 0, 1, "still running 1 s after the client left")


@case()
def cancelled_many():
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        def ask(i):
            with socket.create_connection(("127.0.0.1", PLAIN.port), timeout=10) as s:
                s.sendall(request({"messages": FOX, "logit_bias": ENDLESS, "stream": bool(i % 2)}))
                time.sleep(0.05 + 0.02 * i)
        list(pool.map(ask, range(8)))
    until(lambda: PLAIN.metric("running") + PLAIN.metric("waiting") + PLAIN.metric("queue_length") == 0, 1, "still running")


@case()
def others_go_on():
    want = text(chat(FOX, seed=2, max_tokens=40, logit_bias=ENDLESS))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        later = pool.submit(lambda: text(chat(FOX, seed=2, max_tokens=40, logit_bias=ENDLESS)))
        with socket.create_connection(("127.0.0.1", PLAIN.port)) as s:
            s.sendall(request({"messages": FOX, "logit_bias": ENDLESS, "stream": True}))
            time.sleep(0.05)
        equal(later.result(), want)


@case(1, 2, 3)
def cancelled_at_once(_):
    # Gone before the first token.
    with socket.create_connection(("127.0.0.1", PLAIN.port)) as s:
        s.sendall(request({"messages": FOX, "logit_bias": ENDLESS, "n": 4}))
    until(lambda: PLAIN.metric("running") + PLAIN.metric("waiting") + PLAIN.metric("queue_length") == 0, 1, "still running")


@case()
def warm_as_cold():
    ask = dict(temperature=0, max_tokens=20, logprobs=True)
    one, two = (chat(FOX, extra_body={"cache_salt": "a fresh one"}, **ask) for _ in range(2))
    assert two.usage.prompt_tokens_details.cached_tokens > 0
    equal([e.logprob for e in two.choices[0].logprobs.content], [e.logprob for e in one.choices[0].logprobs.content])


# The end


def draining(stream):
    server = Server(PROGRAM)
    try:
        ask = {"messages": FOX, "max_tokens": 150, "logit_bias": ENDLESS, "stream": stream}
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as s:
            s.sendall(request(ask))
            until(lambda: server.metric("running") >= 1, 5, "nothing runs")
            server.http.close()
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.15)
            assert server.process.poll() is None, "the server ended before its request"
            try:
                socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
                raise AssertionError("the port is open while the server drains")
            except ConnectionRefusedError:
                pass
            file = s.makefile("rb")
            if stream:
                got = b""
                while b"[DONE]" not in got:
                    line = file.readline()
                    assert line, f"the stream ended without [DONE]: {got[-200:]}"
                    got += line
                assert b'"length"' in got
            else:
                status, _, got = answer(file)
                equal(status, 200)
                equal(json.loads(got)["usage"]["completion_tokens"], 150)
        equal(server.process.wait(10), 0, "exit code")
    finally:
        server.stop()


@case(True, False)
def drained(stream):
    draining(stream)


@case(("SIGTERM", 0), ("SIGINT", 0))
def idle_end(name, code):
    server = Server(PROGRAM)
    try:
        server.process.send_signal(getattr(signal, name))
        equal(server.process.wait(5), code)
    finally:
        server.stop()


@case(("SIGTERM", 143), ("SIGINT", 130))
def second_signal(name, code):
    server = Server(PROGRAM)
    try:
        with socket.create_connection(("127.0.0.1", server.port)) as s:
            s.sendall(request({"messages": FOX, "n": 4, "logit_bias": ENDLESS}))
            until(lambda: server.metric("running") >= 1, 5, "nothing runs")
            server.process.send_signal(getattr(signal, name))
            time.sleep(0.2)
            server.process.send_signal(getattr(signal, name))
            equal(server.process.wait(2), code)
    finally:
        server.stop()


@case()
def drain_runs_out():
    server = Server(PROGRAM, "--drain-timeout", "1")
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as s:
            s.sendall(request({"messages": FOX, "n": 16, "logit_bias": ENDLESS, "stream": True}))
            until(lambda: server.metric("running") >= 1, 5, "nothing runs")
            server.http.close()
            server.process.send_signal(signal.SIGTERM)
            got = s.makefile("rb").read()
        assert b'"error"' in got and b"[DONE]" not in got or got.count(b'"length"') == 16, got[-300:]
    finally:
        server.stop()


@case()
def supervised():
    """A server that is killed comes again at the same place; one that is asked to end does not."""
    port = socket.socket()
    port.bind(("127.0.0.1", 0))
    number = str(port.getsockname()[1])
    port.close()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LAPIS_")}
    parent = subprocess.Popen([PROGRAM, "serve", "--supervise", "--port", number], stderr=subprocess.DEVNULL, env=environment)
    try:
        children = lambda: [int(i) for i in pathlib.Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
        healthy = lambda: httpx.get(f"http://127.0.0.1:{number}/health").status_code == 200
        until(healthy, 10, "it does not start")
        (first,) = children()
        os.kill(first, signal.SIGKILL)
        until(lambda: children() not in ([], [first]) and healthy(), 10, "it is not started again")
        parent.send_signal(signal.SIGTERM)
        equal(parent.wait(10), 0)
        assert not pathlib.Path(f"/proc/{first}").exists()
    finally:
        if parent.poll() is None:
            parent.kill()


@case()
def nothing_left_over():
    until(lambda: PLAIN.metric("running") + PLAIN.metric("waiting") == 0, 2, "something runs still")
    equal(PLAIN.metric("faults_total"), 0, "lapis_faults_total")
    equal(PLAIN.metric("reserved_bytes"), 0, "lapis_reserved_bytes")
    until(lambda: PLAIN.metric("connections") <= 4, 5, f"{PLAIN.metric('connections')} connections are open")


def main():
    global PLAIN, KEYED, TOOLS, EMBEDDER, PROGRAM
    PROGRAM, wanted = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
    folder = pathlib.Path(tempfile.mkdtemp())
    failed = ran = 0
    try:
        (folder / "keys").write_text("first:first-key-123\nsecond:second-key\n")
        # The demo model with a template that knows tools.
        shutil.copytree(DEMO, folder / "tools")
        settings = json.loads((folder / "tools" / "tokenizer_config.json").read_text())
        (folder / "tools" / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
        PLAIN = Server(PROGRAM)
        KEYED = Server(PROGRAM, "--api-key-file", str(folder / "keys"), "--alias", "claude-*=default", "--alias", "claude-other=nope", key="first-key-123")
        TOOLS = Server(PROGRAM, "--model", str(folder / "tools"))
        # The last case looks at what the others left.
        last = CASES[-1]
        sdk_scores.add(sys.modules[__name__])
        EMBEDDER = sdk_embeddings.add(sys.modules[__name__], folder / "encoders")
        responses = [(name, lambda run=run: run(PLAIN, TOOLS)) for name, run in sdk_responses.CASES]
        for name, run in [*(c for c in CASES if c is not last), *responses, last]:
            if wanted not in name:
                continue
            ran += 1
            try:
                run()
            except Exception as e:
                failed += 1
                at = traceback.extract_tb(e.__traceback__)[:3][-1].lineno  # in the case itself
                shown = " ".join(f"{type(e).__name__}: {e}".split())
                print(f"FAIL {name}: {shown[:600]} (line {at})", flush=True)
    finally:
        for server in (PLAIN, KEYED, TOOLS, EMBEDDER):
            if server:
                server.stop()
        shutil.rmtree(folder)
    print(f"{ran} cases, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.modules["sdk"] = sys.modules["__main__"]  # the other files put their cases into this one's list
    import sdk_anthropic  # noqa: F401

    sys.exit(main())
