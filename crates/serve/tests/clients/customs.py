"""Custom tools in chats, with the official client of OpenAI: tools whose input is a text."""

import json
import re

import suite
from suite import FOX, case, chat, equal, error


def custom(name, syntax=None, definition=None, **more):
    if syntax:
        more["format"] = {"type": "grammar", "grammar": {"syntax": syntax, "definition": definition}}
    return {"type": "custom", "custom": {"name": name, **more}}


def chosen(name):
    return {"type": "custom", "custom": {"name": name}}


LINES = custom("lines", "lark", 'start: LINE~2 "\\t."?\nLINE: /[+-] [a-c"\\\\]{2,4}\\n/', description="Writes lines.")
WORD = custom("word", "regex", '[a-c]{4}"')
TAKE = {"type": "function", "function": {"name": "take", "strict": True, "parameters": {
    "type": "object", "properties": {"n": {"enum": [1, 2, 3]}}, "required": ["n"], "additionalProperties": False}}}
SHAPES = {"lines": r'([+-] [a-c"\\]{2,4}\n){2}(\t\.)?', "word": r'[a-c]{4}"'}


def ask(name, seed, **more):
    tools = [LINES, TAKE, WORD]
    return chat(FOX, suite.TOOLS, tools=tools, tool_choice=chosen(name), parallel_tool_calls=False, max_tokens=250, temperature=2, seed=seed, **more)


@case(*[(name, seed) for name in SHAPES for seed in range(3)])
def custom_forced(name, seed):
    choice = ask(name, seed).choices[0]
    equal((choice.finish_reason, choice.message.content), ("tool_calls", None))
    [call] = choice.message.tool_calls
    equal((call.type, call.custom.name, call.id[:5]), ("custom", name, "call_"))
    assert re.fullmatch(SHAPES[name], call.custom.input), call.custom.input


@case(*[(name, seed) for name in SHAPES for seed in range(3)])
def custom_stream(name, seed):
    whole = ask(name, seed).choices[0].message.tool_calls[0]
    begun, text, pieces = None, "", 0
    for chunk in ask(name, seed, stream=True):
        for delta in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
            equal((delta.index, delta.function), (0, None))
            inner = delta.model_extra["custom"]
            if begun is None:
                begun = (delta.type, inner["name"], inner["input"], bool(delta.id))
            else:
                equal((delta.id, delta.type, list(inner)), (None, None, ["input"]))
            text, pieces = text + inner["input"], pieces + 1
    equal(begun, ("custom", name, "", True))
    equal((text, pieces > 2), (whole.custom.input, True))


@case("required", {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [chosen("word")]}})
def custom_among_others(choice):
    reply = chat(FOX, suite.TOOLS, tools=[WORD, {**TAKE}][: 1 if choice == "required" else 2], tool_choice=choice, parallel_tool_calls=False, max_tokens=250)
    [call] = reply.choices[0].message.tool_calls
    assert call.type == "custom" and re.fullmatch(SHAPES["word"], call.custom.input), call


@case("auto", "none", None)
def custom_free(choice):
    """Offered and not called; a free text is taken as well."""
    more = {"tool_choice": choice} if choice else {}
    reply = chat(FOX, suite.TOOLS, tools=[LINES, custom("free"), custom("text", format={"type": "text"})], max_tokens=5, logit_bias=suite.ENDLESS, **more)
    equal((reply.choices[0].finish_reason, reply.usage.completion_tokens), ("length", 5))


@case()
def custom_turn():
    """What was called comes back with the next turn, as the client writes it."""
    first = ask("lines", 1)
    message = first.choices[0].message
    call = message.tool_calls[0]
    messages = [*FOX, message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "done"}]
    assert chat(messages, suite.TOOLS, tools=[LINES], max_tokens=1).usage.prompt_tokens > first.usage.prompt_tokens
    prompt = suite.TOOLS.post("/apply-template", {"messages": messages, "tools": [LINES]}).json()["prompt"]
    assert json.dumps({"input": call.custom.input}, ensure_ascii=False) in prompt and "done" in prompt, prompt


@case(([{"type": "custom"}], "tools[0].custom.name"), ([{"type": "custom", "name": "flat"}], "tools[0].custom.name"),
      ([custom("x", "yacc", "a")], "has a format"), ([custom("x", format={"type": "json"})], "has a format"), ([TAKE, custom("take")], "'take'"),
      ([WORD, WORD], "tools[1].custom.name"), ([custom("x", "lark", "start: other")], "tools[0].custom.format.grammar.definition: "))
def custom_refused(tools, holds):
    for choice in ("auto", "required"):
        answer = suite.TOOLS.post("/v1/chat/completions", {"messages": FOX, "tools": tools, "tool_choice": choice, "max_tokens": 5})
        error(answer, 400, "tools", holds=holds.replace("'", '"'))
