"""Cases of /v1/responses, driven by the official client. """

import json
import re
import typing

import openai
import pydantic

FOX = "Tell me a story about a fox"
END = {"2": -100}  # a bias that keeps replies going
CASES = []


def case(*table):
    """Puts a function of the servers among the cases: once, or once for each row of a table."""

    def add(function):
        for row in table or [()]:
            row = row if isinstance(row, tuple) else (row,)
            label = function.__name__ + (f" {row!r:.100}" if row else "")
            CASES.append((label, lambda plain, tools, function=function, row=row: function(plain, tools, *row)))
        return function

    return add


def equal(got, want, what=""):
    assert got == want, f"{what} got {got!r:.300}, want {want!r:.300}"


def respond(server, input=FOX, **more):
    more.setdefault("model", "default")
    more.setdefault("max_output_tokens", 12)
    return server.client.responses.create(input=input, **more)


def refused(call, status, param=None, code=None):
    try:
        call()
    except openai.APIStatusError as e:
        equal((e.status_code, e.param), (status, param), str(e))
        if code:
            equal(e.code, code)
        return e
    raise AssertionError("it is not refused")


SCHEMA = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}


@case()
def responses_tools_beside_a_format(plain, tools):
    begin = tools.post("/tokenize", {"content": "<tool_call>", "add_special": False}).json()["tokens"][0]
    ask = lambda bias, parameters=SCHEMA, **more: tools.post("/v1/responses", {
        "input": FOX, "seed": 1, "max_output_tokens": 200, "logit_bias": {str(begin): bias}, "parallel_tool_calls": False,
        "tools": [{"type": "function", "name": "take", "parameters": parameters, **more}],
        "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA, "strict": True}}})
    [item] = ask(30).json()["output"]
    equal((item["type"], item["name"], list(json.loads(item["arguments"]))), ("function_call", "take", ["n"]))
    [item] = ask(-100).json()["output"]
    equal((item["type"], list(json.loads(item["content"][0]["text"]))), ("message", ["n"]))
    odd = {**SCHEMA, "not": {"type": "null"}}
    assert "tool take: `not`" in ask(-100, odd).headers["x-lapis-warnings"]
    equal(ask(-100, odd, strict=True).status_code, 400)


@case()
def responses_plain(plain, tools):
    got = respond(plain, temperature=0, instructions="You are kind.", metadata={"a": "b"}, user="me", top_p=0.5)
    assert got.id.startswith("resp_") and got.created_at > 1.6e9 and got.output_text
    equal((got.object, got.status, got.error, got.model), ("response", "incomplete", None, "default"))
    equal(got.incomplete_details.reason, "max_output_tokens")
    equal((got.instructions, got.metadata, got.user, got.top_p, got.temperature), ("You are kind.", {"a": "b"}, "me", 0.5, 0))
    equal((got.parallel_tool_calls, got.tools, got.tool_choice, got.truncation), (True, [], "auto", "disabled"))
    u = got.usage
    equal((u.output_tokens, u.total_tokens), (12, u.input_tokens + 12))
    assert u.input_tokens_details.cached_tokens >= 0 and u.output_tokens_details.reasoning_tokens == 0
    equal([(i.type, i.role, i.status) for i in got.output], [("message", "assistant", "incomplete")])


@case("text", "message", "parts", "easy")
def responses_inputs(plain, tools, kind):
    content = [{"type": "input_text", "text": FOX}]
    given = {"text": FOX, "message": [{"type": "message", "role": "user", "content": content}],
             "parts": [{"role": "user", "content": content}], "easy": [{"role": "user", "content": FOX}]}[kind]
    equal(respond(plain, given, temperature=0).output_text, respond(plain, temperature=0).output_text)


@case()
def responses_chat_agrees(plain, tools):
    chat = plain.client.chat.completions.create(model="default", messages=[{"role": "user", "content": FOX}], temperature=0, max_tokens=12)
    equal(respond(plain, temperature=0).output_text, chat.choices[0].message.content)


@case()
def responses_output_goes_back_in(plain, tools):
    first = respond(plain, temperature=0)
    items = [{"role": "user", "content": FOX}, *first.output, {"role": "user", "content": "And then?"}]
    again = respond(plain, [i if isinstance(i, dict) else i.model_dump() for i in items], temperature=0)
    assert again.usage.input_tokens > first.usage.input_tokens + 12 and again.output_text


@case(*[(seed, end) for seed in (1, 2) for end in (False, True)])
def responses_stream(plain, tools, seed, end):
    ask = {"seed": seed, "logit_bias": {"2": 8} if end else END}
    whole = respond(plain, temperature=1, max_output_tokens=40, extra_body=ask)
    stream = list(respond(plain, temperature=1, max_output_tokens=40, stream=True, extra_body=ask))
    equal([e.sequence_number for e in stream], list(range(len(stream))))
    kinds = [e.type for e in stream if e.type != "response.output_text.delta"]
    equal(kinds, ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
                  "response.output_text.done", "response.content_part.done", "response.output_item.done", "response." + whole.status])
    equal("".join(e.delta for e in stream if e.type == "response.output_text.delta"), whole.output_text)
    equal(stream[-1].response.output_text, whole.output_text)
    equal(stream[-1].response.usage.output_tokens, whole.usage.output_tokens)


@case()
def responses_stream_helper(plain, tools):
    with plain.client.responses.stream(model="default", input=FOX, temperature=0, extra_body={"logit_bias": {"2": 4}}) as stream:
        pieces = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        final = stream.get_final_response()
    equal((final.status, final.output_text), ("completed", pieces))


@case()
def responses_stream_helper_cut(plain, tools):
    with plain.client.responses.stream(model="default", input=FOX, max_output_tokens=5, extra_body={"logit_bias": END}) as stream:
        last = list(stream)[-1]
    equal((last.type, last.response.status), ("response.incomplete", "incomplete"))


@case()
def responses_logprobs(plain, tools):
    got = respond(plain, temperature=0, max_output_tokens=4, include=["message.output_text.logprobs"], top_logprobs=3)
    scored = got.output[0].content[0].logprobs
    equal("".join(s.token for s in scored), got.output_text)
    assert all(len(s.top_logprobs) == 3 and s.logprob <= 0 and bytes(s.bytes) for s in scored)


class Fox(pydantic.BaseModel):
    tame: bool
    kind: typing.Literal["red", "grey"]


@case(1, 2, 3)
def responses_parse(plain, tools, seed):
    got = plain.client.responses.parse(model="default", input=FOX, text_format=Fox, temperature=1, extra_body={"seed": seed})
    assert isinstance(got.output_parsed, Fox), got.output_text


@case()
def responses_parse_stream(plain, tools):
    with plain.client.responses.stream(model="default", input=FOX, text_format=Fox) as stream:
        done = [e for e in stream if e.type == "response.output_text.done"]
        assert isinstance(done[0].parsed, Fox) and stream.get_final_response().output_parsed == done[0].parsed


@case()
def responses_json_object(plain, tools):
    bias = {str(t): 12 for t in plain.post("/tokenize", {"content": "}"}).json()["tokens"]}
    got = respond(plain, max_output_tokens=200, text={"format": {"type": "json_object"}}, extra_body={"logit_bias": bias, "seed": 1})
    assert isinstance(json.loads(got.output_text), dict)


class Take(pydantic.BaseModel):
    """Takes things."""

    count: typing.Literal[1, 2, 3]


TAKE = openai.pydantic_function_tool(Take)["function"]
TAKE = {"type": "function", "name": "Take", "parameters": TAKE["parameters"], "strict": True}
PATCH = {"type": "custom", "name": "patch", "format": {"type": "grammar", "syntax": "regex", "definition": "[a-c]{4}"}}


@case({"type": "function", "name": "Take"}, "required")
def responses_function(plain, tools, choice):
    got = respond(tools, tools=[TAKE, {"type": "web_search"}], tool_choice=choice, parallel_tool_calls=False, max_output_tokens=250)
    equal([(i.type, i.name, i.status) for i in got.output], [("function_call", "Take", "completed")])
    assert json.loads(got.output[0].arguments)["count"] in (1, 2, 3) and got.output[0].call_id


@case()
def responses_function_turn(plain, tools):
    first = respond(tools, tools=[TAKE], tool_choice="required", parallel_tool_calls=False, max_output_tokens=250)
    call = first.output[0]
    items = [{"role": "user", "content": FOX}, call.model_dump(exclude_none=True),
             {"type": "function_call_output", "call_id": call.call_id, "output": "done"}]
    assert respond(tools, items, tools=[TAKE]).usage.input_tokens > first.usage.input_tokens


@case()
def responses_function_parsed(plain, tools):
    got = tools.client.responses.parse(model="default", input=FOX, tools=[TAKE], tool_choice="required", parallel_tool_calls=False)
    assert json.loads(got.output[0].arguments)["count"] in (1, 2, 3)


@case()
def responses_function_stream(plain, tools):
    ask = {"model": "default", "input": FOX, "tools": [TAKE], "tool_choice": "required", "parallel_tool_calls": False}
    with tools.client.responses.stream(**ask) as stream:
        events = list(stream)
        final = stream.get_final_response()
    deltas = [e for e in events if e.type == "response.function_call_arguments.delta"]
    done = [e for e in events if e.type == "response.function_call_arguments.done"]
    equal("".join(e.delta for e in deltas), final.output[0].arguments)
    equal((deltas[-1].snapshot, [e.arguments for e in done]), (final.output[0].arguments, [final.output[0].arguments]))


@case(False, True)
def responses_custom(plain, tools, stream):
    ask = {"tools": [PATCH], "tool_choice": {"type": "custom", "name": "patch"}, "max_output_tokens": 250}
    if stream:
        events = list(respond(tools, stream=True, **ask))
        got = events[-1].response
        equal("".join(e.delta for e in events if e.type == "response.custom_tool_call_input.delta"), got.output[0].input)
    else:
        got = respond(tools, **ask)
    call = got.output[0]
    equal((call.type, call.name, len(call.input), set(call.input) <= set("abc")), ("custom_tool_call", "patch", 4, True))


# With what JSON escapes: line ends, quotation marks, backslashes.
STEPS = """
start: step~2 DONE?
step: mark " " WORD END   // one line
mark: "+" | "-"
WORD: /[a-c"\\\\]{2,4}/
DONE: "\\t.\\n"
%import common.LF -> END
"""
# What Codex offers.
APPLY = """
start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?

hunk: add_hunk | delete_hunk | update_hunk
add_hunk: "*** Add File: " filename LF add_line+
delete_hunk: "*** Delete File: " filename LF
update_hunk: "*** Update File: " filename LF change_move? change?

filename: /(.+)/
add_line: "+" /(.*)/ LF -> line

change_move: "*** Move to: " filename LF
change: (change_context | change_line)+ eof_line?
change_context: ("@@" | "@@ " /(.+)/) LF
change_line: ("+" | "-" | " ") /(.*)/ LF
eof_line: "*** End of File" LF

%import common.LF
"""


def lark(definition, name="steps"):
    return {"type": "custom", "name": name, "format": {"type": "grammar", "syntax": "lark", "definition": definition}}


@case(*range(6))
def responses_custom_lark(plain, tools, seed):
    ask = {"tools": [lark(STEPS), TAKE], "tool_choice": {"type": "custom", "name": "steps"}, "max_output_tokens": 250, "temperature": 2, "extra_body": {"seed": seed}}
    events = list(respond(tools, stream=True, **ask))
    got = events[-1].response
    call = got.output[0]
    assert re.fullmatch(r'([+-] [a-c"\\]{2,4}\n){2}(\t\.\n)?', call.input), call.input
    equal("".join(e.delta for e in events if e.type == "response.custom_tool_call_input.delta"), call.input)
    equal((call.type, call.name, got.status), ("custom_tool_call", "steps", "completed"))
    equal(respond(tools, **ask).output[0].input, call.input)


@case({"type": "custom", "name": "apply_patch"}, "required", "auto")
def responses_custom_patch(plain, tools, choice):
    got = respond(tools, tools=[lark(APPLY, "apply_patch"), {"type": "web_search"}], tool_choice=choice, parallel_tool_calls=False, max_output_tokens=250)
    if choice != "auto":
        equal(got.output[0].type, "custom_tool_call")
        assert re.match(r"\*\*\* Begin Patch\n\*\*\* (Add|Delete|Update) File: ", got.output[0].input), got.output[0].input


@case(("start: @other", "`@`"), ("start: <|im_end|>", "`<...>`"), ("start: %json {\"type\": \"string\"}", "`%json`"), ("start: A\nA: ~\"x\"", "`~`"),
      ("start: /a(?=b)/", "look"), ("start: A\n%declare A", "declare"), ("start: other", "other"), ("start: \"a", "lexer error"),
      ("rule: \"a\"", "no start"), ("", "empty"), ("start: A\nA: /a b/x", "flag `x`"), ("start: \"\\u0001\"", "control character"))
def responses_custom_lark_refused(plain, tools, grammar, holds):
    """By its name, and by what it is that is not taken."""
    for choice in ("auto", "required"):
        why = refused(lambda: respond(tools, tools=[TAKE, lark(grammar)], tool_choice=choice), 400, "tools")
        assert "tools[1].format.definition: " in str(why) and holds in str(why), why


@case()
def responses_tool_warnings(plain, tools):
    kinds = ["web_search", "image_generation", "file_search", "code_interpreter", "computer_use_preview", "mcp", "local_shell", "new"]
    raw = plain.client.responses.with_raw_response.create(model="default", input=FOX, max_output_tokens=2, tools=[{"type": k} for k in kinds])
    for kind in kinds:
        assert f"the tool {kind} was left out" in raw.headers["x-lapis-warnings"], kind


@case({"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning": {}}, {"store": True}, {"store": False}, {"background": False},
      {"truncation": "auto"}, {"service_tier": "auto"}, {"text": {"verbosity": "low"}}, {"text": {"format": {"type": "text"}}},
      {"include": ["reasoning.encrypted_content"]}, {"prompt_cache_key": "k"}, {"safety_identifier": "s"}, {"max_tool_calls": 3},
      {"tools": None}, {"tool_choice": None}, {"stream": None}, {"previous_response_id": None}, {"extra_body": {"new_field": 1}})
def responses_taken(plain, tools, more):
    equal(respond(plain, **{"max_output_tokens": 1, **more}).usage.output_tokens, 1)


@case(({"previous_response_id": "resp_1"}, "previous_response_id", "previous_response_not_found"), ({"background": True}, "background"),
      ({"conversation": "conv_1"}, "conversation"), ({"max_output_tokens": 0}, "max_output_tokens"), ({"temperature": -1}, "temperature"),
      ({"top_logprobs": 21}, "top_logprobs"), ({"tool_choice": "always"}, "tool_choice"), ({"truncation": "x"}, "truncation"), ({"reasoning": {"effort": 5}}, "reasoning"),
      ({"input": [{"type": "item_reference", "id": "x"}]}, "input"), ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input"),
      ({"input": "fox " * 1000}, "input", "context_length_exceeded"), ({"text": {"format": {"type": "x"}}}, "text.format"))
def responses_refused(plain, tools, more, param, code=None):
    for stream in (False, True):
        refused(lambda: respond(plain, **{"stream": stream, **more}), 400, param, code)


@case()
def responses_unknown_model(plain, tools):
    assert "lapis-demo" in str(refused(lambda: respond(plain, model="lapis-dem"), 404, "model"))


@case("max_output_tokens", "temperature", "top_p", "top_logprobs", "tools", "tool_choice", "reasoning", "text", "include", "stream",
      "truncation", "parallel_tool_calls", "input", "instructions", "background", "store", "metadata", "previous_response_id")
def responses_values(plain, tools, name):
    for value in (-(2**63), -1, -0.0, 0, 1, 2**31, 2**63, 1e308, "1", None, [], {}, [[]], [{}], {"format": 5}, {"effort": 5}):
        body = {"input": "hi", "max_output_tokens": 2, name: value}
        r = plain.post("/v1/responses", body)
        assert r.status_code in (200, 400), f"{value!r}: {r.status_code} {r.text}"
        if r.status_code == 400:
            assert (r.json()["error"]["param"] or "").startswith(name), f"{value!r}: {r.text}"


@case()
def responses_form(plain, tools):
    with plain.http.stream("POST", "/responses", json={"input": "hi", "max_output_tokens": 2, "stream": True}) as r:
        body = r.read().decode()
    equal(r.headers["content-type"].split(";")[0], "text/event-stream")
    assert "[DONE]" not in body and body.endswith("\n\n")
    for event in body.split("\n\n")[:-1]:
        name, data = event.split("\n")
        equal(json.loads(data.removeprefix("data: "))["type"], name.removeprefix("event: "))
