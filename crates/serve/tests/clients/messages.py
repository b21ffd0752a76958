"""Cases of the Anthropic routes, driven by the official client and by httpx."""

import concurrent.futures
import json
import re
import socket

import anthropic
import httpx

import suite
from suite import ENDLESS, FOX, HI, JSON, case, chat, equal, holds, request, text, until

SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
          "required": ["city", "days"], "additionalProperties": False}
WEATHER = {"name": "weather", "description": "The weather of a city.", "input_schema": SCHEMA}
CLOCK = {"name": "clock", "input_schema": {"type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"], "additionalProperties": False}}


def client(server=None, **more):
    server = server or suite.PLAIN
    return anthropic.Anthropic(base_url=server.url, api_key=server.key or "none", max_retries=0, timeout=60, **more)


def say(messages=None, server=None, **more):
    more = {"model": "default", "max_tokens": 24, **more}
    numbers = {name: more.pop(name) for name in ("temperature", "top_p", "top_k") if name in more}
    more["extra_body"] = {**numbers, **more.get("extra_body", {})}  # the client has no names for them any more
    return client(server).messages.create(messages=messages or FOX, **more)


def post(path="/v1/messages", server=None, **body):
    return (server or suite.PLAIN).http.post(path, json={"max_tokens": 4, "messages": HI, **body})


def refused(response, status, kind, holds=""):
    """Checks an answer that refuses."""
    equal(response.status_code, status, response.text)
    body = response.json()
    equal(body["type"], "error")
    equal(set(body["error"]), {"type", "message"})
    equal(body["error"]["type"], kind)
    equal(body["request_id"], response.headers["x-request-id"])
    assert holds in body["error"]["message"], body["error"]["message"]


@case()
def message_tools_beside_a_format():
    format = {"format": {"type": "json_schema", "schema": CLOCK["input_schema"]}}
    ask = lambda tool, **more: post(server=suite.TOOLS, messages=FOX, max_tokens=200, tools=[tool], output_config=format, **more)
    [block] = ask(CLOCK).json()["content"]
    if block["type"] == "text":
        holds(CLOCK["input_schema"], json.loads(block["text"]))
    odd = {**CLOCK, "input_schema": {**CLOCK["input_schema"], "not": {"type": "null"}}}
    assert "tool clock: `not`" in ask(odd).headers["x-lapis-warnings"]
    refused(ask({**odd, "strict": True}), 400, "invalid_request_error", "`not`")
    assert "tool clock: `not`" in ask(odd, tool_choice={"type": "any"}).headers["x-lapis-warnings"]
    # The format of an answer is a promise here.
    refused(post(output_config={"format": {"type": "json_schema", "schema": odd["input_schema"]}}), 400, "invalid_request_error", "`not`")


def texts(message):
    return "".join(b.text for b in message.content if b.type == "text")


def events(**body):
    """The events of a stream, as (name, data)."""
    sent = post(stream=True, **body).text
    found = [e.split("\n") for e in sent.strip().split("\n\n")]
    assert all(len(e) == 2 for e in found), sent[:500]
    return [(e[0].removeprefix("event: "), json.loads(e[1].removeprefix("data: "))) for e in found]


@case()
def message_plain():
    got = say()
    equal((got.type, got.role, got.model), ("message", "assistant", "default"))
    assert got.id.startswith("msg_") and [b.type for b in got.content] == ["text"] and texts(got), got
    equal(got.stop_reason, "max_tokens")
    equal((got.stop_sequence, got.usage.output_tokens), (None, 24))


@case()
def message_is_what_openai_says():
    equal(texts(say(temperature=0)), text(chat(FOX, max_tokens=24, temperature=0)))


@case()
def message_model_absent():
    got = post().json()
    assert got["model"] and got["model"] != "default", got["model"]


@case()
def message_keys():
    equal(set(post().json()), {"id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"})


@case("end_turn", "max_tokens", "stop_sequence")
def message_reasons(reason):
    whole = texts(say(max_tokens=400))
    more = {"end_turn": {"max_tokens": 400}, "max_tokens": {"max_tokens": 3},
            "stop_sequence": {"max_tokens": 400, "stop_sequences": ["zzz", whole[20:26]]}}[reason]
    got = say(**more)
    equal(got.stop_reason, reason)
    equal(got.stop_sequence, whole[20:26] if reason == "stop_sequence" else None)
    if reason == "stop_sequence":
        equal(texts(got), whole[:whole.index(whole[20:26])])


@case()
def message_max_tokens_absent():
    got = suite.PLAIN.http.post("/v1/messages", json={"messages": FOX}).json()
    equal(got["stop_reason"], "end_turn")


@case("text", "blocks", "cached", "several")
def message_system(form):
    block = {"type": "text", "text": "Be brief."}
    system = {"text": "Be brief.", "blocks": [block], "cached": [{**block, "cache_control": {"type": "ephemeral"}}],
              "several": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]}[form]
    count = client().messages.count_tokens(model="default", messages=HI, system=system).input_tokens
    bare = client().messages.count_tokens(model="default", messages=HI).input_tokens
    assert count > bare, (count, bare)
    assert texts(say(system=system))


@case("string", "blocks", "cached")
def message_content(form):
    text = FOX[0]["content"]
    content = {"string": text, "blocks": [{"type": "text", "text": text}],
               "cached": [{"type": "text", "text": text, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]}[form]
    equal(texts(say([{"role": "user", "content": content}])), texts(say()))


@case()
def message_roles_in_a_row():
    one = [{"role": "user", "content": "a\n\nb"}]
    two = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    count = lambda m: client().messages.count_tokens(model="default", messages=m).input_tokens
    equal(count(two), count(one))


@case()
def message_prefill():
    """A last message of the assistant is gone on with."""
    start = texts(say(max_tokens=12))
    rest = texts(say([*FOX, {"role": "assistant", "content": start}], max_tokens=12))
    equal(start + rest, texts(say(max_tokens=24)))


@case(("temperature", 0.7), ("top_p", 0.9), ("top_k", 5), ("temperature", 0), ("top_k", 0), ("top_p", 1))
def message_sampling(name, value):
    assert texts(say(max_tokens=8, **{name: value}))


@case("document", "search_result", "thinking", "unsigned", "redacted", "thinking last")
def message_blocks_of_history(kind):
    block = {
        "document": {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "A fox."}},
        "search_result": {"type": "search_result", "source": "a", "title": "b", "content": [{"type": "text", "text": "A fox."}]},
        "thinking": {"type": "thinking", "thinking": "Hm.", "signature": "foreign"},
        "unsigned": {"type": "thinking", "thinking": "Hm."},
        "redacted": {"type": "redacted_thinking", "data": "abc"},
        "thinking last": {"type": "thinking", "thinking": "Hm.", "signature": ""},
    }[kind]
    user = kind in ("document", "search_result")
    said = [{"type": "text", "text": "Hello."}]
    blocks = [*said, block] if kind == "thinking last" else [block, *said]
    messages = [{"role": "user", "content": blocks}] if user else [*HI, {"role": "assistant", "content": blocks}, *HI]
    equal(post(messages=messages).status_code, 200)


@case()
def message_unknown_block_of_history():
    messages = [*HI, {"role": "assistant", "content": [{"type": "novel", "x": 1}, {"type": "text", "text": "yes"}]}, *HI]
    got = post(messages=messages)
    equal(got.status_code, 200, got.text)
    assert "novel" in got.headers["x-lapis-warnings"]


PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0xLjQK"}}


@case()
def message_document_that_is_no_text():
    refused(post(messages=[{"role": "user", "content": [PDF, {"type": "text", "text": "What is it?"}]}]), 400, "invalid_request_error", "document")
    got = post(messages=[{"role": "user", "content": [PDF, {"type": "text", "text": "a"}]}, {"role": "assistant", "content": "b"}, *HI])
    equal(got.status_code, 200, got.text)
    assert "document" in got.headers["x-lapis-warnings"]


@case("A fox.", ([{"type": "text", "text": "A fox."}],))
def message_document_of_content(content):
    count = lambda c: post("/v1/messages/count_tokens", messages=[{"role": "user", "content": c}]).json()["input_tokens"]
    equal(count([{"type": "document", "source": {"type": "content", "content": content}}]), count("A fox."))


@case(True, False)
def message_unknown_part_of_a_result(last):
    parts = [{"type": "novel"}, {"type": "tool_reference", "tool_name": "clock"}, {"type": "text", "text": "x"}]
    messages = [*HI, {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "weather", "input": {}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": parts}]}]
    got = post(server=suite.TOOLS, tools=[WEATHER], messages=messages if last else [*messages, {"role": "assistant", "content": "ok"}, *HI])
    if last:
        return refused(got, 400, "invalid_request_error")
    equal(got.status_code, 200, got.text)
    equal(got.headers["x-lapis-warnings"], "a block of type novel was left out")


@case("text, call", "call, call", "call, text", "text, text")
def message_assistant_in_a_row(kinds):
    make = lambda i, kind: {"type": "text", "text": "I look."} if kind == "text" else {"type": "tool_use", "id": f"t{i}", "name": "weather", "input": {}}
    blocks = [make(i, kind) for i, kind in enumerate(kinds.split(", "))]
    if kinds == "text, text":  # parts are lines of one text, messages are paragraphs
        one = [{"type": "text", "text": "I look.\n\nI look."}]
    else:
        one = blocks
    results = [{"type": "tool_result", "tool_use_id": b["id"], "content": "r"} for b in blocks if b["type"] == "tool_use"] or "r"
    count = lambda said: post("/v1/messages/count_tokens", suite.TOOLS, tools=[WEATHER], messages=[*HI, *said, {"role": "user", "content": results}]).json()["input_tokens"]
    equal(count([{"role": "assistant", "content": [b]} for b in blocks]), count([{"role": "assistant", "content": one}]))


@case()
def message_unknown_block_last():
    refused(post(messages=[{"role": "user", "content": [{"type": "novel"}]}]), 400, "invalid_request_error", "novel")


@case()
def message_image():
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
    refused(post(messages=[{"role": "user", "content": [block]}]), 400, "invalid_request_error", "image")


@case(True, False)
def tool_results(array):
    said = [{"type": "text", "text": "sunny"}] if array else "sunny"
    messages = [*HI, {"role": "assistant", "content": [{"type": "text", "text": "I look."}, {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome", "days": 1}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": said, "is_error": array}, {"type": "text", "text": "And?"}]}]
    got = say(messages, server=suite.TOOLS, tools=[WEATHER])
    assert got.content


@case(*[(kind, stream) for kind in ("any", "tool", "none", "auto") for stream in (False, True)])
def tool_choice(kind, stream):
    choice = {"type": kind, **({"name": "clock"} if kind == "tool" else {})}
    more = dict(model="default", max_tokens=300, messages=FOX, tools=[WEATHER, CLOCK], tool_choice=choice)
    if stream:
        with client(suite.TOOLS).messages.stream(**more) as s:
            got = s.get_final_message()
    else:
        got = client(suite.TOOLS).messages.create(**more)
    calls = [b for b in got.content if b.type == "tool_use"]
    if kind in ("any", "tool"):
        assert calls and got.stop_reason == "tool_use", got
        for call in calls:
            assert call.id.startswith("toolu_"), call.id
            holds((CLOCK if call.name == "clock" else WEATHER)["input_schema"], call.input)
        equal(len({c.id for c in calls}), len(calls))
    if kind == "tool":
        equal([c.name for c in calls], ["clock"])
    if kind == "none":
        equal(calls, [])


@case()
def tool_choice_single():
    for seed in range(4):
        got = say([{"role": "user", "content": f"go {seed}"}], server=suite.TOOLS, tools=[CLOCK], max_tokens=200, temperature=1,
                  tool_choice={"type": "any", "disable_parallel_tool_use": True})
        equal([b.type for b in got.content].count("tool_use"), 1)


@case(({"type": "tool", "name": "nope"}, "among the tools"), ({"type": "tool"}, "name"), ({"type": "what"}, "type"), ({"type": "any"}, "no tools"))
def tool_choice_wrong(choice, holds):
    tools = [] if holds == "no tools" else [CLOCK]
    refused(post(server=suite.TOOLS, tools=tools, tool_choice=choice), 400, "invalid_request_error", holds)


@case({"name": 5}, {}, {"name": ""}, {"name": "a", "input_schema": 5}, {"name": "a" * 300})
def tool_wrong(tool):
    refused(post(server=suite.TOOLS, tools=[tool]), 400, "invalid_request_error", "tools")


@case("web_search_20250305", "bash_20250124", "text_editor_20250728", "computer_20250124", "novel")
def tool_of_servers(kind):
    got = post(server=suite.TOOLS, tools=[{"type": kind, "name": "x"}, WEATHER])
    equal(got.status_code, 200, got.text)
    assert kind in got.headers["x-lapis-warnings"]


@case()
def tool_more_keys():
    tool = {**WEATHER, "defer_loading": True, "strict": True, "cache_control": {"type": "ephemeral"}, "input_examples": [{}], "type": "custom"}
    equal(post(server=suite.TOOLS, tools=[tool]).status_code, 200)


@case()
def stream_order():
    found = events(messages=FOX, max_tokens=16)
    names = [name for name, _ in found if name != "ping"]
    equal(names[:2], ["message_start", "content_block_start"])
    equal(names[-3:], ["content_block_stop", "message_delta", "message_stop"])
    equal(set(names[2:-3]), {"content_block_delta"})
    assert all(name == data["type"] for name, data in found)
    start, delta = found[0][1]["message"], found[-2][1]
    equal((start["content"], start["stop_reason"]), ([], None))
    assert start["usage"]["input_tokens"] + start["usage"]["cache_read_input_tokens"] > 0, start
    equal(delta["delta"], {"stop_reason": "max_tokens", "stop_sequence": None})
    equal(delta["usage"]["output_tokens"], 16)


@case()
def stream_indexes():
    found = events(server=suite.TOOLS, messages=FOX, tools=[CLOCK, WEATHER], tool_choice={"type": "any"}, max_tokens=300, temperature=1)
    open_, next_ = None, 0
    for name, data in found:
        if name == "content_block_start":
            equal((open_, data["index"]), (None, next_))
            open_, next_ = data["index"], next_ + 1
            equal(data["content_block"].get("input", {}), {})
        elif name == "content_block_delta":
            equal(data["index"], open_)
        elif name == "content_block_stop":
            equal(data["index"], open_)
            open_ = None
    equal(open_, None)
    assert next_ >= 1


@case()
def stream_input_rebuilt():
    found = events(server=suite.TOOLS, messages=FOX, tools=[WEATHER], tool_choice={"type": "any", "disable_parallel_tool_use": True}, max_tokens=200)
    pieces = [d["delta"]["partial_json"] for n, d in found if n == "content_block_delta" and d["delta"]["type"] == "input_json_delta"]
    holds(SCHEMA, json.loads("".join(pieces)))


@case()
def stream_is_whole():
    with client().messages.stream(model="default", max_tokens=60, messages=FOX) as s:
        text = "".join(s.text_stream)
        final = s.get_final_message()
    equal(text, texts(say(max_tokens=60, temperature=0)))
    equal(texts(final), text)
    equal(final.usage.output_tokens, 60)


@case()
def stream_empty_reply():
    found = events(messages=HI, max_tokens=1, stop_sequences=["a", "e", "i", "o", "u", "H", "O", "T", "."])
    names = [n for n, _ in found if n != "ping"]
    equal((names[1], names[-3]), ("content_block_start", "content_block_stop"))


@case()
def stream_cancelled():
    before = suite.PLAIN.metric("cancelled_total")
    with client().messages.stream(model="default", max_tokens=2000, messages=FOX, stop_sequences=["\0"]) as s:
        next(iter(s.text_stream))
    until(lambda: suite.PLAIN.metric("running") == 0 or suite.PLAIN.metric("cancelled_total") > before, 5, "it runs on")


@case(*["a", "tall", "many"])
def count_is_exact(kind):
    messages = {"a": HI, "tall": [{"role": "user", "content": "word " * 200}], "many": [*HI, {"role": "assistant", "content": "Yes."}, *HI]}[kind]
    more = {"system": "Be brief.", "tools": [WEATHER]}
    count = client(suite.TOOLS).messages.count_tokens(model="default", messages=messages, **more).input_tokens
    for _ in range(2):
        u = say(messages, server=suite.TOOLS, max_tokens=1, **more).usage
        equal(u.input_tokens + u.cache_read_input_tokens, count)


@case("/v1/messages/count_tokens", "/v1/messages/count_tokens?beta=true")
def count_route(path):
    got = suite.PLAIN.http.post(path, json={"model": "default", "messages": HI})
    equal(set(got.json()), {"input_tokens"})


@case()
def count_beside_generation():
    """It does not wait for what is being written."""
    with socket.create_connection(("127.0.0.1", suite.PLAIN.port)) as s:
        s.sendall(request({"messages": FOX, "n": 8, "logit_bias": ENDLESS, "stream": True}))
        until(lambda: suite.PLAIN.metric("running") >= 1, 5, "nothing runs")
        assert client().messages.count_tokens(model="default", messages=HI, timeout=2).input_tokens > 0


@case()
def usage_of_a_second_turn():
    """What the first turn read is not read again."""
    messages = [{"role": "user", "content": "Tell me about " + "a fox and a hare and " * 20}]
    first = say(messages)
    again = say([*messages, {"role": "assistant", "content": texts(first)}, *HI])
    u = again.usage
    assert u.cache_read_input_tokens >= 0.8 * (first.usage.input_tokens + first.usage.cache_read_input_tokens), u


# Claude Code


def code(turn, messages, header=None):
    """A request as Claude Code sends it."""
    system = [{"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1.{turn}; cch={turn:05};"},
              {"type": "text", "text": "You are a careful engineer. " * 12, "cache_control": {"type": "ephemeral"}}]
    tools = [{**WEATHER, "defer_loading": False}, {**CLOCK, "defer_loading": True}, {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}]
    return dict(model="default", max_tokens=16, system=system, messages=messages, tools=tools, thinking={"type": "adaptive"},
                output_config={"effort": "high"}, metadata={"user_id": "user_1_account__session_2"}, stream=True,
                context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]})


BETA = {"anthropic-version": "2023-06-01", "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14", "x-app": "cli",
        "user-agent": "claude-cli/2.1.4 (external, cli)", "x-stainless-lang": "js"}


@case()
def claude_code_turns():
    """The block that changes with every request stays out of the prompt."""
    messages = [{"role": "user", "content": [{"type": "text", "text": "<system-reminder>be kind</system-reminder>"}, {"type": "text", "text": "Tell me a story"}]}]
    send = lambda turn, m: suite.TOOLS.http.post("/v1/messages?beta=true", json=code(turn, m), headers=BETA)
    count = lambda turn, m: suite.TOOLS.http.post("/v1/messages/count_tokens?beta=true", headers=BETA,
                                                json={k: v for k, v in code(turn, m).items() if k not in ("max_tokens", "stream")}).json()["input_tokens"]
    first = send(1, messages)
    equal(first.status_code, 200, first.text)
    assert "web_search" in first.headers["x-lapis-warnings"]
    shared = count(1, messages)
    equal(count(7, messages), shared)
    more = [*messages, {"role": "assistant", "content": [{"type": "thinking", "thinking": "", "signature": "s"}, {"type": "text", "text": "Once."}]}, {"role": "user", "content": "Go on"}]
    second = send(2, more).text
    delta = json.loads(re.search(r"event: message_delta\ndata: (.*)", second)[1])
    cached = delta["usage"]["cache_read_input_tokens"]
    assert cached >= 0.95 * (shared - 8), (cached, shared)


@case("enabled", "adaptive", "disabled", "budget")
def thinking(kind):
    value = {"type": "enabled", "budget_tokens": 1024} if kind == "budget" else {"type": kind}
    equal(post(thinking=value).status_code, 200)


@case({"type": "what"}, {})
def thinking_wrong(value):
    refused(post(thinking=value), 400, "invalid_request_error", "thinking")


@case("low", "medium", "high", "max")
def effort(value):
    equal(post(output_config={"effort": value}).status_code, 200)


@case(False, True)
def output_format(stream):
    got = say(max_tokens=300, stream=stream, extra_body={"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}})
    if stream:
        text = "".join(e.delta.text for e in got if e.type == "content_block_delta")
    else:
        text = texts(got)
    holds(SCHEMA, json.loads(text))


@case({"format": {"type": "json_schema"}}, {"format": {"type": "xml"}}, {"format": 5}, {"effort": 5})
def output_config_wrong(config):
    refused(post(output_config=config), 400, "invalid_request_error", "output_config")


@case()
def output_format_of_old():
    got = post(messages=FOX, max_tokens=200, output_format={"type": "json_schema", "schema": SCHEMA}).json()
    holds(SCHEMA, json.loads(got["content"][-1]["text"]))
    refused(post(output_format={"type": "xml"}), 400, "invalid_request_error", "output_format")


@case()
def request_id_of_the_client():
    got = say(max_tokens=1)
    assert got._request_id.startswith("req_"), got._request_id


@case()
def models_of_the_client():
    page = client().models.list()
    model, = page.data
    equal((model.id, model.type, model.display_name, page.has_more), ("lapis-demo", "model", "lapis-demo", False))
    assert model.created_at.year > 2020, model.created_at


# Errors


@case(*[(path, body) for path in ("/v1/messages", "/v1/messages/count_tokens") for body in
        (b"", b"[]", b"{", b'{"messages": []}', b"{}", b'{"messages": [5]}', b'{"messages": [{"role": "user"}]}', b'{"messages": [{"role": "x", "content": "a"}]}',
         b'{"messages": [{"role": "user", "content": 5}]}', b'\xff', b'{"messages": "a"}', b'{"messages": [{"role": "user", "content": [{"type": "text"}]}]}')])
def bodies_wrong(path, body):
    refused(suite.PLAIN.http.post(path, content=body, headers=JSON), 400, "invalid_request_error")


@case(*[(name, value) for name in ("max_tokens", "temperature", "top_p", "top_k", "stream", "tools", "tool_choice", "thinking", "output_config", "system", "stop_sequences", "model")
        for value in ("x", -1, 1e308, [5], {"a": 1})])
def fields_wrong(name, value):
    got = post(**{name: value})
    assert got.status_code in (200, 400, 404), got.text
    if got.status_code != 200:
        refused(got, got.status_code, "invalid_request_error" if got.status_code == 400 else "not_found_error")
    equal(post().status_code, 200)


@case("max_tokens", "temperature", "top_p", "top_k", "stream", "tools", "tool_choice", "thinking", "output_config", "system", "stop_sequences", "model", "metadata")
def null_is_absent(name):
    equal(post(**{name: None}).status_code, 200)


@case()
def model_unknown():
    try:
        say(model="claude-nope")
        raise AssertionError("no error")
    except anthropic.NotFoundError as e:
        equal(e.body["error"]["type"], "not_found_error")


@case()
def model_of_any_name():
    """--alias claude-*=default"""
    assert texts(say(server=suite.KEYED, model="claude-opus-4-8"))
    names = [m["id"] for m in suite.KEYED.http.get("/v1/models").json()["data"]]
    assert not any("*" in name for name in names), names
    for name in ("claude-other", "claud"):
        equal(post(server=suite.KEYED, model=name).status_code, 404, name)


@case("none", "wrong", "right", "bearer")
def keys(kind):
    headers = {"none": {}, "wrong": {"x-api-key": "nope"}, "right": {"x-api-key": "first-key-123"}, "bearer": {"authorization": "Bearer second-key"}}[kind]
    got = httpx.post(suite.KEYED.url + "/v1/messages", json={"messages": HI, "max_tokens": 1}, headers=headers, timeout=20)
    if kind in ("none", "wrong"):
        refused(got, 401, "authentication_error")
    else:
        equal(got.status_code, 200)


@case()
def keys_client():
    try:
        anthropic.Anthropic(base_url=suite.KEYED.url, api_key="bad", max_retries=0).messages.create(model="default", max_tokens=1, messages=HI)
        raise AssertionError("no error")
    except anthropic.AuthenticationError:
        pass


@case()
def too_long():
    refused(post(messages=[{"role": "user", "content": "word " * 20_000}]), 400, "invalid_request_error", "context")


@case()
def method_wrong():
    got = suite.PLAIN.http.get("/v1/messages")
    equal((got.status_code, got.json()["type"]), (405, "error"))


@case()
def many_at_once():
    whole = [texts(say([{"role": "user", "content": f"Tell me about {i} foxes"}], temperature=0)) for i in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda i: texts(say([{"role": "user", "content": f"Tell me about {i} foxes"}], temperature=0)), range(8)))
    equal(got, whole)
