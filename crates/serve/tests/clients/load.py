#!/usr/bin/env python3
"""What the server costs beside its engine, how long short requests wait beside long ones, how soon a cancelled one is gone.

    python load.py /path/to/lapis [--model DIR] [--clients 8] [--prompt 128] [--tokens 128] [--long 4096] [--trials 5]

Needs Python alone. Prints what it measured, as JSON; nothing is judged: figures depend on the machine.
"""

import argparse
import asyncio
import json
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import time

from soak import DEMO, WORDS, Server, ask, spread


def benchmark(flags):
    """Tokens per second of the engine alone, with as many rows."""
    command = [flags.program, "benchmark", "--prompt-tokens", str(flags.prompt), "--generation-tokens", str(flags.tokens), "--batch-size", str(flags.clients), "--num-trials", "3"]
    out = subprocess.run([*command, "--model", flags.model], capture_output=True, text=True, check=True)
    return float(re.search(r"Averages:.*?generation_tps=([\d.]+)", out.stdout + out.stderr)[1])


def body(flags, **more):
    text = " ".join(random.choices(WORDS, k=more.pop("words", flags.prompt)))
    return {"prompt": text, "max_tokens": flags.tokens, "temperature": 0, "logit_bias": flags.ends, **more}


def ends(model):
    """The tokens that end replies."""
    found = []
    for name in ("config.json", "generation_config.json"):
        path = pathlib.Path(model) / name
        if path.exists():
            ids = json.loads(path.read_text()).get("eos_token_id") or []
            found += ids if isinstance(ids, list) else [ids]
    return found


async def throughput(server, flags):
    """Tokens per second of all clients together, while all of them write, and the share of that time in the engine's steps."""
    rates = []
    for _ in range(flags.trials):
        streams = asyncio.gather(*(ask(server.port, body(flags)) for _ in range(flags.clients)))
        seen, before = [], server.metrics()["output_tokens_total"]
        while not streams.done():
            m = await asyncio.to_thread(server.metrics)
            # From when the last prompt was read on: all have written a token.
            if m["running"] == flags.clients and m["output_tokens_total"] - before > 2 * flags.clients:
                seen.append((time.monotonic(), m["output_tokens_total"], m["step_seconds_sum"]))
            await asyncio.sleep(0.25)
        assert all(status in ("length", "stop") for _, status, _ in await streams), streams
        seen = seen[len(seen) // 4 :]
        lasted, tokens, stepped = (last - first for first, last in zip(seen[0], seen[-1]))
        rates.append((tokens / lasted, stepped / lasted))
    return [statistics.median(column) for column in zip(*rates)]


FIELDS = {
    "plain": {}, "seed": {"seed": 1, "temperature": 1}, "logprobs": {"logprobs": 5}, "penalties": {"repetition_penalty": 1.2, "presence_penalty": 0.5},
    "json": {"response_format": {"type": "json_object"}}, "top_p": {"temperature": 1, "top_p": 0.9, "top_k": 40}, "stop": {"stop": ["zzzz"]}, "xtc": {"temperature": 1, "xtc_probability": 0.5, "xtc_threshold": 0.1},
}


async def waits(server, flags):
    """Seconds of a request of eight tokens: alone, and beside one that reads a long prompt and writes."""
    found = {}
    for name, fields in FIELDS.items():
        small = lambda: body(flags, words=8, **{"max_tokens": 8, **fields})
        await ask(server.port, small())
        idle, busy = [], []
        # In turns: the machine's speed changes from minute to minute.
        for _ in range(flags.trials):
            begin = time.monotonic()
            await ask(server.port, small())
            idle.append(time.monotonic() - begin)
            long = asyncio.create_task(ask(server.port, body(flags, words=flags.long, max_tokens=64), 16))
            await asyncio.sleep(0.1)
            begin = time.monotonic()
            await ask(server.port, small())
            busy.append(time.monotonic() - begin)
            await long
        a, b = statistics.median(idle), statistics.median(busy)
        found[name] = {"alone_ms": round(a * 1e3, 1), "beside_ms": round(b * 1e3, 1), "ratio": round(b / a, 2)}
    return found


async def cancels(server, flags):
    """Seconds from the close of a connection to the free slot."""
    found = []
    for _ in range(30):
        await ask(server.port, body(flags), random.randrange(1, 12))
        begin = time.monotonic()
        while server.metrics()["running"] > 0:
            await asyncio.sleep(0.001)
        found.append(time.monotonic() - begin)
    return found


def main():
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("program")
    flags.add_argument("--model", default=str(DEMO))
    for name, value in (("clients", 8), ("prompt", 128), ("tokens", 128), ("long", 4096), ("trials", 5)):
        flags.add_argument("--" + name, type=int, default=value)
    flags = flags.parse_args()
    engine = benchmark(flags)
    server = Server(flags.program, flags.model)
    try:
        server.wait()
        flags.ends = {str(i): -100 for i in ends(flags.model)}  # no reply ends early
        rate, stepped = asyncio.run(throughput(server, flags))
        print(f"engine {engine:.1f}, served {rate:.1f} tokens per second", file=sys.stderr, flush=True)
        waited = asyncio.run(waits(server, flags))
        cancelled = asyncio.run(cancels(server, flags))
    finally:
        server.process.kill()
        server.process.wait()
    print(json.dumps({
        "cores": os.cpu_count(), "engine_tokens_per_second": round(engine, 1), "served_tokens_per_second": round(rate, 1), "ratio": round(rate / engine, 3),
        "share of the time in steps": round(stepped, 3),
        "eight tokens": waited, "cancel": spread(cancelled),
    }, indent=1))


if __name__ == "__main__":
    main()
