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
import statistics
import subprocess
import sys
import time
import urllib.request

from soak import DEMO, WORDS, Server, ask, spread


def benchmark(flags):
    """Tokens per second of the engine alone with as many rows: in decode, and with the reading of the prompts."""
    command = [flags.program, "benchmark", "--prompt-tokens", str(flags.read), "--generation-tokens", str(flags.tokens), "--batch-size", str(flags.clients), "--num-trials", "1", "--json"]
    out = subprocess.run([*command, "--model", flags.model], capture_output=True, text=True, check=True)
    found = json.loads(out.stdout)
    return found["generation_tps"], flags.clients * flags.tokens / found["total_time"]


def body(flags, **more):
    text = " ".join(random.choices(WORDS, k=more.pop("words", flags.prompt)))
    return {"prompt": text, "max_tokens": flags.tokens, "temperature": 0, "logit_bias": flags.ends, **more}


def tokens(server, text):
    """How many tokens a text has."""
    data = json.dumps({"content": text}).encode()
    ask = urllib.request.Request(f"http://127.0.0.1:{server.port}/tokenize", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(ask, timeout=20) as answer:
        return len(json.load(answer)["tokens"])


def ends(model):
    """The tokens that end replies."""
    found = []
    for name in ("config.json", "generation_config.json"):
        path = pathlib.Path(model) / name
        if path.exists():
            ids = json.loads(path.read_text()).get("eos_token_id") or []
            found += ids if isinstance(ids, list) else [ids]
    return found


async def writing(server, flags, **fields):
    """While all clients write and no prompt is read: tokens per second, milliseconds of a step, shares of the time in steps, and of the processors that the clients take; tokens per second from the first
    request to the last token."""
    started, told = time.monotonic(), server.metrics()["output_tokens_total"]
    streams = asyncio.gather(*(ask(server.port, body(flags, **fields)) for _ in range(flags.clients)))
    seen = []
    while not streams.done():
        m = await asyncio.to_thread(server.metrics)
        seen.append((time.monotonic(), time.process_time(), *(m[n] for n in ("rows_total", "decode_steps_total", "output_tokens_total", "step_seconds_sum"))))
        await asyncio.sleep(0.3)
    assert all(status in ("length", "stop") for _, status, _ in await streams), streams
    ended = max(times[-1] for _, _, times in streams.result())
    whole = (server.metrics()["output_tokens_total"] - told) / (ended - started)
    # Steps between two looks that had a row of each client and no other, one look after the other.
    runs, begin = [(0, 0)], 0
    for i, ((_, _, rows, steps, _, _), (_, _, later, more, _, _)) in enumerate(zip(seen, seen[1:])):
        if steps == more or later - rows != flags.clients * (more - steps):
            begin = i + 1
        runs.append((i + 1 - begin, begin))
    length, begin = max(runs)
    assert length, "not all clients wrote at once: more --tokens"
    lasted, used, _, steps, tokens, stepped = (last - first for first, last in zip(seen[begin], seen[begin + length]))
    return tokens / lasted, stepped / steps * 1e3, stepped / lasted, used / lasted / os.cpu_count(), whole


async def throughput(server, flags, kinds):
    """Each kind of request beside the engine alone, in turns: the machine's speed changes from minute to minute."""
    engine, served = [benchmark(flags)], {kind: [] for kind in kinds}
    for _ in range(flags.trials):
        for kind, fields in kinds.items():
            served[kind].append(await writing(server, flags, **fields))
            engine.append(await asyncio.to_thread(benchmark, flags))
    found = {}
    for at, kind in enumerate(kinds):
        own = list(zip(engine[at :: len(kinds)], engine[at + 1 :: len(kinds)]))
        alone, read = ([(a[i] + b[i]) / 2 for a, b in own] for i in (0, 1))
        rate, step, share, clients, whole = (statistics.median(column) for column in zip(*served[kind]))
        ratios = [all[0] / a for all, a in zip(served[kind], alone)]
        found[kind] = {
            "tokens_per_second": round(rate, 1), "engine_tokens_per_second": round(statistics.median(alone), 1), "ratio": round(statistics.median(ratios), 3), "ratios": [round(r, 2) for r in ratios],
            "step_ms": round(step, 2), "share of the time in steps": round(share, 3), "share of the processors that clients take": round(clients, 3),
            "with reading": {"tokens_per_second": round(whole, 1), "engine_tokens_per_second": round(statistics.median(read), 1)},
        }
        print(kind, found[kind], file=sys.stderr, flush=True)
    return found


# Replies that are still under their grammar after thousands of tokens.
LIST = {"response_format": {"type": "json_schema", "json_schema": {"name": "list", "schema": {"type": "array", "items": {"type": "integer"}, "minItems": 5000}}}}
# `greedy` may end early, if the model ends a reply by itself; `ends` may not, as all others, by a bias against the tokens that do.
KINDS = {
    "greedy": {"logit_bias": {}}, "ends": {}, "seed": {"seed": 1, "temperature": 1}, "top_p": {"temperature": 1, "top_p": 0.9, "top_k": 40}, "logprobs": {"logprobs": 5},
    "penalties": {"repetition_penalty": 1.2, "presence_penalty": 0.5}, "grammar": {"temperature": 1, **LIST},
}
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
    flags.add_argument("--only", choices=["throughput", "waits", "cancel"], help="one of the three measurements")
    flags.add_argument("--kinds", default=",".join(KINDS), help="requests whose throughput is measured")
    flags = flags.parse_args()
    server = Server(flags.program, flags.model)
    found = {"cores": os.cpu_count()}
    try:
        server.wait()
        flags.ends = {str(i): -100 for i in ends(flags.model)}  # no reply ends early
        flags.read = tokens(server, body(flags)["prompt"])
        kinds = {name: KINDS[name] for name in flags.kinds.split(",")}
        for name, measure in (
            ("throughput", lambda: asyncio.run(throughput(server, flags, kinds))),
            ("eight tokens", lambda: asyncio.run(waits(server, flags))),
            ("cancel", lambda: spread(asyncio.run(cancels(server, flags)))),
        ):
            if flags.only in (None, name) or (flags.only, name) == ("waits", "eight tokens"):
                found[name] = measure()
    finally:
        server.process.kill()
        server.process.wait()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
