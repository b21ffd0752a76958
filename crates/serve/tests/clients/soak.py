#!/usr/bin/env python3
"""Thirty-two streams with random aborts, and long prompts between them: answers stay what they are alone, nothing leaks.

    python soak.py /path/to/lapis [--seconds 60] [--out FILE]

Needs Python alone. Prints what it measured, as JSON; exits with 1 if a line of it is not as it should be.
"""

import argparse
import asyncio
import json
import os
import pathlib
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

DEMO = pathlib.Path(__file__).resolve().parents[4] / "examples" / "demo-model" / "model"
STREAMS, LONG = 32, 4096
WORDS = "fox hare wood moon river tale song snow bread lamp stone wind king boat road night".split()
SCHEMA = {"type": "object", "properties": {"name": {"enum": ["Ada", "Bo"]}, "age": {"type": "integer", "minimum": 1, "maximum": 99}},
          "required": ["name", "age"], "additionalProperties": False}


def bodies():
    """Requests of every kind that shares a batch."""
    r = random.Random(7)
    for i in range(40):
        text = f"Tell me a story about a {r.choice(WORDS)} and a {r.choice(WORDS)}. " + " ".join(r.choices(WORDS, k=r.choice([0, 20, 90])))
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": r.choice([8, 60, 200]), "seed": i, "temperature": r.choice([0, 0.8, 1.2])}
        body |= r.choice([{}, {}, {"top_p": 0.9, "min_p": 0.02}, {"top_k": 20, "repetition_penalty": 1.1}, {"presence_penalty": 0.5, "frequency_penalty": 0.2},
                          {"stop": ["the ", "zzz"]}, {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}}])
        yield body


class Server:
    def __init__(self, program, folder):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LAPIS_")}
        model = ["--model", str(folder)] if folder else []
        self.process = subprocess.Popen([program, "serve", *model, "--port", "0", "--queue-size", "64", "--prompt-cache-bytes", "64MB", "--no-disk-cache"], stderr=subprocess.PIPE, text=True, env=environment)
        self.log = []
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                break
        # Nobody reads the log from here on: that must not matter.

    def wait(self):
        """Until it would answer."""
        while True:
            try:
                return self.get("/ready")
            except OSError:
                time.sleep(0.05)

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=20) as answer:
            return answer.read().decode()

    def metrics(self):
        return {m[1]: float(m[2]) for m in re.finditer(r"^lapis_(\w+) (\S+)$", self.get("/metrics"), re.M)}

    def usage(self):
        """Resident MiB, descriptors, threads."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        found = [int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmRSS", "Threads")]
        return found[0] / 1024, len(os.listdir(f"/proc/{self.process.pid}/fd")), found[1]


class Stream(asyncio.Protocol):
    """Notes what comes and when. It is read when it is over: what clients take of the processors that they share with the server would count as the server's delay."""

    def __init__(self, request, after):
        self.request, self.after = request, after
        self.over = asyncio.get_running_loop().create_future()
        self.noted, self.last, self.pieces = [], b"", 0

    def connection_made(self, transport):
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data):
        self.noted.append((time.monotonic(), data))
        seen = self.last + data  # what tells the end may come in two parts
        self.last = data[-16:]
        self.pieces += data.count(b"data: {")
        given_up = self.after is not None and self.pieces > self.after
        if given_up or b"[DONE]\n" in seen or b'{"error"' in seen or len(self.noted) == 1 and not data.startswith(b"HTTP/1.1 200 "):
            self.end()

    def connection_lost(self, _):
        self.end()

    def end(self):
        self.transport.close()
        if not self.over.done():
            self.over.set_result(None)


async def ask(port, body, after=None):
    """Streams an answer; closes the connection after so many pieces. Gives the text, how it ended, and when pieces came."""
    data = json.dumps({**body, "stream": True}).encode()
    path = b"/v1/completions" if "prompt" in body else b"/v1/chat/completions"
    head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (path, len(data))
    transport, stream = await asyncio.get_running_loop().create_connection(lambda: Stream(head + data, after), "127.0.0.1", port)
    try:
        await stream.over
    finally:
        transport.close()
    return told(stream.noted, after)


def told(noted, after):
    """The text of a stream that came in these parts, how it ended, and when each piece of it came."""
    status = noted[0][1].split(b" ", 2)[1] if noted else b"closed"
    if status != b"200":
        return None, status.decode(), []
    text, times, finish, rest = "", [], None, b""
    for when, data in noted:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"data: "):
                continue
            if line == b"data: [DONE]":
                return text, finish, times
            piece = json.loads(line[6:])
            if "error" in piece:
                return text, "error: " + piece["error"]["message"], times
            choice = piece["choices"][0]
            text += choice.get("text") or choice.get("delta", {}).get("content") or ""
            finish = choice["finish_reason"] or finish
            times.append(when)
            if after is not None and len(times) > after:
                return text, "aborted", times
    return text, "closed", times


async def soak(server, seconds):
    requests = list(bodies())
    alone = []
    for body in requests:
        text, finish, _ = await ask(server.port, body)
        assert finish in ("stop", "length"), finish
        alone.append((text, finish))
    counts = {"finished": 0, "aborted": 0, "refused": 0, "long prompts": 0}
    wrong, gaps, begin = [], [], time.monotonic()
    r = random.Random(1)

    async def client():
        while time.monotonic() < begin + seconds:
            i = r.randrange(len(requests))
            after = r.randrange(40) if r.random() < 0.3 else None
            text, finish, times = await ask(server.port, requests[i], after)
            gaps.extend(b - a for a, b in zip(times[2:], times[3:]))
            if finish == "429":
                counts["refused"] += 1
                await asyncio.sleep(0.5)
            elif finish == "aborted":
                counts["aborted"] += 1
                if not alone[i][0].startswith(text):
                    wrong.append((i, text))
            else:
                counts["finished"] += 1
                if (text, finish) != alone[i]:
                    wrong.append((i, text, finish, alone[i]))

    async def longs():
        while time.monotonic() < begin + seconds:
            words = " ".join(r.choices(WORDS, k=LONG))
            await ask(server.port, {"messages": [{"role": "user", "content": words}], "max_tokens": 4})
            counts["long prompts"] += 1
            await asyncio.sleep(1)

    use = []

    async def watch():
        while time.monotonic() < begin + seconds:
            use.append(server.usage())
            await asyncio.sleep(max(1, seconds / 60))

    await asyncio.gather(*(client() for _ in range(STREAMS)), longs(), watch())
    return counts, wrong, gaps, use


async def pace(server, seconds):
    """Times between the tokens of few streams: nothing else, and while long prompts arrive.

    Streams are of 400 tokens, one after the other: a stream of thousands is slower at its end than at its beginning
    whatever arrives beside it.
    """
    body = {"messages": [{"role": "user", "content": "Tell me a story"}], "max_tokens": 400, "logit_bias": {"2": -100}, "temperature": 1}

    async def gaps(prompts):
        begin, sent = time.monotonic(), 0
        tasks = [asyncio.create_task(timed(i)) for i in range(4)]
        await asyncio.sleep(0.5)
        while prompts and time.monotonic() < begin + seconds - 1:
            words = " ".join(random.choices(WORDS, k=LONG))
            await ask(server.port, {"messages": [{"role": "user", "content": words}], "max_tokens": 2})
            sent += 1
        times = [t for task in tasks for t in await task]
        return times, sent

    async def timed(i):
        end, found = time.monotonic() + seconds, []
        while time.monotonic() < end:
            _, finish, times = await ask(server.port, {**body, "seed": i})
            assert finish == "length", finish
            found += [b - a for a, b in zip(times[20:], times[21:])]
        return found

    (idle, _), (busy, sent) = await gaps(False), await gaps(True)
    return idle, busy, sent


def spread(values):
    """Median and 99th percentile, in milliseconds."""
    values = sorted(values)
    return {"n": len(values), "median_ms": round(statistics.median(values) * 1e3, 2), "p99_ms": round(values[int(len(values) * 0.99)] * 1e3, 2)}


def main():
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("program")
    flags.add_argument("--seconds", type=float, default=60)
    flags.add_argument("--out")
    flags = flags.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp())
    shutil.copytree(DEMO, folder / "model")
    config = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    server = Server(flags.program, folder / "model")
    try:
        server.wait()
        first = server.usage()
        idle, busy, sent = asyncio.run(pace(server, min(10, flags.seconds / 6)))
        counts, wrong, gaps, use = asyncio.run(soak(server, flags.seconds))
        end = time.monotonic() + 5
        while (m := server.metrics())["running"] + m["waiting"] + m["connections"] > 1 and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.5)
        m, last = server.metrics(), server.usage()
        steady = use[len(use) // 3 :] or use
        found = {
            "seconds": flags.seconds, **counts, "wrong answers": len(wrong),
            "tokens per second": round(m["output_tokens_total"] / flags.seconds),
            "between tokens, four streams alone": spread(idle), "between tokens, with prompts of 4096 tokens": {**spread(busy), "prompts": sent},
            "between tokens, in the soak": spread(gaps),
            "p99 to median": round(spread(busy)["p99_ms"] / spread(busy)["median_ms"], 2),
            "resident MiB": {"start": round(first[0]), "after a third": round(steady[0][0]), "most": round(max(u[0] for u in use)), "end": round(last[0])},
            "descriptors": {"start": first[1], "end": last[1]}, "threads": {"start": first[2], "end": last[2]},
            "left": {name: m[name] for name in ("running", "waiting", "reserved_bytes", "faults_total")},
        }
    finally:
        server.process.kill()
        server.process.wait()
        shutil.rmtree(folder)
    print(json.dumps(found, indent=1))
    if flags.out:
        pathlib.Path(flags.out).write_text(json.dumps(found, indent=1) + "\n")
    for each in wrong[:5]:
        print("WRONG", each)
    faults = [
        wrong, counts["finished"] < flags.seconds, any(found["left"].values()), last[1] > first[1] + 4,
        last[2] > steady[0][2] + 2, last[0] > 1.1 * steady[0][0] + 32,
    ]
    if any(faults):
        print("FAILED:", faults[1:])
    return 1 if any(faults) else 0


if __name__ == "__main__":
    sys.exit(main())
