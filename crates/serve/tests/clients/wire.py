"""Hosts and origins, HTTP as it comes over sockets, clients that leave."""

import concurrent.futures
import json
import socket
import time

import httpx

import suite
from suite import ENDLESS, FOX, HI, answer, case, chat, equal, error, request, text, until


@case("evil.com", "evil.com:80", "localhost.evil.com", "127.0.0.1.evil.com", "a@b")
def host_foreign(host):
    error(suite.PLAIN.http.get("/v1/models", headers={"host": host}), 403, kind="permission_error", holds="--allowed-host")
    equal(suite.PLAIN.http.get("/health", headers={"host": host}).status_code, 403)


@case("localhost", "LocalHost:99", "127.0.0.1", "[::1]:80", "a.localhost", "box.local", "host.docker.internal", "192.168.1.1:80")
def host_near(host):
    equal(suite.PLAIN.http.get("/v1/models", headers={"host": host}).status_code, 200)


@case("https://evil.com", "null", "http://localhost.evil.com", "chrome-extension://abc", "file://", "localhost", "", "http://127.0.0.1.evil.com")
def origin_foreign(origin):
    r = suite.PLAIN.http.get("/v1/models", headers={"origin": origin})
    error(r, 403, kind="permission_error")
    assert "access-control-allow-origin" not in r.headers
    equal(suite.PLAIN.http.options("/v1/models", headers={"origin": origin, "access-control-request-method": "GET"}).status_code, 403)


@case("http://localhost:3000", "https://localhost", "http://127.0.0.1:1", "http://[::1]:5", "tauri://localhost", "app://x", "vscode-webview://abc")
def origin_near(origin):
    r = suite.PLAIN.http.get("/v1/models", headers={"origin": origin})
    equal(r.status_code, 200)
    equal(r.headers.get("access-control-allow-origin"), origin)
    assert "origin" in r.headers.get("vary", "").lower()


@case("authorization", "content-type", "x-api-key", "x-request-id", "x-stainless-lang", "x-stainless-retry-count", "anthropic-version", "anthropic-beta", "openai-organization")
def preflight(header):
    asked = {"origin": "http://localhost:3000", "access-control-request-method": "POST", "access-control-request-headers": header}
    for server in (suite.PLAIN, suite.KEYED):
        r = httpx.options(server.url + "/v1/chat/completions", headers=asked)
        assert r.status_code in (200, 204), r.text
        equal(r.headers["access-control-allow-origin"], asked["origin"])
        assert header in [h.strip().lower() for h in r.headers["access-control-allow-headers"].split(",")], dict(r.headers)
        for method in ("GET", "POST", "DELETE", "OPTIONS"):
            assert method in r.headers["access-control-allow-methods"], dict(r.headers)
        equal(r.headers.get("access-control-max-age"), "600")


@case()
def preflight_foreign_header():
    r = suite.PLAIN.http.options("/v1/models", headers={"origin": "http://localhost:3000", "access-control-request-method": "GET", "access-control-request-headers": "x-evil"})
    assert "x-evil" not in r.headers.get("access-control-allow-headers", ""), dict(r.headers)


@case()
def preflight_private_network():
    ask = {"origin": "http://localhost:3000", "access-control-request-method": "POST", "access-control-request-private-network": "true"}
    equal(suite.PLAIN.http.options("/v1/models", headers=ask).headers.get("access-control-allow-private-network"), "true")
    bad = suite.PLAIN.http.options("/v1/models", headers={**ask, "origin": "https://evil.com"})
    assert "access-control-allow-private-network" not in bad.headers


@case()
def preflight_of_a_foreign_host():
    """A page whose name was bent to this machine is no page of this server, though host and origin agree."""
    ask = {"host": "evil.com", "origin": "http://evil.com", "access-control-request-method": "POST", "access-control-request-private-network": "true"}
    r = suite.PLAIN.http.options("/v1/chat/completions", headers=ask)
    error(r, 403, kind="permission_error", holds="--allowed-host")
    assert "access-control-allow-private-network" not in r.headers


@case()
def cross_site():
    error(suite.PLAIN.http.get("/v1/models", headers={"sec-fetch-site": "cross-site"}), 403)
    equal(suite.PLAIN.http.get("/v1/models", headers={"sec-fetch-site": "same-origin"}).status_code, 200)


# The wire


ONE = {"messages": HI, "max_tokens": 1}


@case(33554433, 2**40, 2**63 - 1)
def body_too_large(length):
    begin = time.monotonic()
    (status, _, body), = suite.PLAIN.raw(f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n".encode())
    equal(status, 413)
    assert json.loads(body)["error"]["message"] and time.monotonic() - begin < 2


@case()
def body_too_large_chunked():
    piece = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    (status, _, _), = suite.PLAIN.raw(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" + piece * 33 + b"0\r\n\r\n")
    equal(status, 413)


@case("Content-Length: -1", "Content-Length: x", "Content-Length: 5\r\nContent-Length: 6", "Content-Length: 5\r\nTransfer-Encoding: chunked", "Content-Length: 99999999999999999999999")
def body_length_wrong(lines):
    with socket.create_connection(("127.0.0.1", suite.PLAIN.port), timeout=10) as s:
        s.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{lines}\r\n\r\n0\r\n\r\n".encode())
        file = s.makefile("rb")
        status = answer(file)[0]
        assert status in (400, 413), status
        equal(file.read(), b"")


@case(1, 7, 100000)
def body_chunked(size):
    body = json.dumps({"messages": HI, "max_tokens": 1, "user": "x" * 50}).encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(body[i : i + size]), body[i : i + size]) for i in range(0, len(body), size))
    (status, _, got), = suite.PLAIN.raw(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
    equal(status, 200, got)


@case()
def body_chunked_bad():
    (status, _, _), = suite.PLAIN.raw(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
    equal(status, 400)


@case()
def body_expected():
    data = request(ONE, "Expect: 100-continue")
    head, _, body = data.partition(b"\r\n\r\n")
    with socket.create_connection(("127.0.0.1", suite.PLAIN.port), timeout=10) as s:
        file = s.makefile("rb")
        s.sendall(head + b"\r\n\r\n")
        equal(answer(file)[0], 100)
        s.sendall(body)
        equal(answer(file)[0], 200)


@case()
def pipelined():
    answers = suite.PLAIN.raw(request(ONE) + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + request({"content": "hi"}, path="/tokenize") + request({}), 4)
    equal([a[0] for a in answers], [200, 200, 200, 400])
    assert b"chat.completion" in answers[0][2] and b"ok" in answers[1][2] and b"tokens" in answers[2][2]


@case()
def kept_alive():
    with socket.create_connection(("127.0.0.1", suite.PLAIN.port), timeout=10) as s:
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
    equal(suite.PLAIN.raw(b"GET /v1/models HTTP/1.1\r\n\r\n")[0][0], 400)


@case()
def host_twice():
    status = suite.PLAIN.raw(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil.com\r\n\r\n")[0][0]
    assert status in (400, 403), status


@case()
def host_in_target():
    equal(suite.PLAIN.raw(b"GET http://evil.com/v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")[0][0], 403)


@case()
def slow_bytes():
    with socket.create_connection(("127.0.0.1", suite.PLAIN.port), timeout=10) as s:
        for b in request({"content": "hi"}, path="/tokenize"):
            s.sendall(bytes([b]))
        equal(answer(s.makefile("rb"))[0], 200)


@case(("x: " + "y" * 40000,), ("\r\n".join(f"x-{i}: y" for i in range(150)),))
def headers_too_large(lines):
    (status, _, _), = suite.PLAIN.raw(f"GET /health HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n\r\n".encode())
    assert status in (400, 413, 431), status


# Clients that leave


def leave(body):
    with socket.create_connection(("127.0.0.1", suite.PLAIN.port), timeout=10) as s:
        s.sendall(request(body))
        until(lambda: suite.PLAIN.metric("running") >= 1, 5, "nothing runs")
    begin = time.monotonic()
    until(lambda: suite.PLAIN.metric("running") == 0, 1, "still running 1 s after the client left")
    return time.monotonic() - begin


@case(*[(stream, n) for stream in (False, True) for n in (1, 4)])
def cancelled(stream, n):
    before = suite.PLAIN.metric("cancelled_total")
    leave({"messages": FOX, "logit_bias": ENDLESS, "stream": stream, "n": n})
    until(lambda: suite.PLAIN.metric("cancelled_total") > before, 1, "lapis_cancelled_total has not grown")
    assert text(chat(max_tokens=1)) is not None


@case()
def cancelled_by_sdk():
    stream = chat(FOX, logit_bias=ENDLESS, stream=True)
    next(iter(stream))
    stream.close()
    until(lambda: suite.PLAIN.metric("running") == 0, 1, "still running 1 s after the client left")


@case()
def cancelled_many():
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        def ask(i):
            with socket.create_connection(("127.0.0.1", suite.PLAIN.port), timeout=10) as s:
                s.sendall(request({"messages": FOX, "logit_bias": ENDLESS, "stream": bool(i % 2)}))
                time.sleep(0.05 + 0.02 * i)
        list(pool.map(ask, range(8)))
    until(lambda: suite.PLAIN.metric("running") + suite.PLAIN.metric("waiting") + suite.PLAIN.metric("queue_length") == 0, 1, "still running")


@case()
def others_go_on():
    want = text(chat(FOX, seed=2, max_tokens=40, logit_bias=ENDLESS))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        later = pool.submit(lambda: text(chat(FOX, seed=2, max_tokens=40, logit_bias=ENDLESS)))
        with socket.create_connection(("127.0.0.1", suite.PLAIN.port)) as s:
            s.sendall(request({"messages": FOX, "logit_bias": ENDLESS, "stream": True}))
            time.sleep(0.05)
        equal(later.result(), want)


@case(1, 2, 3)
def cancelled_at_once(_):
    # Gone before the first token.
    with socket.create_connection(("127.0.0.1", suite.PLAIN.port)) as s:
        s.sendall(request({"messages": FOX, "logit_bias": ENDLESS, "n": 4}))
    until(lambda: suite.PLAIN.metric("running") + suite.PLAIN.metric("waiting") + suite.PLAIN.metric("queue_length") == 0, 1, "still running")


@case()
def warm_as_cold():
    ask = dict(temperature=0, max_tokens=20, logprobs=True)
    one, two = (chat(FOX, extra_body={"cache_salt": "a fresh one"}, **ask) for _ in range(2))
    assert two.usage.prompt_tokens_details.cached_tokens > 0
    equal([e.logprob for e in two.choices[0].logprobs.content], [e.logprob for e in one.choices[0].logprobs.content])
