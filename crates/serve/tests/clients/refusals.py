"""What is refused: every row of the table of statuses, in the form of each interface, and soon.

Speed is no verdict of a test; but an answer that refuses takes some milliseconds, so the median of some tries beyond
fifty says that something is wrong, not slow. All medians are told at the end.
"""

import contextlib
import json
import pathlib
import shutil
import signal
import socket
import statistics
import tempfile
import time

import suite
from suite import ENDLESS, FOX, HI, JSON, answer, case, equal, request, until

TRIES = 9
SOON = 0.05
OPENAI, ANTHROPIC, OLLAMA = "/v1/chat/completions", "/v1/messages", "/api/show"
FORMS = {OPENAI: "openai", "/v1/completions": "openai", "/v1/responses": "openai", "/v1/embeddings": "openai", "/tokenize": "openai",
         ANTHROPIC: "anthropic", "/v1/messages/count_tokens": "anthropic", OLLAMA: "ollama"}
# The two names of a status: OpenAI's and Anthropic's.
KINDS = {400: ("invalid_request_error",) * 2, 401: ("authentication_error",) * 2, 403: ("permission_error",) * 2, 404: ("not_found_error",) * 2,
         405: ("not_found_error",) * 2, 415: ("not_found_error",) * 2, 408: ("invalid_request_error",) * 2, 413: ("invalid_request_error", "request_too_large"),
         409: ("conflict_error", "invalid_request_error"), 429: ("rate_limit_error",) * 2, 503: ("overloaded_error",) * 2}


def form(path, status, headers, body):
    """Checks the error object of an answer; gives its text."""
    equal(headers["content-type"].split(";")[0], "application/json")
    assert headers.get("x-request-id"), headers
    value = json.loads(body)
    kind = FORMS.get(path, "openai")
    if kind == "ollama":
        equal((list(value), type(value["error"])), (["error"], str))
        return value["error"]
    if kind == "anthropic":
        equal((set(value), value["type"], set(value["error"])), ({"type", "error", "request_id"}, "error", {"type", "message"}))
        equal(value["request_id"], headers["x-request-id"])
    else:
        equal((set(value), set(value["error"])), ({"error"}, {"message", "type", "param", "code"}))
    equal(value["error"]["type"], KINDS[status][kind == "anthropic"])
    return value["error"]["message"]


def soon(what, status, path, data, server=None, holds="", tries=TRIES):
    """Sends the same bytes again and again, each on a connection of its own; then a request that is right."""
    server, times = server or suite.PLAIN, []
    for _ in range(tries):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as s:
            begin = time.monotonic()
            s.sendall(data)
            got, headers, body = answer(s.makefile("rb"))
            times.append(time.monotonic() - begin)
        equal(got, status, body)
        message = form(path, status, headers, body)
        assert len(message) > 8 and holds in message, message
        if status in (429, 503):
            assert int(headers["retry-after"]) >= 1, headers
    suite.told(f"{status} {what} {path}", times)
    assert statistics.median(times) < SOON, f"{what}: {times}"


def post(path, body, *headers, host="localhost", kind="application/json"):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


RIGHT = {OPENAI: {"messages": HI, "max_tokens": 1}, "/v1/completions": {"prompt": "a", "max_tokens": 1}, "/v1/responses": {"input": "a", "max_output_tokens": 1},
         "/v1/embeddings": {"input": "a"}, "/tokenize": {"content": "a"}, ANTHROPIC: {"messages": HI, "max_tokens": 1}, "/v1/messages/count_tokens": {"messages": HI}, OLLAMA: {"model": "lapis-demo"}}
WRITING = [OPENAI, "/v1/completions", "/v1/responses", ANTHROPIC]
LONG = "word " * 3000


@case(*[(path, name) for path in FORMS for name in ("no JSON", "no object", "trailing text", "not UTF-8", "too deep", "nothing", "half a number", "NaN", "two objects")])
def refused_400_body(path, name):
    data = {"no JSON": b"{'a': 1}", "no object": b"[5]", "trailing text": b"{} x", "not UTF-8": b'{"messages": "\xff\xfe"}', "too deep": b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}",
            "nothing": b"", "half a number": b'{"n": 1.}', "NaN": b'{"temperature": NaN}', "two objects": b"{}{}"}[name]
    soon(name, 400, path, post(path, data))


@case((OPENAI, {"temperature": -1}), ("/v1/completions", {"top_p": 1.5}), ("/v1/responses", {"max_output_tokens": 0}), ("/v1/embeddings", {"dimensions": -1}), ("/tokenize", {"with_pieces": 3}),
      (ANTHROPIC, {"temperature": "hot"}), ("/v1/messages/count_tokens", {"messages": 5}), (OPENAI, {"n": 17}), (OPENAI, {"stop": ["x"] * 17}), (OPENAI, {"stop": "x" * 257}),
      (OPENAI, {"logit_bias": {str(i): 1 for i in range(1025)}}), (OPENAI, {"logit_bias": {"999999": 1}}), (OPENAI, {"top_logprobs": 21, "logprobs": True}), (OPENAI, {"tools": [{}] * 513}),
      (OPENAI, {"messages": HI * 10_001}), (OPENAI, {"messages": []}), (OPENAI, {"messages": "hi"}), (ANTHROPIC, {"messages": HI * 10_001}), ("/v1/embeddings", {"input": ["a"] * 2049}),
      ("/v1/completions", {"prompt": [99999999]}))
def refused_400_value(path, more):
    (field,) = list(more)[:1]
    soon(f"value of {field}", 400, path, post(path, {**RIGHT[path], **more}), holds=field if field != "prompt" else "vocabulary")


@case((OPENAI, {"audio": {"voice": "x"}}), (OPENAI, {"modalities": ["audio"]}), (OPENAI, {"chat_template": "{{ 1 }}"}), ("/v1/completions", {"suffix": "b"}), ("/v1/responses", {"background": True}),
      ("/v1/responses", {"conversation": "c"}), (OPENAI, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}]}),
      (ANTHROPIC, {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}]}]}),
      (OPENAI, {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": {"type": "object", "not": {}}}}}))
def refused_400_meaning(path, more):
    soon(f"meaning of {list(more)[0]}", 400, path, post(path, {**RIGHT[path], **more}))


@case(*WRITING)
def refused_400_too_long(path):
    field = {"/v1/completions": "prompt", "/v1/responses": "input"}.get(path, "messages")
    value = LONG if field != "messages" else [{"role": "user", "content": LONG}]
    soon("prompt beyond the context", 400, path, post(path, {**RIGHT[path], field: value}), holds="512")


@case((OPENAI,), (ANTHROPIC,))
def refused_400_template(path):
    """The template refuses the messages, and says where."""
    with limited() as server:
        wrong = [{"role": "user", "content": "refuse me"}]
        soon("messages that the template refuses", 400, path, post(path, {**RIGHT[path], "messages": wrong}), server, holds="line")
        if path == OPENAI:
            soon("template of a request", 400, path, post(path, {**RIGHT[path], "chat_template": "a\nb {% if %}"}), server, holds="line 2")


def broken(data, status, path, what):
    """Wrong HTTP is refused before a route is known, in words, and the connection ends."""
    times = []
    for _ in range(TRIES):
        with socket.create_connection(("127.0.0.1", suite.PLAIN.port), timeout=20) as s:
            begin = time.monotonic()
            s.sendall(data)
            file = s.makefile("rb")
            got, headers, body = answer(file)
            times.append(time.monotonic() - begin)
            equal((got, headers.get("connection"), file.read()), (status, "close", b""), body)
        assert len(form(path, got, headers, body)) > 8
    suite.told(f"{status} {what} {path}", times)
    assert statistics.median(times) < SOON, times


@case(*[(path, value) for path in (OPENAI, ANTHROPIC, OLLAMA) for value in ("-1", "x", "5\r\nContent-Length: 6", "5\r\nTransfer-Encoding: chunked", "+5", "")])
def refused_400_length(path, value):
    data = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {value}\r\n\r\n{{}}   0\r\n\r\n".encode()
    broken(data, 400, path, f"Content-Length: {value!r}")


@case(*[(path, what) for path in (OPENAI, ANTHROPIC, OLLAMA) for what in ("version", "header", "space", "header line without a colon")])
def refused_400_http(path, what):
    data = {"version": f"GET {path} HTTP/9.9\r\n\r\n", "header": f"GET {path} HTTP/1.1\r\nHost: localhost\r\nx\0y: 1\r\n\r\n", "space": f"GET {path} x HTTP/1.1\r\n\r\n",
            "header line without a colon": f"GET {path} HTTP/1.1\r\nHost: localhost\r\nhello\r\n\r\n"}[what]
    broken(data.encode(), 400, path, what)


@case(b"hello\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"\0\0\0\0\r\n\r\n")
def refused_400_no_http(data):
    broken(data, 400, OPENAI, f"{data!r}")


@case(*[(path, what) for path in (OPENAI, ANTHROPIC) for what in ("lines", "bytes", "address")])
def refused_413_far_beyond(path, what):
    """So much that it is not even read to the end."""
    lines = {"lines": "".join(f"x-{i}: y\r\n" for i in range(1500)), "bytes": "x: " + "y" * 200_000 + "\r\n", "address": ""}[what]
    tail = "?" + "y" * 70_000 if what == "address" else ""
    with socket.create_connection(("127.0.0.1", suite.PLAIN.port), timeout=20) as s:
        s.sendall(f"GET {path}{tail} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode())
        got, headers, body = answer(s.makefile("rb"))
    equal(got, 413, body)
    form(path, got, headers, body)


@case()
def refused_400_behind_a_good_one():
    """The answer before it, on the same connection, is whole."""
    good, bad = suite.PLAIN.raw(request(RIGHT[OPENAI]) + b"GET / HTTP/9.9\r\n\r\n", 2)
    equal((good[0], json.loads(good[2])["object"]), (200, "chat.completion"))
    equal(bad[0], 400)
    form(OPENAI, *bad)


@case(*[p for p in FORMS])
def refused_401(path):
    for headers in ([], ["Authorization: Bearer wrong"], ["x-api-key: wrong"]):
        soon("key", 401, path, post(path, RIGHT[path], *headers), suite.KEYED)


@case(*[(path, header) for path in (OPENAI, ANTHROPIC, OLLAMA) for header in ("Origin: https://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site")])
def refused_403_origin(path, header):
    soon(header, 403, path, post(path, RIGHT[path], header))


@case(OPENAI, ANTHROPIC, OLLAMA)
def refused_403_host(path):
    soon("Host: evil.example", 403, path, post(path, RIGHT[path], host="evil.example"), holds="--allowed-host")


@case("../x", "/etc/passwd", "a/../../b")
def refused_403_outside(name):
    soon("adapter outside its folder", 403, OPENAI, post(OPENAI, {**RIGHT[OPENAI], "adapters": name}))


@case(*[(path, name) for path in FORMS for name in ("lapis-dem", "../../etc/passwd")])
def refused_404_model(path, name):
    soon("model", 404, path, post(path, {**RIGHT[path], "model": name}), holds="lapis-demo" if name == "lapis-dem" else "")


@case("/nope", "/v1/nope", "/v1/messages/nope", "/api/nope")
def refused_404_route(path):
    FORMS.setdefault("/v1/messages/nope", "anthropic")
    FORMS.setdefault("/api/nope", "ollama")
    soon("route", 404, path, post(path, {}), holds="/v1")


@case(*[p for p in FORMS])
def refused_405(path):
    soon("method", 405, path, f"DELETE {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), holds="POST")


@case(*[(p, kind) for p in (OPENAI, ANTHROPIC, OLLAMA) for kind in ("text/plain", "application/x-www-form-urlencoded", "")])
def refused_415(path, kind):
    soon(f"content type {kind!r}", 415, path, post(path, RIGHT[path], kind=kind), holds="application/json")


@case(OPENAI, ANTHROPIC, OLLAMA)
def refused_413_body(path):
    data = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n".encode()
    soon("body, by its length alone", 413, path, data)


@case(*[(p, kind) for p in (OPENAI, ANTHROPIC, OLLAMA) for kind in ("bytes", "lines")])
def refused_413_headers(path, kind):
    lines = ["x: " + "y" * 40_000] if kind == "bytes" else [f"x-{i}: y" for i in range(150)]
    soon(f"headers, {kind}", 413, path, post(path, RIGHT[path], *lines))


@contextlib.contextmanager
def limited(*flags):
    """A server that has little of everything, with a model beside its own that is broken."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        shutil.copytree(suite.DEMO, folder / "model")
        settings = json.loads((folder / "model" / "tokenizer_config.json").read_text())
        refuse = "{% if messages[0].content == 'refuse me' %}\n{{ raise_exception('no such words') }}{% endif %}"
        (folder / "model" / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": refuse + settings["chat_template"]}))
        for name in ("broken", "other"):
            shutil.copytree(suite.DEMO, folder / "models" / name)
        (folder / "models" / "broken" / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
        (folder / "admin").write_text("admin-key\n")
        server = suite.Server(suite.PROGRAM, "--model", str(folder / "model"), "--models-dir", str(folder / "models"), "--max-models", "1", "--decode-concurrency", "1", "--queue-size", "1",
                              "--allow-request-template", "--admin-key-file", str(folder / "admin"), *flags)
        server.models = folder / "models"
        try:
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def busy(server, requests, body=None):
    """Streams that write for as long as this lasts."""
    with contextlib.ExitStack() as stack:
        for _ in range(requests):
            s = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
            s.sendall(request(body or {"messages": FOX, "n": 16, "logit_bias": ENDLESS, "stream": True}))
            time.sleep(0.05)
        until(lambda: server.metric("running") >= 1, 5, "nothing runs")
        yield


@case()
def refused_409_busy_model():
    with limited() as server:
        (name,) = [m["id"] for m in server.http.get("/v1/models").json()["data"] if m["loaded"]]
        with busy(server, 1):
            data = f"DELETE /admin/models/{name} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer admin-key\r\n\r\n".encode()
            soon("model that works", 409, "/admin/models", data, server, tries=3)


@case()
def refused_429_and_503_beside_work():
    """A full queue; a model for which there is no room while another works."""
    with limited() as server:
        with busy(server, 4):
            until(lambda: server.metric("queue_length") >= 1, 5, "the queue is empty")
            for path in WRITING:
                soon("queue", 429, path, post(path, RIGHT[path]), server)
            for path in (OPENAI, ANTHROPIC):
                soon("no room for a model", 503, path, post(path, {**RIGHT[path], "model": "other"}), server, holds="room")


@case()
def refused_503_broken_model():
    with limited() as server:
        states = lambda: {m["id"]: m["state"] for m in server.http.get("/v1/models").json()["data"]}
        equal(states(), {"model": "ready", "other": "absent", "broken": "absent"})
        server.post(OPENAI, {**RIGHT[OPENAI], "model": "broken"})
        # The one that works stays, though there is a place for one only.
        equal(states(), {"model": "ready", "other": "absent", "broken": "failed"})
        listed = {m["id"]: m for m in server.http.get("/v1/models").json()["data"]}
        assert "cannot be loaded" in listed["broken"]["failure"] and "/tmp" not in json.dumps(listed), listed
        for path in (OPENAI, ANTHROPIC):
            soon("model that cannot be loaded", 503, path, post(path, {**RIGHT[path], "model": "broken"}), server, holds="cannot be loaded")


@case(*("config tokenizer tensors sizes memory".split()))
def refused_503_and_the_good_one_stays(what):
    """Whatever is wrong with another model, the one that is loaded works on."""
    with limited() as server:
        other = server.models / "other"
        if what == "config":
            (other / "config.json").write_text('{"model_type": "unheard_of"}')
        elif what == "tokenizer":
            (other / "tokenizer.json").write_text("{}")
        elif what == "tensors":
            settings = json.loads((other / "config.json").read_text())
            (other / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 1000}))
        elif what == "sizes":
            settings = json.loads((other / "config.json").read_text())
            (other / "config.json").write_text(json.dumps({**settings, "hidden_size": 2 * settings["hidden_size"]}))
        else:
            with open(other / "more.safetensors", "wb") as file:
                file.truncate(1 << 42)
        r = server.post(OPENAI, {**RIGHT[OPENAI], "model": "other"})
        equal(r.status_code, 503, r.text)
        assert ("no room" if what == "memory" else "cannot be loaded") in r.text, r.text
        states = {m["id"]: m["state"] for m in server.http.get("/v1/models").json()["data"]}
        equal((states["model"], server.metric("model_unloads_total")), ("ready", 0))
        equal(server.post(OPENAI, RIGHT[OPENAI]).status_code, 200)


@case()
def refused_429_beyond_32_of_a_key():
    """Requests that run and those that wait count; another key has its own."""
    body = {"messages": FOX, "max_tokens": 1000, "logit_bias": ENDLESS, "stream": True}
    with contextlib.ExitStack() as stack:
        for i in range(32):
            s = stack.enter_context(socket.create_connection(("127.0.0.1", suite.KEYED.port), timeout=30))
            s.sendall(request(body, f"Authorization: Bearer {suite.KEYED.key}"))
        own = f"Authorization: Bearer {suite.KEYED.key}"
        until(lambda: sum(map(suite.KEYED.metric, ("running", "waiting", "queue_length"))) >= 32, 30, "they do not run")
        for path in (OPENAI, ANTHROPIC):
            soon("33rd request of a key", 429, path, post(path, RIGHT[path], own), suite.KEYED, holds="32 requests")
        other = suite.KEYED.post(OPENAI, RIGHT[OPENAI], headers={"authorization": "Bearer second-key"})
        equal(other.status_code, 200, other.text)
    until(lambda: suite.KEYED.post(OPENAI, RIGHT[OPENAI]).status_code == 200, 5, "there is no room again")


@case(OPENAI, ANTHROPIC)
def refused_503_draining(path):
    """A request whose body comes after the server was told to stop."""
    server = suite.Server(suite.PROGRAM)
    try:
        with busy(server, 2), socket.create_connection(("127.0.0.1", server.port), timeout=20) as s:
            data = post(path, RIGHT[path])
            s.sendall(data[:-1])
            time.sleep(0.1)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
            begin = time.monotonic()
            s.sendall(data[-1:])
            status, headers, body = answer(s.makefile("rb"))
            suite.told(f"503 draining {path}", [time.monotonic() - begin])
        equal(status, 503, body)
        assert int(headers["retry-after"]) >= 1
        form(path, status, headers, body)
    finally:
        server.stop()


@case()
def refused_and_the_next_is_served():
    equal(suite.PLAIN.post(OPENAI, RIGHT[OPENAI]).status_code, 200)
    equal(suite.PLAIN.http.post(OPENAI, content=b"{", headers=JSON).status_code, 400)
    equal(suite.PLAIN.post(ANTHROPIC, RIGHT[ANTHROPIC]).status_code, 200)
