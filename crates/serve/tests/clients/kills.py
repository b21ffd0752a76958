#!/usr/bin/env python3
"""A server with a disk cache, killed again and again while it writes: what it says after a restart stays what it says without a cache.

    python kills.py /path/to/lapis [--trials 200] [--seed 1]

Needs Python alone. Prints what it measured, as JSON; exits with 1 if a line of it is not as it should be.
"""

import argparse
import concurrent.futures
import http.client
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

DEMO = pathlib.Path(__file__).resolve().parents[4] / "examples" / "demo-model" / "model"
WORDS = "fox hare wood moon river tale song snow bread lamp stone wind king boat road night".split()
CLIENTS = 4


def prompts(r):
    """Prompts of 300 to 1500 tokens, some of which begin alike or go on from others."""
    found = []
    for _ in range(6):
        stem = " ".join(r.choices(WORDS, k=r.randrange(250, 900)))
        found += [stem + " " + " ".join(r.choices(WORDS, k=r.randrange(40, 400))) for _ in range(2)]
        found.append(found[-1] + " " + " ".join(r.choices(WORDS, k=100)))
    return found


class Server:
    def __init__(self, program, folder, *flags):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LAPIS_")}
        command = [program, "serve", "--model", str(folder / "model"), "--port", "0", "--log-level", "ERROR", *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        for line in self.process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                break
        while self.get("/ready")[0] != 200:
            time.sleep(0.005)

    def get(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def metrics(self):
        return {m[1]: float(m[2]) for m in re.finditer(r"^lapis_(\w+) (\S+)$", self.get("/metrics")[1], re.M)}

    def ask(self, prompt, connection=None):
        """The text, how it ended, tokens of the prompt, and how many of them were known."""
        connection = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = {"prompt": prompt, "max_tokens": 6, "temperature": 0, "logprobs": 1}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        choice, usage = answer["choices"][0], answer["usage"]
        # Log-probabilities, too: the same text might come of other numbers.
        said = (choice["text"], choice["finish_reason"], json.dumps(choice["logprobs"]))
        return said, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()


def damage(r, cache):
    """Changes a file as no program would."""
    files = sorted(cache.glob("*/*.kv"))
    if not files:
        return 0
    file = r.choice(files)
    data = bytearray(file.read_bytes())
    if r.random() < 0.3:
        del data[r.randrange(len(data)) :]
    else:
        data[r.randrange(len(data))] ^= 1 << r.randrange(8)
    file.write_bytes(data)
    return 1


def trial(server, r, seconds, texts, want, counts, wrong):
    """Clients that ask until the server is gone."""
    over = threading.Event()

    def client(seed):
        own = random.Random(seed)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        while not over.is_set():
            i = own.randrange(len(texts))
            try:
                said, _, cached = server.ask(texts[i], connection)
            except (OSError, http.client.HTTPException, ValueError):
                return
            counts["answers"] += 1
            counts["cached"] += cached > 0
            if said != want[i]:
                wrong.append((i, cached, said, want[i]))

    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(client, r.random()) for _ in range(CLIENTS)]
        time.sleep(r.random() * seconds)
        try:
            m = server.metrics()
            counts["written"] += m["prefix_disk_written_total"]
            counts["trials with hits"] += m["prefix_disk_hits_total"] > 0
            counts["found damaged"] += m["prefix_disk_damaged_total"]
        finally:
            over.set()
            server.kill()
        for each in clients:
            each.result()


def main():
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("program")
    flags.add_argument("--trials", type=int, default=200)
    flags.add_argument("--seed", type=int, default=1)
    flags = flags.parse_args()
    r = random.Random(flags.seed)
    folder = pathlib.Path(tempfile.mkdtemp())
    shutil.copytree(DEMO, folder / "model")
    config = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    cache, texts = folder / "cache", prompts(r)
    counts = {"answers": 0, "cached": 0, "written": 0, "trials with hits": 0, "damaged on purpose": 0, "found damaged": 0, "left by kills": 0}
    wrong, begin = [], time.monotonic()
    try:
        server = Server(flags.program, folder, "--no-disk-cache", "--prompt-cache-bytes", "1")
        start = time.monotonic()
        alone = [server.ask(text) for text in texts]
        # So long that a few prompts are read, and written.
        seconds = 3 * (time.monotonic() - start) / len(texts)
        server.kill()
        want = [said for said, _, _ in alone]
        assert not any(cached for _, _, cached in alone), "the server without a cache knew something"
        for n in range(flags.trials):
            # Now and then little room, so that files go, too.
            size = "6MB" if n % 3 == 0 else "1GB"
            server = Server(flags.program, folder, "--disk-cache", str(cache), "--disk-cache-size", size)
            trial(server, r, seconds, texts, want, counts, wrong)
            counts["left by kills"] += len(list(cache.glob("*/.new-*")))
            if n % 8 == 7:
                counts["damaged on purpose"] += damage(r, cache)
        # Once more, in peace.
        server = Server(flags.program, folder, "--disk-cache", str(cache), "--disk-cache-size", "1GB")
        known = 0
        for text, expected in zip(texts, want):
            said, _, cached = server.ask(text)
            known += cached > 0
            if said != expected:
                wrong.append((text, cached, said, expected))
        server.process.terminate()
        server.process.wait()
        left = [str(f) for f in cache.glob("**/*") if f.is_file() and f.suffix != ".kv"]
        found = {
            "trials": flags.trials, "seconds": round(time.monotonic() - begin, 1), "prompts": len(texts),
            "tokens": [min(n for _, n, _ in alone), max(n for _, n, _ in alone)], **counts, "known in the end": known, "seconds before a kill, at most": round(seconds, 2),
            "wrong answers": len(wrong), "left in the end": left, "files": len(list(cache.glob("*/*.kv"))),
        }
    finally:
        server.kill()
        shutil.rmtree(folder)
    print(json.dumps(found, indent=1))
    for each in wrong[:3]:
        print("WRONG", each)
    faults = [
        wrong, left, known == 0, counts["trials with hits"] < flags.trials / 10,
        # Whatever a kill leaves behind is never taken for a file.
        counts["found damaged"] > counts["damaged on purpose"],
    ]
    if any(faults):
        print("FAILED:", [bool(f) for f in faults])
    return 1 if any(faults) else 0


if __name__ == "__main__":
    sys.exit(main())
