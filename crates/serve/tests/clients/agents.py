"""What agents, editors and libraries really send: a case of each, by its number C1 to C19 in the list of clients.

Where others have their trouble: exact counts, prefixes that change, odd blocks, legacy fields, null everywhere.
"""

import concurrent.futures
import json
import os
import pathlib
import shutil
import signal
import socket
import statistics
import tempfile
import time

import httpx
import openai

import suite
from messages import BETA, CLOCK, WEATHER, client, code, events, refused, say
from suite import ENDLESS, FOX, HI, SHORT, answer, case, chat, equal, error, holds, joined, request, text, until

# Marks that the last tokens of the demo model become: for filling in, and for thinking.
MARKS = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<think>", "</think>"]
FIRST = 2048 - len(MARKS)


def marked(folder):
    """Writes the demo model with a tokenizer that knows the marks."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    model = tokenizer["model"]
    model["vocab"] = {word: i for word, i in model["vocab"].items() if i < FIRST}
    model["merges"] = model["merges"][: -len(MARKS)]
    for i, mark in enumerate(MARKS):
        model["vocab"][mark] = FIRST + i
        tokenizer["added_tokens"].append({"id": FIRST + i, "content": mark, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] += "{% if add_generation_prompt and enable_thinking %}<think>{% endif %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def count(messages, server=None, **more):
    return client(server or suite.TOOLS).messages.count_tokens(model="default", messages=messages, **more).input_tokens


def template(messages, server=None, **more):
    return (server or suite.TOOLS).post("/apply-template", {"messages": messages, **more}).json()["prompt"]


# C1 to C5: Claude Code and Anthropic's library


@case(1, 2, 3)
def C1_claude_code_counts_are_those_of_its_requests(turns):
    messages = [*FOX]
    for i in range(1, turns):
        messages += [{"role": "assistant", "content": "Once." * i}, {"role": "user", "content": "Go on"}]
    body = code(turns, messages)
    counted = suite.TOOLS.post("/v1/messages/count_tokens?beta=true", {k: v for k, v in body.items() if k not in ("max_tokens", "stream")}, headers=BETA)
    sent = suite.TOOLS.post("/v1/messages?beta=true", {**body, "stream": False, "max_tokens": 1}, headers=BETA)
    equal((counted.status_code, sent.status_code), (200, 200), sent.text)
    usage = sent.json()["usage"]
    equal(counted.json()["input_tokens"], usage["input_tokens"] + usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"])
    models = suite.TOOLS.http.get("/v1/models?limit=1000", headers=BETA)
    equal((models.status_code, type(models.json()["data"])), (200, list))


@case()
def C2_claude_code_prefix_survives_its_changing_block():
    talk = [{"role": "user", "content": "Tell me of " + "a fox and a hare, " * 12}]
    for turn in range(1, 4):
        sent = suite.TOOLS.post("/v1/messages?beta=true", {**code(turn * 77, talk), "stream": False}, headers=BETA).json()
        usage, said = sent["usage"], "".join(b.get("text", "") for b in sent["content"])
        if turn > 1:
            # All but the last few tokens of the turn before, which the template closes another way.
            assert usage["cache_read_input_tokens"] >= 0.95 * shared, (usage, shared)
        shared = usage["input_tokens"] + usage["cache_read_input_tokens"]
        talk += [{"role": "assistant", "content": said}, {"role": "user", "content": "Go on"}]


@case({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, {"output_config": {"effort": "high"}}, {"thinking": {"type": "adaptive"}},
      {"metadata": {"user_id": "u"}}, {"cache_control": {"type": "ephemeral"}}, {"tools": [{**WEATHER, "defer_loading": True}]}, {"container": None},
      {"system": [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]}, {"service_tier": "auto"}, {"inference_geo": "eu"})
def C3_claude_code_fields_are_taken(more):
    r = suite.TOOLS.post("/v1/messages?beta=true", {"model": "default", "max_tokens": 2, "messages": HI, **more}, headers=BETA)
    equal((r.status_code, r.json().get("type")), (200, "message"), r.text)


@case()
def C4_claude_code_history_keeps_its_order():
    history = [
        {"role": "user", "content": [{"type": "text", "text": "first"}, {"type": "text", "text": "second", "cache_control": {"type": "ephemeral"}}]},
        {"role": "user", "content": "third"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm.", "signature": "abc"}, {"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "fourth"},
                                          {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome", "days": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "fifth"}, {"type": "text", "text": "sixth"}]}, {"type": "text", "text": "seventh"}]},
        {"role": "user", "content": "eighth"},
    ]
    system = [{"type": "text", "text": "You are"}, {"type": "text", "text": "careful."}]
    flat = [{"role": "system", "content": "You are\ncareful."}, {"role": "user", "content": "first\nsecond\n\nthird"},
            {"role": "assistant", "content": "fourth", "tool_calls": [{"id": "toolu_1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome", "days": 1}}}]},
            {"role": "tool", "tool_call_id": "toolu_1", "content": "fifth\nsixth"}, {"role": "user", "content": "seventh\n\neighth"}]
    tools = [{"type": "function", "function": {"name": "weather", "description": "", "parameters": WEATHER["input_schema"]}}]
    got = say(history, suite.TOOLS, system=system, tools=[WEATHER], temperature=0, max_tokens=12)
    want = chat(flat, suite.TOOLS, tools=tools, temperature=0, max_tokens=12)
    equal(got.usage.input_tokens + got.usage.cache_read_input_tokens, want.usage.prompt_tokens)
    equal("".join(b.text for b in got.content if b.type == "text"), text(want) or "")


@case()
def C5_anthropic_stream_ends_in_an_error_event():
    """What breaks a stream after it has begun is said in it."""
    server = suite.Server(suite.PROGRAM, "--drain-timeout", "1")
    try:
        body = {"model": "default", "messages": FOX, "stream": True, "stop_sequences": ["\0"]}
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            # So many that they are not over within the second.
            sent = [pool.submit(server.post, "/v1/messages", body) for _ in range(16)]
            until(lambda: server.metric("running") >= 16, 10, "they do not run")
            server.process.send_signal(signal.SIGTERM)
            streams = [s.result().text.strip().split("\n\n") for s in sent]
        for stream in streams:
            names = [e.split("\n")[0].removeprefix("event: ") for e in stream]
            assert names[0] == "message_start" and names[-1] in ("message_stop", "error"), names[-3:]
            if names[-1] == "error":
                data = json.loads(stream[-1].split("data: ", 1)[1])
                equal((data["type"], data["error"]["type"]), ("error", "overloaded_error"))
    finally:
        server.stop()


@case(1, 2, 3)
def C5_anthropic_stream_indexes_and_inputs(seed):
    found = events(server=suite.TOOLS, messages=[{"role": "user", "content": f"Go {seed}"}], tools=[CLOCK, WEATHER], tool_choice={"type": "any"}, max_tokens=200, temperature=1)
    names = [n for n, _ in found if n != "ping"]
    equal((names[0], names[-2:]), ("message_start", ["message_delta", "message_stop"]))
    inputs, starts = {}, []
    for name, data in found:
        if name == "content_block_start":
            starts.append(data["index"])
            inputs[data["index"]] = (data["content_block"], "")
        elif name == "content_block_delta" and data["delta"]["type"] == "input_json_delta":
            block, before = inputs[data["index"]]
            inputs[data["index"]] = (block, before + data["delta"]["partial_json"])
    equal(starts, list(range(len(starts))))
    calls = [(b["name"], raw) for b, raw in inputs.values() if b["type"] == "tool_use"]
    for name, raw in calls[: len(calls) - (found[-2][1]["delta"]["stop_reason"] == "max_tokens")]:
        holds((CLOCK if name == "clock" else WEATHER)["input_schema"], json.loads(raw))
    assert calls


# C6 and C7: Codex


@case()
def C6_codex_request():
    """Tools of all kinds, results that are lists, fields of its own, a schema, in one request."""
    tools = [{"type": "function", "name": "shell", "parameters": {"type": "object", "properties": {"command": {"type": "array", "items": {"type": "string"}}}, "required": ["command"]}, "strict": False},
             {"type": "custom", "name": "apply_patch", "description": "Patches.", "format": {"type": "grammar", "syntax": "regex", "definition": "[a-z]{3}"}},
             {"type": "namespace", "name": "mcp", "tools": [{"type": "function", "name": "look", "parameters": {"type": "object"}}]},
             {"type": "web_search", "external_web_access": False}, {"type": "image_generation"}, {"type": "tool_search"}]
    items = [{"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be exact."}]}, {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Go"}]},
             {"type": "reasoning", "summary": [], "encrypted_content": "abc"}, {"type": "function_call", "call_id": "c1", "name": "shell", "arguments": "{\"command\":[\"ls\"]}"},
             {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "a.txt"}]}, {"type": "custom_tool_call", "call_id": "c2", "name": "apply_patch", "input": "abc"},
             {"type": "custom_tool_call_output", "call_id": "c2", "output": "done"}, {"type": "ghost_snapshot", "x": 1}]
    body = {"model": "default", "instructions": "You are Codex.", "input": items, "tools": tools, "tool_choice": "auto", "parallel_tool_calls": False, "reasoning": {"effort": "low", "summary": "auto"},
            "store": False, "stream": True, "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k", "max_output_tokens": 8,
            "text": {"verbosity": "low", "format": {"type": "json_schema", "name": "out", "strict": True, "schema": {"type": "object", "properties": {"n": {"enum": [1]}}, "required": ["n"], "additionalProperties": False}}}}
    r = suite.TOOLS.post("/v1/responses", body, headers={"originator": "codex_cli_rs", "session_id": "s", "openai-beta": "responses=experimental"})
    equal(r.status_code, 200, r.text)
    warnings = r.headers["x-lapis-warnings"]
    for kind in ("web_search", "image_generation", "tool_search", "ghost_snapshot"):
        assert kind in warnings, warnings
    last = [json.loads(line[6:]) for line in r.text.split("\n") if line.startswith("data: ")][-1]
    assert last["type"] in ("response.completed", "response.incomplete") and last["response"]["store"] is False, last


@case()
def C6_codex_probe_and_unknown_response():
    r = suite.PLAIN.post("/v1/responses", {"model": "default", "input": "", "max_output_tokens": 1})
    equal(r.status_code, 200, r.text)
    r = suite.PLAIN.post("/v1/responses", {"model": "default", "input": "hi", "previous_response_id": "resp_gone"})
    equal(error(r, 400, "previous_response_id")["code"], "previous_response_not_found")


@case()
def C7_codex_models_and_absent_model():
    body = suite.PLAIN.http.get("/v1/models?client_version=0.99.0").json()
    equal((body["object"], [m["id"] for m in body["data"]], [m["slug"] for m in body["models"]]), ("list", ["lapis-demo"], ["lapis-demo"]))
    for name in ("display_name", "context_window", "supported_reasoning_levels", "supports_parallel_tool_calls", "input_modalities"):
        assert name in body["models"][0], name
    r = suite.PLAIN.post("/v1/responses", {"input": "hi", "max_output_tokens": 2})
    equal((r.status_code, r.json()["model"]), (200, "lapis-demo"))


# C8 to C14: libraries that speak OpenAI's


@case(("developer",), ("system", "system"), ("system", "developer"), ("developer", "user", "system"))
def C8_several_system_messages(*roles):
    messages = [{"role": role, "content": f"word{i}"} for i, role in enumerate(roles)]
    prompt = template([*messages, *HI])
    places = [prompt.index(f"word{i}") for i in range(len(roles))]
    equal(places, sorted(places))
    assert text(chat([*messages, *HI], max_tokens=3)) is not None


@case()
def C9_openai_client_reads_base64_embeddings():
    model = "bert"
    ask = lambda **more: suite.EMBEDDER.client.embeddings.create(model=model, input=["a fox"], **more).data[0].embedding
    got, plain = ask(), ask(encoding_format="float")
    assert len(got) == len(plain) and max(abs(a - b) for a, b in zip(got, plain)) < 1e-6
    raw = suite.EMBEDDER.post("/v1/embeddings", {"model": model, "input": "a fox", "encoding_format": "base64"}).json()
    assert isinstance(raw["data"][0]["embedding"], str)


@case(False, True)
def C9_openai_client_gives_up_and_nothing_computes_on(stream):
    client = openai.OpenAI(base_url=suite.PLAIN.url + "/v1", api_key="none", max_retries=2, timeout=0.15)
    before = suite.PLAIN.metric("cancelled_total")
    seen = []
    def ask():
        try:
            reply = client.chat.completions.create(model="default", messages=FOX, n=16, logit_bias=ENDLESS, stream=stream)
            for _ in reply if stream else ():
                pass
        except openai.APITimeoutError:
            pass
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        done = pool.submit(ask)
        while not done.done():
            seen.append(suite.PLAIN.metric("running"))
            time.sleep(0.01)
        done.result()
    until(lambda: suite.PLAIN.metric("running") == 0, 2, "it runs on")
    # A try and the one after it are never there together.
    assert max(seen, default=0) <= 16, max(seen)
    if not stream:
        assert suite.PLAIN.metric("cancelled_total") > before


@case()
def C9_streams_begin_at_once():
    with socket.create_connection(("127.0.0.1", suite.PLAIN.port), timeout=15) as busy:
        busy.sendall(request({"messages": FOX, "n": 16, "logit_bias": ENDLESS, "stream": True}))
        until(lambda: suite.PLAIN.metric("running") >= 1, 5, "nothing runs")
        with socket.create_connection(("127.0.0.1", suite.PLAIN.port), timeout=15) as s:
            s.sendall(request({"messages": FOX, "stream": True, "max_tokens": 2}))
            assert s.recv(100).startswith(b"HTTP/1.1 200"), "no bytes within 15 s"


@case(*[f for f in ("temperature", "top_p", "n", "stream", "stream_options", "stop", "max_tokens", "presence_penalty", "frequency_penalty", "logit_bias", "user", "tools", "tool_choice",
                    "functions", "function_call", "response_format", "seed", "logprobs", "top_logprobs", "parallel_tool_calls", "reasoning_effort", "service_tier", "metadata", "store",
                    "chat_template_kwargs", "cache_salt", "prompt_cache_key", "adapters", "min_p", "top_k", "repetition_penalty", "model")])
def C10_null_is_absent(name):
    r = suite.TOOLS.post("/v1/chat/completions", {"messages": HI, "max_completion_tokens": 1, name: None})
    equal((r.status_code, "x-lapis-warnings" in r.headers), (200, False), r.text)


@case({"stream_options": {}, "stream": True}, {"response_format": {"type": "text"}}, {"tool_choice": None, "tools": None}, {"stop": []}, {"logit_bias": {}}, {"metadata": {}})
def C10_empty_is_absent(more):
    equal(suite.TOOLS.post("/v1/chat/completions", {"messages": HI, "max_tokens": 1, **more}).status_code, 200)


TAKE = {"type": "function", "function": {"name": "take", "parameters": {"type": "object", "properties": {"n": {"enum": [1, 2]}, "why": {"enum": ["fun", "need"]}}, "required": ["n", "why"], "additionalProperties": False}}}
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {"enum": ["sky"]}}, "required": ["at"], "additionalProperties": False}}}


@case(1, 2, 3, 4)
def C11_joined_tool_deltas(seed):
    calls = {}
    for chunk in chat([{"role": "user", "content": f"Go {seed}"}], suite.TOOLS, tools=[TAKE, LOOK], tool_choice="required", stream=True, temperature=1, seed=seed, max_tokens=150):
        for delta in chunk.choices[0].delta.tool_calls or []:
            assert delta.index is not None and delta.function is not None, delta
            if delta.index not in calls:
                assert delta.id and delta.type == "function" and delta.function.name, delta
                calls[delta.index] = (delta.function.name, "")
            else:
                equal((delta.id, delta.type, delta.function.name), (None, None, None))
            if delta.function.arguments is not None:
                name, before = calls[delta.index]
                calls[delta.index] = (name, before + delta.function.arguments)
        reason = chunk.choices[0].finish_reason
    equal(sorted(calls), list(range(len(calls))))
    for name, raw in list(calls.values())[: len(calls) - (reason == "length")]:
        holds((TAKE if name == "take" else LOOK)["function"]["parameters"], json.loads(raw))


def nulls(value, at="$"):
    if isinstance(value, dict):
        return [p for k, v in value.items() for p in ([f"{at}.{k}"] if v is None else nulls(v, f"{at}.{k}"))]
    return [p for i, v in enumerate(value) for p in nulls(v, f"{at}[{i}]")] if isinstance(value, list) else []


@case({}, {"tools": [TAKE], "tool_choice": "required", "parallel_tool_calls": False}, {"logprobs": True})
def C12_no_null_keys(more):
    body = {"messages": FOX, "max_tokens": 60, **more}
    whole = suite.TOOLS.post("/v1/chat/completions", body).json()
    calls = "tools" in more
    # What a strict schema asks for: content is there, and null only beside calls; refusal of log-probabilities.
    allowed = {"$.choices[0].message.content"} if calls else {"$.choices[0].logprobs.refusal"}
    assert set(nulls(whole)) <= allowed, nulls(whole)
    equal(whole["choices"][0]["message"]["content"] is None, calls)
    for line in suite.TOOLS.post("/v1/chat/completions", {**body, "stream": True}).text.split("\n"):
        if line.startswith("data: {"):
            found = {p for p in nulls(json.loads(line[6:])) if not p.endswith((".finish_reason", ".refusal"))}
            equal(found, set(), line)


@case("text", "object", "empty text", "pretty")
def C13_arguments_of_history(form):
    arguments = {"city": "Rome", "days": 2}
    given = {"text": json.dumps(arguments), "object": arguments, "empty text": "", "pretty": json.dumps(arguments, indent=2)}[form]
    call = lambda a: {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "weather", "arguments": a}}]}
    prompt = template([*HI, call(given), {"role": "tool", "tool_call_id": "c", "content": "sun"}])
    if form != "empty text":
        equal(prompt, template([*HI, call(arguments), {"role": "tool", "tool_call_id": "c", "content": "sun"}]))
    equal(suite.TOOLS.post("/v1/chat/completions", {"messages": [*HI, call(given), {"role": "tool", "tool_call_id": "c", "content": "sun"}], "max_tokens": 1}).status_code, 200)


@case("auto", "none", {"name": "take"})
def C14_legacy_functions(choice):
    body = {"messages": FOX, "functions": [TAKE["function"]], "function_call": choice, "max_tokens": 160, "temperature": 0}
    r = suite.TOOLS.post("/v1/chat/completions", body)
    equal((r.status_code, r.json()["object"]), (200, "chat.completion"), r.text)
    message = r.json()["choices"][0]["message"]
    calls = message.get("tool_calls") or ([{"function": message["function_call"]}] if "function_call" in message else [])
    if choice == "none":
        equal(calls, [])
    if isinstance(choice, dict):
        equal(calls[0]["function"]["name"], "take")
        holds(TAKE["function"]["parameters"], json.loads(calls[0]["function"]["arguments"]))


@case(False, True)
def C14_both_keys_of_reasoning(stream):
    body = {"messages": FOX, "max_tokens": 30, "enable_thinking": True, "thinking_budget": 6, "logit_bias": {**ENDLESS, str(FIRST + 4): -100}, "stream": stream}
    r = suite.MARKED.post("/v1/chat/completions", body)
    equal(r.status_code, 200, r.text)
    if stream:
        deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in r.text.split("\n") if line.startswith("data: {")]
        equal([d.get("reasoning") for d in deltas], [d.get("reasoning_content") for d in deltas])
        thought, said = ("".join(d.get(k) or "" for d in deltas) for k in ("reasoning", "content"))
    else:
        message = r.json()["choices"][0]["message"]
        equal(message["reasoning"], message["reasoning_content"])
        thought, said = message["reasoning"], message["content"]
        equal(r.json()["usage"]["completion_tokens_details"]["reasoning_tokens"], 7)
    assert thought and said and "think>" not in thought + said, (thought, said)


# C15 to C19


@case("/models", "/v1/models", "/api/version", "/api/tags", "/api/ps")
def C15_open_webui_probes(path):
    r = suite.PLAIN.http.get(path)
    equal((r.status_code, r.headers["content-type"].split(";")[0]), (200, "application/json"))


@case(("POST", "/api/chat"), ("POST", "/api/generate"), ("POST", "/v1/v1/chat/completions"), ("GET", "/v1/v1/models"), ("GET", "/api/models"), ("POST", "/v1/chat"))
def C15_wrong_base_url_is_told_the_right_one(method, path):
    r = suite.PLAIN.http.request(method, path, json={} if method == "POST" else None)
    equal(r.status_code, 404)
    assert "/v1" in r.text.replace(path, ""), r.text


@case(("def f(x):\n    return ", "\n\nprint(f(1))", {}), ("a", "b", {"stop": ["\n"]}), ("", "the end", {"stream": True}), ("Once", " fox", {"n": 2, "seed": 3}))
def C16_filling_in(prefix, suffix, more):
    ids = lambda content: suite.MARKED.post("/tokenize", {"content": content, "add_special": False}).json()["tokens"]
    tokens = [FIRST, *ids(prefix), FIRST + 1, *ids(suffix), FIRST + 2]
    def ask(body):
        r = suite.MARKED.post("/v1/completions", {"max_tokens": 12, "temperature": 0, **more, **body})
        equal(r.status_code, 200, r.text)
        if not more.get("stream"):
            equal(r.json()["usage"]["prompt_tokens"], len(tokens))
            return [c["text"] for c in r.json()["choices"]]
        return ["".join(json.loads(line[6:])["choices"][0]["text"] for line in r.text.split("\n") if line.startswith("data: {"))]
    equal(ask({"prompt": prefix, "suffix": suffix}), ask({"prompt": tokens}))


@case()
def C16_filling_in_is_refused_without_marks():
    error(suite.PLAIN.post("/v1/completions", {"prompt": "a", "suffix": "b", "max_tokens": 1}), 400, "suffix", holds="fill in")


@case()
def C16_a_cancel_per_key_press():
    free = []
    for i in range(12):
        with socket.create_connection(("127.0.0.1", suite.PLAIN.port), timeout=10) as s:
            s.sendall(request({"prompt": "def f(" + "x" * i, "max_tokens": 400, "logit_bias": ENDLESS, "n": 4}, path="/v1/completions"))
            until(lambda: suite.PLAIN.metric("running") >= 1, 5, "nothing runs")
        begin = time.monotonic()
        until(lambda: suite.PLAIN.metric("running") == 0, 2, "it runs on")
        free.append(time.monotonic() - begin)
    suite.told("a place is free after its client has gone", free)
    assert statistics.median(free) < 0.2, free


@case(("x-stainless-os, x-stainless-lang, authorization",), ("anthropic-version, anthropic-beta, x-api-key",), ("content-type, anthropic-dangerous-direct-browser-access",))
def C17_preflights(headers):
    ask = {"origin": "http://localhost:5173", "access-control-request-method": "POST", "access-control-request-headers": headers, "access-control-request-private-network": "true"}
    for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses"):
        r = httpx.options(suite.KEYED.url + path, headers=ask)
        assert r.status_code in (200, 204), r.text
        equal({h.strip() for h in headers.split(",")} - {h.strip().lower() for h in r.headers["access-control-allow-headers"].split(",")}, set())
        equal((r.headers["access-control-allow-origin"], r.headers["access-control-allow-private-network"]), (ask["origin"], "true"))
    bad = httpx.options(suite.KEYED.url + "/v1/messages", headers={**ask, "origin": "https://evil.example"})
    equal([h for h in bad.headers if h.startswith("access-control-allow")], [])


@case()
def C18_chunked_kept_alive_and_pipelined():
    body = json.dumps({"messages": HI, "max_tokens": 1}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked = head + b"".join(b"%X;ext=1\r\n%s\r\n" % (len(p), p) for p in (body[:9], body[9:])) + b"0\r\nTrailer: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", suite.PLAIN.port), timeout=20) as s:
        file = s.makefile("rb")
        for data, want in ((chunked, [200]), (chunked + request({"messages": HI, "max_tokens": 1}), [200, 200]), (request({}) + chunked, [400, 200])):
            s.sendall(data)
            equal([answer(file)[0] for _ in want], want)


@case(("/v1/chat/completions", "lapis-dem"), ("/v1/completions", "lapis_demo"), ("/v1/responses", "lapis-demo2"), ("/v1/messages", "apis-demo"), ("/v1/embeddings", "lapis-dmo"), ("/v1/chat/completions", "mlx-community/Qwen3-0.6B-4bit"))
def C19_wrong_model_name(path, name):
    hub = pathlib.Path(os.environ.get("HF_HOME", pathlib.Path.home() / ".cache" / "huggingface"))
    before = sorted(hub.glob("hub/*")) if hub.exists() else None
    r = suite.PLAIN.post(path, {"model": name, "max_tokens": 1, **({"input": "x"} if path in ("/v1/responses", "/v1/embeddings") else {"messages": HI, "prompt": "x"})})
    if path == "/v1/messages":
        refused(r, 404, "not_found_error", "lapis-demo")
    else:
        error(r, 404, "model", "not_found_error", holds="lapis-demo" if "/" not in name else name)
    equal(sorted(hub.glob("hub/*")) if hub.exists() else None, before, "something was downloaded:")


# Flags


@case()
def flag_response_memory():
    """A response that is gone on with is read as the whole conversation would be."""
    server = suite.Server(suite.PROGRAM, "--response-memory", "2")
    try:
        ask = lambda input, **more: server.client.responses.create(model="default", input=input, temperature=0, max_output_tokens=8, **more)
        first = ask("Tell me a story")
        equal(first.store, True)
        again = ask("And then?", previous_response_id=first.id)
        whole = ask([{"role": "user", "content": "Tell me a story"}, *[i.model_dump() for i in first.output], {"role": "user", "content": "And then?"}], store=False)
        equal((again.output_text, again.usage.input_tokens, again.previous_response_id), (whole.output_text, whole.usage.input_tokens, first.id))
        streamed = list(ask("More", previous_response_id=again.id, stream=True))[-1].response
        equal(streamed.usage.input_tokens > again.usage.input_tokens + 8, True)
        # Two are remembered, and those that must not be are not.
        for gone in (first.id, whole.id, "resp_x"):
            r = server.post("/v1/responses", {"input": "hi", "previous_response_id": gone})
            equal(error(r, 400, "previous_response_id")["code"], "previous_response_not_found")
        assert ask("Go", previous_response_id=streamed.id).usage.input_tokens > streamed.usage.input_tokens
    finally:
        server.stop()


@case((), ("--log-content",), ("--log-content", "--log-format", "json"))
def flag_log_content(*flags):
    server = suite.Server(suite.PROGRAM, *flags)
    try:
        said = text(chat([{"role": "user", "content": "a secret\nword"}], server, max_tokens=8, temperature=0))
        until(lambda: any("POST /v1/chat" in line or '"route":"/v1/chat' in line for line in server.lines), 5, "no line in the log")
        log = "".join(server.lines)
        shown = ["a secret\\nword" in log, json.dumps(said)[1:-1] in log]
        equal(shown, [bool(flags)] * 2, log)
        assert "a secret\nword" not in log
    finally:
        server.stop()


@case()
def flag_chat_template_missing_and_role_mapping():
    """A model without a template reads a conversation by the words of the request."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder) / "bare"
        shutil.copytree(suite.DEMO, folder)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings.pop("chat_template")
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        server = suite.Server(suite.PROGRAM, "--model", str(folder))
        try:
            roles = {"system": "RULE: ", "user": "USER: ", "assistant": "ASSISTANT: ", "stop": "\n"}
            body = {"messages": [{"role": "system", "content": "Be kind."}, *HI], "max_tokens": 4, "temperature": 0}
            error(server.post("/v1/chat/completions", body), 400, "messages", holds="template")
            got = server.post("/v1/chat/completions", {**body, "role_mapping": roles}).json()
            want = server.post("/v1/completions", {"prompt": "RULE: Be kind.\nUSER: hi\nASSISTANT:", "max_tokens": 4, "temperature": 0}).json()
            equal((got["usage"]["prompt_tokens"], got["choices"][0]["message"]["content"].strip()), (want["usage"]["prompt_tokens"], want["choices"][0]["text"].strip()))
        finally:
            server.stop()


@case()
def metrics_of_loads():
    assert suite.PLAIN.metric("model_load_seconds_count") >= 1 and suite.PLAIN.metric("model_load_seconds_sum") > 0
