"""Models, tokens, templates; numbers, bodies, routes; keys."""

import json
import socket
import time

import httpx
import openai

import suite
from suite import HI, JSON, SHORT, answer, case, chat, equal, error, text


@case()
def models_list():
    models = list(suite.PLAIN.client.models.list())
    equal([m.id for m in models], ["lapis-demo"])
    m = models[0].model_dump()
    equal((m["object"], m["context_length"], m["loaded"]), ("model", 512, True))
    body = suite.PLAIN.http.get("/v1/models?client_version=1").json()
    equal(body["models"][0]["slug"], "lapis-demo")
    assert "/" not in json.dumps(body["data"])


@case("/models", "/v1/models/", "/v1/models?x=1")
def models_paths(path):
    equal(suite.PLAIN.http.get(path).status_code, 200)


@case()
def models_one():
    equal(suite.PLAIN.client.models.retrieve("lapis-demo").id, "lapis-demo")


@case("/v1/models/lapis%2Ddemo")
def models_percent(path):
    equal(suite.PLAIN.http.get(path).json()["id"], "lapis-demo")


@case("nothing", "a/b", "a%2Fb", "..%2F..%2Fetc%2Fpasswd", "/etc/passwd", "%ff")
def models_unknown(name):
    error(suite.PLAIN.http.get("/v1/models/" + name), 404, kind="not_found_error")


@case(("/v1/chat/completions", "lapis-dmo"), ("/v1/completions", "lapis_demo"), ("/tokenize", "lapisdemo"))
def unknown_model(path, name):
    r = suite.PLAIN.post(path, {"model": name, "messages": HI, "prompt": "x", "max_tokens": 1})
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
    r = suite.PLAIN.post("/v1/chat/completions", {"model": name, "messages": HI, "max_tokens": 1})
    assert r.status_code in (400, 403, 404), r.text[:200]


@case("hello world", "", " a  b\n\n\tc ", "h\u00e9llo \u4e16\u754c \U0001f98a", "<|im_start|>user\n", "\u0000\u0001", "a" * 3000, "e\u0301")
def tokens_round(content):
    for prefix in ("", "/v1"):
        t = suite.PLAIN.post(prefix + "/tokenize", {"content": content, "add_special": False}).json()
        equal((t["count"], t["max_model_len"]), (len(t["tokens"]), 512))
        back = suite.PLAIN.post(prefix + "/detokenize", {"tokens": t["tokens"]}).json()
        equal((back["content"], back["prompt"]), (content, content))


@case("content", "prompt", "text")
def tokens_names(name):
    equal(suite.PLAIN.post("/tokenize", {name: "hi"}).json()["tokens"], suite.PLAIN.post("/tokenize", {"content": "hi"}).json()["tokens"])


@case()
def tokens_pieces():
    tokens = suite.PLAIN.post("/tokenize", {"content": "h\u00e9llo \U0001f98a", "with_pieces": True}).json()["tokens"]
    pieces = [t["piece"] for t in tokens]
    equal(b"".join(p.encode() if isinstance(p, str) else bytes(p) for p in pieces).decode(), "h\u00e9llo \U0001f98a")


@case()
def tokens_of_messages():
    t = suite.PLAIN.post("/tokenize", {"messages": HI}).json()
    equal(t["count"], chat(max_tokens=1).usage.prompt_tokens)


@case(([-1],), ([2**40],), ([99999999],), (["a"],), ([1.5],), ([None],), ("a",), (None,), ({},))
def detokenize_wrong(tokens):
    error(suite.PLAIN.post("/detokenize", {"tokens": tokens}), 400, "tokens")


@case({}, {"content": 5}, {"content": ["a"]}, {"messages": []}, {"content": "a", "with_pieces": "yes"})
def tokenize_wrong(body):
    error(suite.PLAIN.post("/tokenize", body), 400)


@case((True,), (False,))
def template(begun):
    prompt = suite.PLAIN.post("/apply-template", {"messages": HI, "add_generation_prompt": begun}).json()["prompt"]
    equal(prompt.endswith("<|im_start|>assistant\n"), begun, prompt)
    equal(suite.PLAIN.post("/v1/apply-template", {"messages": HI, "add_generation_prompt": begun}).json()["prompt"], prompt)


@case({}, {"messages": []}, {"messages": "x"}, {"messages": [5]}, {"messages": HI, "chat_template_kwargs": 5})
def template_wrong(body):
    error(suite.PLAIN.post("/apply-template", body), 400)


@case(("/tokenize", {"content": "a"}), ("/detokenize", {"tokens": [1]}), ("/apply-template", {"messages": HI}), ("/api/show", {"model": "lapis-demo"}))
def unknown_fields_are_named(path, body):
    equal(suite.PLAIN.post(path, {**body, "bogus": 1}).headers.get("x-lapis-warnings"), "bogus: unknown")
    assert "x-lapis-warnings" not in suite.PLAIN.post(path, body).headers


@case("tool_choice", "parallel_tool_calls", "functions", "function_call", "continue_final_message")
def template_fields_are_known(name):
    value = {"tool_choice": "none", "function_call": "none", "functions": []}.get(name, False)
    r = suite.PLAIN.post("/apply-template", {"messages": HI, name: value})
    equal((r.status_code, r.headers.get("x-lapis-warnings")), (200, None), r.text)


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
    r = suite.PLAIN.http.post(route, content=body, headers={"content-type": "application/json"})
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
    equal(suite.PLAIN.http.get("/health").status_code, 200)


@case()
def number_next_works():
    equal(text(chat(max_tokens=3, logit_bias={"3": 100})), "!!!")


# Bodies and routes

ROUTES = [("POST", p) for p in ("/v1/chat/completions", "/chat/completions", "/v1/completions", "/completions", "/tokenize",
                                "/v1/tokenize", "/detokenize", "/v1/detokenize", "/apply-template", "/v1/apply-template")]
READS = [("GET", p) for p in ("/v1/models", "/models", "/v1/models/lapis-demo", "/metrics")]


@case(b"", b"{", b"[]", b"5", b'"x"', b"null", b"{} {}", b'{"messages": [}', b"{'a': 1}", b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
      b"[" * 100000, b'{"messages": ' + b"[" * 200 + b"]" * 200 + b"}", b'{"a":' * 5000 + b"1" + b"}" * 5000, b'{"messages": "\\ud800"}', b"\xef\xbb\xbf5")
def bad_json(body):
    begin = time.monotonic()
    r = suite.PLAIN.http.post("/v1/chat/completions", content=body, headers=JSON)
    error(r, 400, kind="invalid_request_error")
    assert time.monotonic() - begin < 1


@case(*[p for _, p in ROUTES])
def bad_json_routes(path):
    error(suite.PLAIN.http.post(path, content=b"{", headers=JSON), 400)


@case("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", None, "application/jsonx")
def content_type(kind):
    headers = {} if kind is None else {"content-type": kind}
    error(suite.PLAIN.http.post("/v1/chat/completions", content=b'{"messages":[]}', headers=headers), 415)


@case("application/json; charset=utf-8", "Application/JSON", "application/json;charset=UTF-8")
def content_type_right(kind):
    r = suite.PLAIN.http.post("/v1/chat/completions", content=json.dumps({"messages": HI, "max_tokens": 1}), headers={"content-type": kind})
    equal(r.status_code, 200, r.text)


@case(*[(m, p) for wrong, routes in ((("GET", "DELETE", "PUT"), ROUTES), (("POST", "DELETE"), [*READS, ("GET", "/health"), ("GET", "/ready")])) for _, p in routes for m in wrong])
def wrong_method(method, path):
    r = suite.PLAIN.http.request(method, path, content=b"{}" if method != "GET" else None, headers=JSON)
    error(r, 405)
    allowed = [a.strip() for a in r.headers.get("allow", "").split(",")]
    assert ("POST" if ("POST", path) in ROUTES else "GET") in allowed, allowed


@case("/nope", "/v1/nope", "/v1", "/v1/chat", "/v1/chat/completions/x", "/v1/v1/models", "/%00", "/..%2f..%2fetc", "/V1/models")
def unknown_route(path):
    error(suite.PLAIN.http.get(path), 404, kind="not_found_error")


@case(("POST", "/api/chat"), ("POST", "/api/generate"), ("GET", "/api/nope"))
def unknown_ollama(method, path):
    r = suite.PLAIN.http.request(method, path, json={} if method == "POST" else None)
    equal(r.status_code, 404)
    assert "/v1" in r.json()["error"], r.text


@case("/health", "/ready", "/v1/models")
def head(path):
    r = suite.PLAIN.http.head(path)
    equal((r.status_code, r.content), (200, b""))


@case()
def health():
    equal(suite.PLAIN.http.get("/health").json(), {"status": "ok"})
    equal(suite.PLAIN.http.get("/ready").status_code, 200)


@case("abc-123", "req_x.y")
def request_id_kept(name):
    equal(suite.PLAIN.http.get("/health", headers={"x-request-id": name}).headers["x-request-id"], name)


@case("x" * 5000, "a b\tc;", "\u00e9".encode())
def request_id_odd(name):
    assert suite.PLAIN.http.get("/health", headers={"x-request-id": name}).headers["x-request-id"] not in (name, "")


@case("/health", "/nope", "/v1/models", "/v1/chat/completions")
def request_id_always(path):
    one, two = (suite.PLAIN.http.get(path).headers.get("x-request-id") for _ in range(2))
    assert one and two and one != two


# Keys


@case(*ROUTES, *READS, ("GET", "/nope"), ("GET", "/openapi.json"), ("GET", "/api/tags"))
def key_needed(method, path):
    body = json.dumps({"messages": HI, "prompt": "hi", "content": "a", "tokens": [1], "max_tokens": 1}) if method == "POST" else None
    for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}, {"authorization": "Basic " + suite.KEYED.key}, {"authorization": suite.KEYED.key},
                    {"authorization": "Bearer"}, {"authorization": "Bearer " + suite.KEYED.key + "x"}, {"authorization": "Bearer " + suite.KEYED.key[:-1]}):
        r = httpx.request(method, suite.KEYED.url + path, content=body, headers={**JSON, **headers})
        # OpenAI's form on its own routes, another's elsewhere.
        equal(r.status_code, 401, f"{headers} {r.text}")
        assert suite.KEYED.key not in r.text
        if not path.startswith("/api"):
            error(r, 401, kind="authentication_error")


@case(*ROUTES, *READS)
def key_taken(method, path):
    body = json.dumps({"messages": HI, "prompt": "hi", "content": "a", "tokens": [1], "max_tokens": 1}) if method == "POST" else None
    for headers in ({"authorization": "Bearer " + suite.KEYED.key}, {"x-api-key": suite.KEYED.key}, {"authorization": "bearer " + suite.KEYED.key}, {"x-api-key": "second-key"}):
        r = httpx.request(method, suite.KEYED.url + path, content=body, headers={**JSON, **headers})
        equal(r.status_code, 200, f"{headers} {r.text}")


@case(("GET", "/v1/chat/completions"), ("POST", "/v1/models"))
def key_before_method(method, path):
    equal(httpx.request(method, suite.KEYED.url + path).status_code, 401)


@case("/health", "/ready")
def key_not_needed(path):
    equal(httpx.get(suite.KEYED.url + path).status_code, 200)


@case()
def key_sdk():
    assert text(chat(server=suite.KEYED, max_tokens=2))
    try:
        openai.OpenAI(base_url=suite.KEYED.url + "/v1", api_key="wrong", max_retries=0).models.list()
    except openai.AuthenticationError:
        return
    raise AssertionError("no error")


@case()
def key_before_body():
    # Without a key a body is not read.
    with socket.create_connection(("127.0.0.1", suite.KEYED.port), timeout=5) as s:
        s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n")
        equal(answer(s.makefile("rb"))[0], 401)


@case()
def key_not_in_log():
    time.sleep(0.1)
    assert suite.KEYED.key not in "".join(suite.KEYED.lines)
