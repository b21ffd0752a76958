"""Writes tool_calls.json: replies in all formats for calls of tools, and what mlx-lm's parsers make of them.

    python tool_calls.py > tool_calls.json

Formats that mlx-lm does not read have their expected values beside them (`ours`).
"""

import importlib
import json

PROPERTIES = {
    "city": {"type": "string"},
    "days": {"type": "integer"},
    "ratio": {"type": "number"},
    "metric": {"type": "boolean"},
    "tags": {"type": "array", "items": {"type": "string"}},
    "where": {"type": "object"},
    "either": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    "level": {"enum": ["low", "high"]},
    "more": {"type": ["string", "null"]},
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": PROPERTIES}}},
    {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}},
    {"type": "function", "function": {"name": "note", "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}}},
]

ALL = {"city": "Zürich \"old\" {town}", "days": 3, "ratio": 0.5, "metric": True, "tags": ["a,b", "c)"], "where": {"x": [1, None]}}


def text(value):
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def xml(call, parameter, arguments, newline="\n"):
    """A call in tags: `call` and `parameter` are (begin with %s, end)."""
    body = "".join(parameter[0] % k + text(v) + parameter[1] + newline for k, v in arguments.items())
    return call[0] + newline + body + call[1]


def pairs(name, prefix, arguments):
    tag = lambda kind, value: f"<{prefix}arg_{kind}>{value}</{prefix}arg_{kind}>"
    return name + "\n" + "\n".join(tag("key", k) + "\n" + tag("value", text(v)) for k, v in arguments.items()) + "\n"


def gemma(value, quote):
    if isinstance(value, str):
        return quote + value + quote
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{gemma(v, quote)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(gemma(v, quote) for v in value) + "]"
    return json.dumps(value)


def k3(name, arguments):
    kind = lambda v: {str: "string", bool: "boolean", int: "number", float: "number", list: "array", dict: "object"}[type(v)]
    body = "".join(
        f'<|open|>argument key="{k}" type="{kind(v)}"<|sep|>{text(v)}<|close|>argument<|sep|>' for k, v in arguments.items()
    )
    return f'<|open|>call tool="{name}" index="1"<|sep|>{body}<|close|>call<|sep|>'


def parsed(module, inner):
    parser = importlib.import_module(f"mlx_lm.tool_parsers.{module}")
    calls = parser.parse_tool_call(inner, TOOLS)
    return parser, calls if isinstance(calls, list) else [calls]


def case(module, inner, template=None, vocabulary=(), note=""):
    parser, calls = parsed(module, inner)
    # A call whose arguments are a text is one of JSON.
    return {
        "format": module,
        "template": template if template is not None else parser.tool_call_start + parser.tool_call_end,
        "vocabulary": list(vocabulary),
        "text": parser.tool_call_start + inner + parser.tool_call_end,
        "calls": calls,
        "note": note,
    }


def ours(name, template, whole, calls, vocabulary=(), note=""):
    return {"format": name, "template": template, "vocabulary": list(vocabulary), "text": whole, "calls": calls, "note": note}


def cases():
    w = {"name": "weather", "arguments": ALL}
    c = {"name": "clock", "arguments": {}}
    n = {"name": "note", "arguments": {"text": "a < b && c\n  {d}: </p>\n"}}
    dump = lambda value: json.dumps(value, ensure_ascii=False)

    # json_tools
    named = "<tool_call> tool_call.name"
    for call in (w, c, n):
        yield case("json_tools", "\n" + dump(call) + "\n", named)
    yield case("json_tools", '{"arguments": {"city": "B\\u00e2le", "days": 1e2}, "name": "weather"}', named)

    # minimax_m2, muse_spark, qwen3_coder, minicpm5
    loose = {"days": " 7", "ratio": "2.0", "metric": "Yes", "either": "null", "level": "low", "more": "none", "tags": "['x']"}
    for arguments in (ALL, loose, {}, {"either": "12", "days": "x", "unknown": "12", "where": "{'a': 1}"}):
        invoke = ('<invoke name="weather">', "</invoke>")
        yield case("minimax_m2", "\n" + xml(invoke, ('<parameter name="%s">', "</parameter>"), arguments) + "\n")
    two = [xml(('<invoke name="%s">' % x["name"], "</invoke>"), ('<parameter name="%s">', "</parameter>"), x["arguments"]) for x in (n, c)]
    yield case("minimax_m2", "\n" + "\n".join(two) + "\n")
    for arguments in (ALL, {"city": "  two\n\n", "days": "5", "either": "[1]", "unknown": "5"}, {}):
        invoke = ('<atem:invoke name="weather">', "</atem:invoke>")
        yield case("muse_spark", "\n" + xml(invoke, ('<atem:parameter name="%s">', "</atem:parameter>"), arguments) + "\n")
    template = "<tool_call>\\n<function="
    for arguments in (ALL, {"city": "\n two \n", "days": "5.0", "metric": "TRUE", "ratio": "1e3", "unknown": "5"}, {"level": "high", "either": "[1, 2]", "where": "{'a': None}", "city": "null"}, {}):
        function = ("<function=weather>", "</function>")
        yield case("qwen3_coder", "\n" + xml(function, ("<parameter=%s>\n", "\n</parameter>"), arguments) + "\n".replace("\n", ""), template)
    template = '<function name="f"><param name="p">'
    for arguments in (ALL, {"city": "<![CDATA[a <b> & c\n]]>", "days": " 4 "}, {}):
        inner = xml(("", ""), ('<param name="%s">', "</param>"), arguments, "")
        yield case("minicpm5", '"weather">' + inner, template)

    # glm47, longcat
    for module, prefix, template in (("glm47", "", "<arg_key>"), ("laguna", "", None), ("longcat", "longcat_", "<longcat_tool_call>")):
        template = template or "<arg_key>"
        yield case(module, pairs("weather", prefix, ALL), template)
        yield case(module, pairs("weather", prefix, {"city": "12", "days": "12", "unknown": "('a', 1)", "more": "None"}), template)
        yield case(module, dump(w), template)
    for inner in ("clock", "weather days=3 city='New York' metric=true", 'weather {"city": "5", "days": "5"}', 'weather\n{"days": 2}', "note just words", '[{"name": "clock", "arguments": null}]', '{"tool": {"name": "weather", "arguments": "{\\"days\\": 1}"}}', '{"function": "clock", "arguments": {}}'):
        yield case("glm47", inner, "<arg_key>")

    # gemma4, function_gemma
    plain = {k: v for k, v in ALL.items() if k not in ("tags", "where")}
    plain["city"] = "Zürich: old, town"
    yield case("gemma4", "call:weather" + gemma(ALL, '<|"|>'))
    yield case("gemma4", "call:clock{}call:weather" + gemma({"where": {"a": {"b": ["x", {}]}}}, '<|"|>'))
    yield case("function_gemma", "call:weather" + gemma(plain, "<escape>"))
    yield case("function_gemma", "call:weather{city:Bern,days:3}")

    # pythonic
    yield case("pythonic", "[weather(%s)]" % ", ".join(f"{k}={v!r}" for k, v in ALL.items()))
    yield case("pythonic", '[weather(days=-1, ratio=.5, where={"a": [true, null]}, more=None), clock()]')
    yield case("pythonic", "[note(text='it\\'s\\n' \"so\")]", "", ["<|tool_call_start|>", "<|tool_call_end|>"])
    yield case("pythonic", "[weather(city=Bern, days=2)]", note="no literal")

    # kimi_k2, kimi_k3
    k2 = lambda i, x: f"<|tool_call_begin|>functions.{x['name']}:{i}<|tool_call_argument_begin|>{dump(x['arguments'])}<|tool_call_end|>"
    yield case("kimi_k2", k2(0, w))
    yield case("kimi_k2", "\n" + k2(0, n) + "\n" + k2(1, c) + "\n")
    vocabulary = ["<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"]
    yield case("kimi_k3", k3("weather", ALL), "", vocabulary)
    yield case("kimi_k3", k3("note", {"text": " a\n"}) + k3("clock", {}), "", vocabulary)
    yield case("kimi_k3", '<|open|>call tool="weather" index="1"<|sep|><|open|>json type="object"<|sep|>%s<|close|>json<|sep|><|close|>call<|sep|>' % dump(ALL), "", vocabulary)

    # mistral
    yield case("mistral", "weather[ARGS]" + dump(ALL))
    yield case("mistral", "weather[ARGS]" + dump(ALL) + "clock[ARGS]{}")
    yield case("mistral", " " + dump([w, c]))
    yield case("mistral", dump([{**w, "id": "a1B2c3D4e"}, {**c, "id": "zzzzzzzzz"}]))
    yield case("mistral", dump([{"name": "clock", "arguments": "{}"}]))

    # Formats of our own.
    think = "[TOOL_CALLS]"
    yield ours("mistral", think, "[TOOL_CALLS]weather[CALL_ID]abc123[ARGS]" + dump(ALL), [{**w, "id": "abc123"}], note="with an id")
    yield ours("mistral", think, "[TOOL_CALLS]weather[ARGS]" + dump(ALL) + "[TOOL_CALLS]clock[ARGS]{}", [w, c], note="the marker twice")
    params = lambda x: {"name": x["name"], "parameters": x["arguments"]}
    llama = "<|start_header_id|> parameters <|python_tag|>"
    yield ours("llama3", llama, dump(params(w)), [w])
    yield ours("llama3", llama, "<|python_tag|>" + dump(params(w)) + "; " + dump(params(c)), [w, c])
    yield ours("llama3", llama, '{"type": "function", "function": {"name": "weather", "parameters": {"days": 1}}}', [{"name": "weather", "arguments": {"days": 1}}])
    yield ours("llama3", llama, "<function=weather>" + dump(ALL) + "</function>", [w])
    begin, end, sep = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
    old = lambda x: f"{begin}function{sep}{x['name']}\n```json\n{dump(x['arguments'])}\n```{end}"
    new = lambda x: f"{begin}{x['name']}{sep}{dump(x['arguments'])}{end}"
    all_of = lambda calls: "<｜tool▁calls▁begin｜>" + calls + "<｜tool▁calls▁end｜>"
    yield ours("deepseek", "<｜tool▁calls▁begin｜>", all_of(old(w)), [w])
    yield ours("deepseek", "<｜tool▁calls▁begin｜>", all_of(old(n) + "\n" + old(c)), [n, c])
    yield ours("deepseek", "", all_of(new(w) + new(c)), [w, c], ["<｜tool▁calls▁begin｜>", sep])
    dsml = lambda x: f'<｜DSML｜invoke name="{x["name"]}">\n' + "".join(
        f'<｜DSML｜parameter name="{k}" string="{str(isinstance(v, str)).lower()}">{text(v)}</｜DSML｜parameter>\n' for k, v in x["arguments"].items()
    ) + "</｜DSML｜invoke>\n"
    section = "<｜DSML｜function_calls>\n%s</｜DSML｜function_calls>"
    yield ours("deepseek_v32", "", section % dsml(w), [w], ["｜DSML｜"])
    yield ours("deepseek_v32", "｜DSML｜", section % (dsml(n) + dsml(c)), [n, c])
    yield ours("phi4", "<|tool_call|><|/tool_call|>", "<|tool_call|>" + dump([w, c]) + "<|/tool_call|>", [w, c])
    yield ours("phi4", "functools[", "functools" + dump([w]), [w])
    swapped = lambda x: {"arguments": x["arguments"], "name": x["name"]}
    yield ours("granite", "<|tool_call|>", "<|tool_call|>" + dump([swapped(w), swapped(c)]), [w, c])
    cohere = lambda i, x: {"tool_call_id": str(i), "tool_name": x["name"], "parameters": x["arguments"]}
    yield ours("command_r", "<|START_ACTION|>", "<|START_ACTION|>[\n    %s,\n    %s\n]<|END_ACTION|>" % (dump(cohere(0, w)), dump(cohere(1, c))), [{**w, "id": "0"}, {**c, "id": "1"}])
    yield ours("command_r", "Action: ```json", "Action: ```json\n" + json.dumps([{"tool_name": "clock", "parameters": {}}], indent=4) + "\n```", [c])
    yield ours("hermes", "<tool_call>", "<tool_call>\n" + dump(w) + "\n</tool_call>\n<tool_call>\n" + dump(c) + "\n</tool_call>", [w, c])
    yield ours("qwen3_coder", "<tool_call>\n<function=", "<function=weather>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>", [{"name": "weather", "arguments": {"days": 2}}], note="the first marker is missing")
    harmony = "<|channel|><|message|>"
    yield ours("harmony", harmony, "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>" + dump(ALL) + "<|call|>", [w])
    yield ours("harmony", harmony, " to=functions.weather<|channel|>commentary json<|message|>" + dump(ALL) + "<|call|><|start|>assistant<|channel|>commentary to=functions.clock<|message|>{}", [w, c])


def main():
    rows = list(cases())
    print(json.dumps({"tools": TOOLS, "cases": rows}, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
