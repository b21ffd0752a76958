"""Flags that change what a server does, each on a server of its own."""

import contextlib
import hashlib
import http.server
import json
import pathlib
import re
import shutil
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import warnings

import httpx

import suite
from messages import BETA, code
from suite import FOX, HI, Server, case, equal, until


def usage(server, turn):
    r = server.post("/v1/messages?beta=true", {**code(turn, FOX), "stream": False}, headers=BETA)
    equal(r.status_code, 200, r.text)
    return r.json()["usage"]


@case(False, True)
def billing_header(kept):
    """The block that is another one with every request is in the prompt only where it is asked for; leaving it out is logged once."""
    server = Server(suite.PROGRAM, *(["--keep-billing-header"] if kept else []))
    try:
        first, second = usage(server, 1), usage(server, 20077)
        equal(second["cache_read_input_tokens"] > 0.9 * sum(first[k] for k in ("input_tokens", "cache_read_input_tokens")), not kept, second)
        said = [line for line in server.lines if "x-anthropic-billing-header" in line]
        until(lambda: len([line for line in server.lines if "/v1/messages" in line]) >= 2, 5, "no line of the log")
        equal(len(said), int(not kept), said)
    finally:
        server.stop()


@case()
def deterministic():
    """One fingerprint for the same program, model and settings; another one for others."""
    found = []
    for more in ([], [], ["--kv-bits", "8", "--kv-group-size", "32"]):
        server = Server(suite.PROGRAM, "--deterministic", *more)
        try:
            reply = server.client.chat.completions.create(model="default", messages=HI, max_tokens=1)
            until(lambda: any(reply.system_fingerprint in line for line in server.lines), 5, f"{reply.system_fingerprint} is not printed: {server.lines}")
            found.append(reply.system_fingerprint)
        finally:
            server.stop()
    assert found[0] == found[1] != found[2], found


@case((), ("--max-context", "100"))
def banner(*flags):
    server = Server(suite.PROGRAM, *flags)
    try:
        until(lambda: any(line.startswith("model ") for line in server.lines), 5, f"{server.lines}")
        [line] = [line for line in server.lines if line.startswith("model ")]
        context = flags[-1] if flags else server.http.get("/v1/models").json()["data"][0]["context_length"]
        assert re.match(rf"model lapis-demo · 8bit · context {context} · weights [0-9.]+ MiB · memory [0-9.]+ GiB · keys none", line), line
    finally:
        server.stop()


@case("ec -pkeyopt ec_paramgen_curve:P-256", "rsa:2048")
def tls(kind):
    """The official client over TLS, by name and by address; without TLS one is told; streams end as they do; other versions and wrong files are refused."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
        names = ["-subj", "/CN=lapis", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
        subprocess.run(["openssl", "req", "-x509", "-nodes", "-days", "2", "-newkey", *kind.split(), "-keyout", key, "-out", cert, *names], check=True, capture_output=True)
        server = Server(suite.PROGRAM, "--tls-cert", cert, "--tls-key", key, trust=cert)
        try:
            equal(server.url, f"https://127.0.0.1:{server.port}")
            until(lambda: any(f"curl {server.url}/v1/chat" in line for line in server.lines), 5, f"{server.lines}")
            whole = server.client.chat.completions.create(model="default", messages=FOX, max_tokens=30, temperature=0)
            stream = server.client.chat.completions.create(model="default", messages=FOX, max_tokens=30, temperature=0, stream=True)
            equal("".join(part.choices[0].delta.content or "" for part in stream), whole.choices[0].message.content)
            context = ssl.create_default_context(cafile=cert)
            page = httpx.get(f"https://localhost:{server.port}/", verify=context, headers={"origin": f"https://localhost:{server.port}"})
            equal(page.status_code, 200)
            # The client that leaves is no longer computed for.
            stream = server.client.chat.completions.create(model="default", messages=FOX, max_tokens=400, logit_bias=suite.ENDLESS, stream=True)
            next(iter(stream))
            stream.close()
            until(lambda: server.metric("running") == 0, 5, "it runs on")
            r = httpx.get(f"http://127.0.0.1:{server.port}/v1/models")
            equal((r.status_code, r.json()["error"]["code"]), (400, "tls_required"))
            # An alert; or, where clients no longer speak that version either, none to choose.
            for verify, words in ((True, "CERTIFICATE"), (old(context), "alert|NO_PROTOCOLS")):
                try:
                    httpx.get(server.url + "/health", verify=verify)
                    raise AssertionError("there was an answer")
                except httpx.ConnectError as e:
                    assert re.search(words, str(e)), e
            # One who says nothing holds a place for ten seconds and nobody up.
            with socket.create_connection(("127.0.0.1", server.port)):
                equal(server.http.get("/health").status_code, 200)
        finally:
            server.stop()
        for flags, words in ((["--tls-cert", cert], "--tls-key"), (["--tls-cert", key, "--tls-key", key], "no certificate in it"), (["--tls-cert", cert, "--tls-key", "/nowhere"], "/nowhere: No such file")):
            done = subprocess.run([suite.PROGRAM, "serve", "--port", "0", *flags], capture_output=True, text=True, timeout=10)
            assert done.returncode != 0 and words in done.stderr, done.stderr


def old(context):
    """A client of a version that is no longer taken."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    return context


@case(("--memory-limit", "2GiB"), ("LAPIS_MEMORY_LIMIT", "2GiB"))
def memory_limit(name, value):
    flags, environment = ([name, value], {}) if name.startswith("--") else ([], {name: value})
    server = Server(suite.PROGRAM, *flags, environment=environment)
    try:
        until(lambda: any("memory 2.0 GiB" in line for line in server.lines), 5, f"{server.lines}")
        equal(server.metric("memory_limit_bytes"), 2.0 * 2**30)
    finally:
        server.stop()


@case("--load-wait", "--model-ttl", "--drain-timeout", "--request-timeout")
def times_beyond_counting(flag):
    done = subprocess.run([suite.PROGRAM, "serve", "--port", "0", flag, str(2**64 - 1)], capture_output=True, text=True, timeout=10)
    equal(done.returncode, 2, done.stderr)
    assert flag in done.stderr and "31536000" in done.stderr, done.stderr


@case(("--api-key", "a:b", ["a:b"], ["b"]), ("LAPIS_API_KEY", "a:first-1\nb:second-2", ["first-1", "second-2"], ["a:first-1"]))
def keys_as_they_are(name, value, right, wrong):
    flags, environment = ([name, value], {}) if name.startswith("--") else ([], {name: value})
    server = Server(suite.PROGRAM, *flags, key=right[0], environment=environment)
    try:
        for keys, status in ((right, 200), (wrong, 401)):
            equal([httpx.get(server.url + "/v1/models", headers={"x-api-key": k}).status_code for k in keys], [status] * len(keys))
    finally:
        server.stop()


@case(*[(level, stream) for level in ("INFO", "ERROR") for stream in (False, True)])
def faults_are_in_the_log(level, stream):
    """Whatever the level: the answer gives the number only, and the log has the rest."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(suite.DEMO, pathlib.Path(folder) / "model")
        weights = pathlib.Path(folder) / "model" / "model.safetensors"
        data = weights.read_bytes()
        head = 8 + struct.unpack("<Q", data[:8])[0]
        weights.write_bytes(data[:head] + b"\xff" * (len(data) - head))  # no numbers
        server = Server(suite.PROGRAM, "--model", folder + "/model", "--log-level", level)
        try:
            r = server.post("/v1/chat/completions", {"messages": HI, "max_tokens": 2, "stream": stream})
            name = r.headers["x-request-id"]
            assert r.status_code == (200 if stream else 500) and f"more under {name}" in r.text and "numbers" not in r.text, r.text
            until(lambda: any(name in line and "not all numbers" in line for line in server.lines), 5, f"nothing of {name}: {server.lines}")
        finally:
            server.stop()


@case()
def warnings_of_a_model():
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(suite.DEMO, pathlib.Path(folder) / "model")
        (pathlib.Path(folder) / "model" / "generation_config.json").write_text("{broken")
        server = Server(suite.PROGRAM, "--model", folder + "/model")
        try:
            until(lambda: any("generation_config.json" in line and "ignored" in line for line in server.lines), 5, f"no warning: {server.lines}")
        finally:
            server.stop()


@case()
def key_limit():
    server = Server(suite.PROGRAM, "--api-key", "one-key-123", "--max-per-key", "1", key="one-key-123")
    try:
        stream = server.client.chat.completions.create(model="default", messages=FOX, max_tokens=1000, logit_bias=suite.ENDLESS, stream=True)
        next(iter(stream))
        r = server.post("/v1/chat/completions", {"messages": HI, "max_tokens": 1})
        equal(r.status_code, 429, r.text)
        stream.close()
    finally:
        server.stop()


@case()
def exact_prompts_are_not_the_fast_path_s():
    """What was read by exact arithmetic is not found on disk by the other."""
    words = "the fox and the hare went home " * 60
    with tempfile.TemporaryDirectory() as cache:
        cached = []
        for exact in ("1", "", "1"):
            server = Server(suite.PROGRAM, "--disk-cache", cache, environment={"LAPIS_EXACT": exact})
            try:
                r = server.post("/v1/completions", {"prompt": words, "max_tokens": 1})
                cached.append(r.json()["usage"]["prompt_tokens_details"]["cached_tokens"])
                until(lambda: any(pathlib.Path(cache).rglob("*")), 5, "nothing is written")
                server.process.terminate()
                server.process.wait(20)
            finally:
                server.stop()
        assert cached[0] == cached[1] == 0 < cached[2], cached


@case()
def keep_alive():
    """A model goes when its request says so, and stays while nobody does."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("short", "long"):
            shutil.copytree(suite.DEMO, pathlib.Path(folder) / name)
        server = Server(suite.PROGRAM, "--models-dir", folder)
        try:
            for name, more in (("long", {"keep_alive": "5m"}), ("short", {"ttl": 0})):
                r = server.post("/v1/chat/completions", {"model": name, "messages": HI, "max_tokens": 1, **more})
                equal(r.status_code, 200, r.text)
            loaded = lambda: {m["id"] for m in server.http.get("/v1/models").json()["data"] if m["loaded"]}
            until(lambda: loaded() == {"lapis-demo", "long"}, 12, f"{loaded()} are loaded")
        finally:
            server.stop()


@case(({"ttl": -2}, "ttl"), ({"ttl": "5"}, "ttl"), ({"keep_alive": "5x"}, "keep_alive"), ({"keep_alive": []}, "keep_alive"), ({"keep_alive": "m"}, "keep_alive"))
def keep_alive_wrong(more, param):
    suite.error(suite.PLAIN.post("/v1/chat/completions", {"messages": HI, "max_tokens": 1, **more}), 400, param, "invalid_request_error")


@case(*[({name: value},) for name in ("ttl", "keep_alive") for value in (-1, 0, 1, 2**31, 2**63 - 1)], ({"keep_alive": 1e308},), ({"keep_alive": "-1"},), ({"keep_alive": "10ms"},))
def keep_alive_taken(more):
    equal(suite.PLAIN.post("/v1/chat/completions", {"messages": HI, "max_tokens": 1, **more}).status_code, 200)
    suite.PLAIN.post("/v1/chat/completions", {"messages": HI, "max_tokens": 1, "ttl": -1})


@case()
def loading_takes_too_long():
    """Who asks for a model that is being loaded hears how far it is."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(suite.DEMO, pathlib.Path(folder) / "other")
        server = Server(suite.PROGRAM, "--models-dir", folder, "--load-wait", "0")
        try:
            r = server.post("/v1/chat/completions", {"model": "other", "messages": HI, "max_tokens": 1})
            suite.error(r, 503, kind="overloaded_error", holds="being loaded")
            assert int(r.headers["retry-after"]) >= 1
            until(lambda: server.post("/v1/chat/completions", {"model": "other", "messages": HI, "max_tokens": 1}).status_code == 200, 10, "it is never loaded")
        finally:
            server.stop()


@contextlib.contextmanager
def hub():
    """A hub that has the demo model as some/model; gives its address and what was asked for."""
    files = {f.name: f.read_bytes() for f in suite.DEMO.iterdir() if f.is_file()}
    asked = []

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path.startswith("/api/models/some/model/revision/"):
                listed = [{"rfilename": n, "size": len(b), "lfs": {"sha256": hashlib.sha256(b).hexdigest(), "size": len(b)}} for n, b in files.items()]
                body = json.dumps({"sha": "a" * 40, "siblings": listed}).encode()
            elif self.path.startswith("/some/model/resolve/"):
                body = files[self.path.rpartition("/")[2]]
            else:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


@case(True, False)
def pulled_only_where_allowed(allowed):
    with tempfile.TemporaryDirectory() as cache, hub() as (address, asked):
        environment = {"HF_ENDPOINT": address, "HF_HUB_CACHE": cache, "HF_HUB_OFFLINE": "0"}
        server = Server(suite.PROGRAM, *(["--allow-pull"] if allowed else []), environment=environment)
        try:
            ask = lambda name: server.post("/v1/chat/completions", {"model": name, "messages": HI, "max_tokens": 1})
            r = ask("some/model")
            equal(r.status_code, 200 if allowed else 404, r.text)
            equal(bool(asked), allowed)
            if allowed:
                assert "some/model" in [m["id"] for m in server.http.get("/v1/models").json()["data"]]
                suite.error(ask("no/model"), 503, holds="no/model")
            else:
                suite.error(r, 404, "model")
            suite.error(ask("nothing"), 404, "model")
        finally:
            server.stop()
