"""Formats that hold, and tools."""

import concurrent.futures
import json
import re

import suite
from suite import FOX, HI, case, chat, equal, error, holds, joined, text


SCHEMA = {"type": "object", "additionalProperties": False, "required": ["yes", "kind", "count", "list"],
          "properties": {"yes": {"type": "boolean"}, "kind": {"enum": ["fox", "owl"]},
                         "count": {"type": "integer", "minimum": 0, "maximum": 9},
                         "list": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}}}


def dense(server):
    """A bias against the line ends that JSON may have anywhere, and blanks after them: they take more time than all else."""
    return {str(t): -100 for t in server.post("/tokenize", {"content": "\n", "add_special": False}).json()["tokens"]}


@case(*[(seed, strict, stream) for seed in (1, 2) for strict in (True, False, None) for stream in (False, True)])
def format_schema(seed, strict, stream):
    format = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": strict}}
    bias = {} if seed == 1 else dense(suite.PLAIN)
    reply = chat(FOX, seed=seed, temperature=1, response_format=format, stream=stream, logit_bias=bias)
    got, reasons = joined(reply)[:2] if stream else (text(reply), [reply.choices[0].finish_reason])
    value = json.loads(got)
    equal(reasons, ["stop"])
    holds(SCHEMA, value)
    equal(list(value), list(SCHEMA["properties"]))


@case(False, True)
def format_object(stream):
    bias = {str(t): 12 for t in suite.PLAIN.post("/tokenize", {"content": "}"}).json()["tokens"]}
    reply = chat(FOX, seed=1, response_format={"type": "json_object"}, logit_bias=bias, stream=stream)
    assert isinstance(json.loads(joined(reply)[0] if stream else text(reply)), dict)


@case()
def format_text():
    equal(text(chat(FOX, temperature=0, max_tokens=5, response_format={"type": "text"})), text(chat(FOX, temperature=0, max_tokens=5)))


@case()
def format_regex():
    r = suite.PLAIN.post("/v1/chat/completions", {"messages": FOX, "response_format": {"type": "regex", "regex": "[a-c]{3}-[0-9]{2}"}})
    got = r.json()["choices"][0]["message"]["content"]
    assert re.fullmatch("[a-c]{3}-[0-9]{2}", got), got


@case()
def format_cut_says_length():
    reply = chat(FOX, max_tokens=2, response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}})
    equal(reply.choices[0].finish_reason, "length")


@case()
def format_among_others():
    format = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    ask = lambda i: text(chat(FOX, seed=i, max_tokens=200, **({"response_format": format} if i % 2 else {})))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for i, got in enumerate(pool.map(ask, range(8))):
            if i % 2:
                holds(SCHEMA, json.loads(got))


@case({"type": "what"}, {}, {"type": 5}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {}},
      {"type": "json_schema", "json_schema": {"name": "a", "schema": 5}}, {"type": "regex", "regex": "("}, {"type": "regex"},
      {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nonsense"}}},
      {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": []}}},
      {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "#/nowhere"}}},
      {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": {"type": "object", "not": {}}}})
def format_wrong(format):
    error(suite.PLAIN.post("/v1/chat/completions", {"messages": HI, "max_tokens": 3, "response_format": format}), 400, "response_format")


def formatted(keyword, value, **more):
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False, keyword: value}
    return suite.PLAIN.post("/v1/chat/completions", {"messages": FOX, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, **more}}})


BEYOND = [("not", {"type": "null"}), ("uniqueItems", True), ("contains", {}), ("if", {"type": "null"}), ("propertyNames", {"maxLength": 9}),
          ("dependentRequired", {"a": ["b"]}), ("oneOf", [{"type": "object"}, {"minProperties": 1}]), ("allOf", [{"pattern": "(?=a)"}])]


@case(*BEYOND)
def format_keyword_that_is_not_supported(keyword, value):
    value = {"type": "null"} if keyword == "not" else value
    more = {"then": False} if keyword == "if" else {}
    word = "pattern" if keyword == "allOf" else keyword
    if more:
        value, keyword = [{keyword: value, **more}], "allOf"
    error(formatted(keyword, value, strict=True), 400, "response_format", holds=f"`{word}`")
    for free in ({}, {"strict": False}, {"strict": None}):
        got = formatted(keyword, value, **free)
        equal(got.status_code, 200, got.text)
        warned = got.headers["x-lapis-warnings"]
        assert f"the answer's schema: `{word}`" in warned and "not held to" in warned, warned
        # The rest of the schema holds.
        equal([type(v) for v in json.loads(got.json()["choices"][0]["message"]["content"]).values()], [bool])
    # A grammar that is kept warns as well.
    equal(formatted(keyword, value).headers["x-lapis-warnings"], warned)


# Tools


def tool(name, schema=SCHEMA):
    return {"type": "function", "function": {"name": name, "description": "It does a thing.", "parameters": schema}}


TWO = [tool("look"), tool("take", {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 5}}, "required": ["n"], "additionalProperties": False})]


def parameters(name):
    return next(t["function"]["parameters"] for t in TWO if t["function"]["name"] == name)


def check_call(call):
    assert call.id and call.type == "function"
    holds(parameters(call.function.name), json.loads(call.function.arguments))


@case("look", "take")
def tool_by_name(name):
    reply = chat(FOX, suite.TOOLS, tools=TWO, tool_choice={"type": "function", "function": {"name": name}}, seed=1, max_tokens=300)
    choice = reply.choices[0]
    equal(choice.finish_reason, "tool_calls")
    equal(choice.message.content, None)
    equal([c.function.name for c in choice.message.tool_calls], [name])
    check_call(choice.message.tool_calls[0])


@case(1, 2, 3)
def tool_required(seed):
    reply = chat(FOX, suite.TOOLS, tools=TWO, tool_choice="required", seed=seed, max_tokens=300, parallel_tool_calls=False)
    calls = reply.choices[0].message.tool_calls
    equal((len(calls), reply.choices[0].finish_reason), (1, "tool_calls"))
    check_call(calls[0])


@case(1, 2)
def tool_required_many(seed):
    reply = chat(FOX, suite.TOOLS, tools=TWO, tool_choice="required", seed=seed, max_tokens=300)
    calls = reply.choices[0].message.tool_calls
    assert calls
    for call in calls[: len(calls) - (reply.choices[0].finish_reason == "length")]:
        check_call(call)
    equal(len({c.id for c in calls}), len(calls))


@case("look", "take")
def tool_stream(name):
    ask = dict(tools=TWO, tool_choice={"type": "function", "function": {"name": name}}, seed=1, max_tokens=300)
    ask["logit_bias"] = dense(suite.TOOLS)
    whole = chat(FOX, suite.TOOLS, **ask).choices[0].message.tool_calls
    calls, reasons = {}, []
    for c in chat(FOX, suite.TOOLS, stream=True, **ask):
        for part in c.choices:
            reasons += [part.finish_reason] if part.finish_reason else []
            assert not part.delta.content, part.delta
            for delta in part.delta.tool_calls or []:
                if delta.index not in calls:
                    assert delta.id and delta.type == "function" and delta.function.name
                    calls[delta.index] = [delta.function.name, ""]
                else:
                    assert delta.id is None and delta.type is None and delta.function.name is None, delta
                assert delta.function.arguments is None or isinstance(delta.function.arguments, str)
                calls[delta.index][1] += delta.function.arguments or ""
    equal(reasons, ["tool_calls"])
    equal(list(calls), [0])
    equal(calls[0], [whole[0].function.name, whole[0].function.arguments])
    holds(parameters(name), json.loads(calls[0][1]))


@case()
def tool_stream_in_fragments():
    ask = dict(tools=TWO, tool_choice={"type": "function", "function": {"name": "look"}}, seed=1, max_tokens=300)
    deltas = [c for c in chat(FOX, suite.TOOLS, stream=True, **ask) if c.choices and c.choices[0].delta.tool_calls]
    assert len(deltas) > 3, f"{len(deltas)} deltas"


@case()
def tool_older_form():
    reply = chat(FOX, suite.TOOLS, functions=[t["function"] for t in TWO], function_call={"name": "take"}, max_tokens=100)
    calls = reply.choices[0].message.tool_calls
    assert calls or reply.choices[0].message.function_call, reply
    holds(parameters("take"), json.loads((calls[0].function if calls else reply.choices[0].message.function_call).arguments))


BEGIN = "<tool_call>"


def begins(bias):
    """A bias for or against the first token of a call."""
    return {str(suite.TOOLS.post("/tokenize", {"content": BEGIN, "add_special": False}).json()["tokens"][0]): bias}


FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}


@case(*[(format, stream) for format in (FORMAT, {"type": "json_object"}, {"type": "regex", "regex": "[a-c]{3}"}) for stream in (False, True)])
def tool_free_beside_a_format(format, stream):
    ask = dict(tools=TWO, response_format=format, seed=1, temperature=1, max_tokens=300, parallel_tool_calls=False, stream=stream)
    blanks = dense(suite.TOOLS)
    reply = chat(FOX, suite.TOOLS, logit_bias={**blanks, **begins(30)}, **ask)
    if stream:
        got, reasons, chunks = joined(reply)
        named = [d.function.name for c in chunks for p in c.choices for d in p.delta.tool_calls or [] if d.function.name]
        equal((got, reasons, len(named)), ("", ["tool_calls"], 1))
    else:
        equal((reply.choices[0].finish_reason, reply.choices[0].message.content), ("tool_calls", None))
        [call] = reply.choices[0].message.tool_calls
        check_call(call)
    ends = {str(t): 8 for t in suite.TOOLS.post("/tokenize", {"content": "}"}).json()["tokens"]}
    reply = chat(FOX, suite.TOOLS, logit_bias={**blanks, **ends, **begins(-100)}, **ask)
    got = joined(reply)[0] if stream else text(reply)
    match format["type"]:
        case "json_schema":
            holds(SCHEMA, json.loads(got))
        case "json_object":
            assert isinstance(json.loads(got), dict), got
        case _:
            assert re.fullmatch("[a-c]{3}", got), got


@case(*BEYOND[:6])
def tool_with_a_keyword_that_is_not_supported(keyword, value):
    schema = {**parameters("take"), keyword: value, "then": False}
    ask = lambda choice, strict, **more: suite.TOOLS.post("/v1/chat/completions", {"messages": FOX, "max_tokens": 2, "tool_choice": choice, "parallel_tool_calls": False, **more,
        "tools": [TWO[0], {"type": "function", "function": {**tool("take", schema)["function"], "strict": strict}}]})
    for choice, more in (("required", {}), ({"type": "function", "function": {"name": "take"}}, {}), ("auto", {"response_format": FORMAT})):
        error(ask(choice, True, **more), 400, "tools", holds=f"tools[1].function.parameters: `{keyword}`")
        got = ask(choice, False, **more)
        equal(got.status_code, 200, got.text)
        assert f"tool take: `{keyword}` at # is not held to" in got.headers["x-lapis-warnings"], got.headers
    call = ask({"type": "function", "function": {"name": "take"}}, None, max_tokens=250, logit_bias=dense(suite.TOOLS)).json()["choices"][0]["message"]["tool_calls"][0]
    holds(parameters("take"), json.loads(call["function"]["arguments"]))
    # A tool that need not be called is in nobody's way.
    equal(ask({"type": "function", "function": {"name": "look"}}, None).headers.get("x-lapis-warnings"), None)
    odd = {**schema, "type": "nonsense"}
    got = suite.TOOLS.post("/v1/chat/completions", {"messages": FOX, "max_tokens": 3, "tools": [tool("take", odd)], "response_format": FORMAT})
    equal(got.status_code, 200, got.text)
    assert "tool take: its schema is not held to" in got.headers["x-lapis-warnings"], got.headers


@case()
def tool_strict_and_free():
    """What a model says of its own accord stays what it is; a call would be valid (crates/lm/tests/reply)."""
    strict = lambda schema: {"type": "function", "function": {**tool("take", schema)["function"], "strict": True}}
    ask = lambda tools: chat(FOX, suite.TOOLS, tools=tools, max_tokens=40, temperature=0)
    equal(text(ask([TWO[0], strict(parameters("take"))])), text(ask(TWO)))
    refusal = suite.TOOLS.post("/v1/chat/completions", {"messages": HI, "max_tokens": 2, "tools": [TWO[0], strict({"type": "object", "not": {}})]})
    error(refusal, 400, "tools", holds="tools[1].function.parameters: `not` at #")
    equal(suite.TOOLS.post("/v1/chat/completions", {"messages": HI, "max_tokens": 2, "tool_choice": "none", "tools": [strict({"type": "object", "not": {}})]}).status_code, 200)


@case()
def tool_allowed():
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "take"}}]}}
    for call in chat(FOX, suite.TOOLS, tools=TWO, tool_choice=choice, max_tokens=60, parallel_tool_calls=False).choices[0].message.tool_calls:
        equal(call.function.name, "take")


@case("none", "auto")
def tool_free(choice):
    reply = chat(FOX, suite.TOOLS, tools=TWO, tool_choice=choice, max_tokens=10, temperature=0)
    assert text(reply)


@case("none", "auto", "required", "any")
def tool_choice_as_an_object(kind):
    reply = chat(FOX, suite.TOOLS, tools=TWO, extra_body={"tool_choice": {"type": kind}}, max_tokens=300, seed=1, parallel_tool_calls=False)
    equal(bool(reply.choices[0].message.tool_calls), kind in ("required", "any"), f"{reply}")


@case()
def tool_none_leaves_prompt():
    ask = {"messages": FOX, "tools": TWO}
    assert "take" in suite.TOOLS.post("/apply-template", ask).json()["prompt"]
    plain = chat(FOX, suite.TOOLS, max_tokens=1).usage.prompt_tokens
    equal(chat(FOX, suite.TOOLS, tools=TWO, tool_choice="none", max_tokens=1).usage.prompt_tokens, plain)


@case('{"n": 3}', {"n": 3}, "", "not json")
def tool_history(arguments):
    messages = [*FOX, {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "take", "arguments": arguments}}]},
                {"role": "tool", "tool_call_id": "call_1", "content": "done"}]
    r = suite.TOOLS.post("/v1/chat/completions", {"messages": messages, "tools": TWO, "max_tokens": 2})
    equal(r.status_code, 200, r.text)


@case()
def tool_history_of_older_form():
    ask = lambda said, result: suite.TOOLS.post("/apply-template", {"messages": [*FOX, {"role": "assistant", "content": None, **said}, {"content": "done", **result}], "tools": TWO}).json()["prompt"]
    call = {"name": "take", "arguments": '{"n": 3}'}
    older = ask({"function_call": call}, {"role": "function", "name": "take"})
    equal(older, ask({"tool_calls": [{"id": "call_1", "type": "function", "function": call}]}, {"role": "tool", "tool_call_id": "call_1"}))
    assert '"n"' in older and "<|im_start|>tool" in older, older


@case((TWO, "what", "tool_choice"), (TWO, 5, "tool_choice"), (TWO, {"type": "function", "function": {"name": "no"}}, "tool_choice"),
      (None, "required", "tool_choice"), ([], "required", "tool_choice"), ([5], None, "tools"), ([{}], None, "tools"), ("x", None, "tools"),
      ([{"type": "function"}], None, "tools"), ([{"type": "function", "function": {"name": ""}}], None, "tools"),
      ([tool("a", 5)], None, "tools"), ([tool("t")] * 513, None, "tools"), (TWO, {}, "tool_choice"), (TWO, [], "tool_choice"),
      ([tool("a", {"type": "nonsense"})], "required", "tools"))
def tool_wrong(tools, choice, param):
    error(suite.TOOLS.post("/v1/chat/completions", {"messages": HI, "max_tokens": 2, "tools": tools, "tool_choice": choice}), 400, param)


@case(None, {}, {"type": "object"}, {"type": "object", "properties": {}})
def tool_without_parameters(schema):
    t = tool("go", schema)
    reply = chat(FOX, suite.TOOLS, tools=[t], tool_choice="required", parallel_tool_calls=False, max_tokens=200, temperature=0, logit_bias={str(i): 12 for i in suite.TOOLS.post("/tokenize", {"content": "}"}).json()["tokens"]})
    call = reply.choices[0].message.tool_calls[0]
    equal(call.function.name, "go")
    assert isinstance(json.loads(call.function.arguments), dict)
