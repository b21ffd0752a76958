"""Chats: replies, streams, stop texts, seeds, limits, log-probabilities, roles."""

import concurrent.futures
import re
import time

import suite
from suite import ENDLESS, FOX, HI, SHORT, case, chat, equal, error, joined, text


@case()
def chat_plain():
    reply = chat(max_tokens=8, seed=1)
    equal(reply.object, "chat.completion")
    assert reply.id.startswith("chatcmpl-") and reply.created > 1.6e9 and reply.system_fingerprint
    equal(reply.model, "default")
    equal(reply.choices[0].message.role, "assistant")
    assert text(reply)
    u = reply.usage
    equal(u.total_tokens, u.prompt_tokens + u.completion_tokens)
    assert u.prompt_tokens_details.cached_tokens >= 0 and u.completion_tokens_details.reasoning_tokens == 0


@case("", "default", "default_model", "lapis-demo", None)
def chat_model_names(name):
    response = suite.PLAIN.post("/v1/chat/completions", {"model": name, "messages": HI, "max_tokens": 1})
    equal(response.status_code, 200, response.text)
    equal(response.json()["model"], name or "lapis-demo")


@case()
def chat_without_v1():
    equal(suite.PLAIN.post("/chat/completions", {"messages": HI, "max_tokens": 1}).status_code, 200)


@case()
def chat_no_null_keys():
    choice = suite.PLAIN.post("/v1/chat/completions", {"messages": HI, "max_tokens": 1}).json()["choices"][0]
    equal([k for k, v in choice["message"].items() if v is None], [])
    assert "tool_calls" not in choice["message"]


@case()
def chat_stream():
    whole = text(chat(temperature=0, max_tokens=10))
    got, reasons, chunks = joined(chat(temperature=0, max_tokens=10, stream=True))
    equal(got, whole)
    equal(reasons, ["length"])
    equal(chunks[0].choices[0].delta.role, "assistant")
    assert all(c.choices[0].delta.role is None for c in chunks[1:])
    equal(len({c.id for c in chunks}), 1)
    equal({c.object for c in chunks}, {"chat.completion.chunk"})


@case({"include_usage": True}, {}, {"include_usage": False}, None)
def chat_stream_usage(options):
    _, _, chunks = joined(chat(max_tokens=3, stream=True, stream_options=options))
    if options and options.get("include_usage"):
        equal(chunks[-1].choices, [])
        equal(chunks[-1].usage.completion_tokens, 3)
        assert all(c.usage is None for c in chunks[:-1])
    else:
        assert all(c.choices for c in chunks) and all(c.usage is None for c in chunks)


@case()
def chat_stream_form():
    with suite.PLAIN.http.stream("POST", "/v1/chat/completions", json={"messages": HI, "max_tokens": 3, "stream": True}) as r:
        body = r.read().decode()
    equal(r.headers["content-type"].split(";")[0], "text/event-stream")
    equal(r.headers.get("cache-control"), "no-store")
    equal(r.headers.get("x-accel-buffering"), "no")
    assert "content-encoding" not in r.headers and "x-request-id" in r.headers
    assert body.endswith("data: [DONE]\n\n"), body[-100:]
    for event in body.split("\n\n")[:-2]:
        assert event.startswith("data: ") or event.startswith(":"), event


@case()
def chat_stream_whole_characters():
    # Tokens of single bytes are made likely, so that characters come in parts.
    bias = {str(i): 8 for i in range(130, 260)}
    _, _, chunks = joined(chat(max_tokens=60, stream=True, seed=3, logit_bias=bias))
    for c in chunks:
        (c.choices[0].delta.content or "").encode()
    whole = text(chat(max_tokens=60, seed=3, logit_bias=bias))
    equal("".join(c.choices[0].delta.content or "" for c in chunks), whole)


@case(1, 2, 5, 16)
def chat_n(n):
    reply = chat(FOX, n=n, max_tokens=6, seed=5, temperature=1)
    equal(sorted(c.index for c in reply.choices), list(range(n)))
    assert reply.usage.completion_tokens <= 6 * n and all(text(reply, i) for i in range(n))


@case()
def chat_n_differ():
    reply = chat(FOX, n=6, max_tokens=20, seed=5, temperature=1.5)
    assert len({c.message.content for c in reply.choices}) > 1


@case()
def chat_n_stream():
    whole = chat(FOX, n=3, max_tokens=8, seed=9, temperature=1)
    got = ["", "", ""]
    reasons = {}
    for c in chat(FOX, n=3, max_tokens=8, seed=9, temperature=1, stream=True):
        for part in c.choices:
            got[part.index] += part.delta.content or ""
            if part.finish_reason:
                assert part.index not in reasons
                reasons[part.index] = part.finish_reason
    equal(got, [c.message.content for c in sorted(whole.choices, key=lambda c: c.index)])
    equal(reasons, {c.index: c.finish_reason for c in whole.choices})


def across():
    """A text, and a stop that begins in one of its tokens and ends in the next."""
    whole = text(chat(FOX, temperature=0, max_tokens=40))
    pieces = [t["piece"] for t in suite.PLAIN.post("/tokenize", {"content": whole, "with_pieces": True}).json()["tokens"]]
    for a, b in zip(pieces[8:], pieces[9:]):
        if len(a) > 3 and len(b) > 3 and (a + b)[len(a) - 2 : len(a) + 3] in whole:
            return whole, (a + b)[len(a) - 2 : len(a) + 3]
    raise AssertionError("no two long tokens")


@case(False, True)
def chat_stop_across_tokens(stream):
    whole, stop = across()
    reply = chat(FOX, temperature=0, max_tokens=40, stop=stop, stream=stream)
    got, reason = joined(reply)[:2] if stream else (text(reply), [reply.choices[0].finish_reason])
    equal(got, whole[: whole.index(stop)])
    equal(reason, ["stop"])


@case(False, True)
def chat_stop_list(stream):
    whole, stop = across()
    reply = chat(FOX, temperature=0, max_tokens=40, stop=["never there", stop, "\u00e9"], stream=stream)
    equal(joined(reply)[0] if stream else text(reply), whole[: whole.index(stop)])


@case()
def chat_stop_begun_and_not_ended():
    # A stop that begins at the end of the text and never ends is text.
    whole, _ = across()
    got, _, _ = joined(chat(FOX, temperature=0, max_tokens=40, stop=whole[-4:] + "\u00e9\u00e9", stream=True))
    equal(got, whole)


@case()
def chat_stop_first():
    whole, _ = across()
    reply = chat(FOX, temperature=0, max_tokens=40, stop=whole[0])
    equal((text(reply), reply.choices[0].finish_reason), ("", "stop"))


@case(
    (["x"] * 17,), ("x" * 257,), (["x", 1],), (5,), ({"a": 1},), ([["x"]],),
)
def chat_stop_wrong(stop):
    error(suite.PLAIN.post("/v1/chat/completions", {"messages": HI, "stop": stop, "max_tokens": 1}), 400, "stop")


@case((["x"] * 16,), ("x" * 256,), ([],), (None,))
def chat_stop_right(stop):
    r = suite.PLAIN.post("/v1/chat/completions", {"messages": HI, "stop": stop, "max_tokens": 1})
    equal(r.status_code, 200, r.text)


@case(0, 7, -1, -(2**63), 2**63, 2**64 - 1)
def seeds_alone(seed):
    one, two = (text(chat(FOX, seed=seed, temperature=1.2, max_tokens=16)) for _ in range(2))
    equal(two, one)


@case()
def seeds_among_others():
    seeds = [1, 2, 3, 4, 5, 6, 7, 8]
    ask = lambda seed: text(chat(FOX, seed=seed, temperature=1.2, max_tokens=30))
    alone = [ask(seed) for seed in seeds]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        equal(list(pool.map(ask, seeds)), alone)
    assert len(set(alone)) > 4


@case()
def seeds_same_among_eight():
    ask = lambda _: text(chat(FOX, seed=11, temperature=1.2, max_tokens=30, top_p=0.9))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        equal(len(set(pool.map(ask, range(8)))), 1)


@case()
def seeds_stream_as_whole():
    got, _, _ = joined(chat(FOX, seed=4, temperature=1, max_tokens=20, stream=True))
    equal(got, text(chat(FOX, seed=4, temperature=1, max_tokens=20)))


@case()
def seeds_told():
    first = suite.PLAIN.post("/v1/chat/completions", {"messages": FOX, "temperature": 1, "max_tokens": 12}).json()
    assert "seed" in first["timings"]
    equal(text(chat(FOX, temperature=1, max_tokens=12, seed=first["timings"]["seed"])),
          first["choices"][0]["message"]["content"])


@case(1, 60)
def timings_make_sense(times):
    messages = [{"role": "user", "content": "no one knew " * times}]
    t = suite.PLAIN.post("/v1/chat/completions", {"messages": messages, "max_tokens": 2, "cache_salt": str(time.time())}).json()["timings"]
    equal(sorted({"queue_ms", "prefill_ms", "ttft_ms", "prompt_tps", "decode_tps", "draft_accepted"} - set(t)), [])
    assert t["prompt_tps"] < 1e6, f"prompt_tps {t['prompt_tps']}, prefill_ms {t['prefill_ms']}, queue_ms {t['queue_ms']}"


@case(("max_tokens", 1), ("max_tokens", 7), ("max_completion_tokens", 1), ("max_completion_tokens", 7))
def chat_max(name, most):
    reply = chat(FOX, **{name: most})
    equal((reply.usage.completion_tokens, reply.choices[0].finish_reason), (most, "length"))


@case()
def chat_max_completion_first():
    equal(chat(FOX, max_tokens=2, max_completion_tokens=5).usage.completion_tokens, 5)


@case()
def chat_max_bounded_by_context():
    reply = chat(max_tokens=100000, logit_bias=ENDLESS)
    equal((reply.usage.total_tokens, reply.choices[0].finish_reason), (512, "length"))


@case()
def chat_ends():
    reply = chat(logit_bias=SHORT)
    equal(reply.choices[0].finish_reason, "stop")


@case()
def chat_too_long():
    e = error(suite.PLAIN.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "word " * 2000}]}), 400)
    equal(e["code"], "context_length_exceeded")
    assert "512" in e["message"] and len(re.findall(r"\d+", e["message"])) >= 2, e["message"]


@case(0, 1, 5, 20)
def chat_logprobs(top):
    reply = chat(FOX, max_tokens=5, temperature=0, logprobs=True, top_logprobs=top)
    entries = reply.choices[0].logprobs.content
    equal("".join(e.token for e in entries), text(reply))
    equal(len(entries), 5)
    for e in entries:
        assert e.logprob <= 1e-4 and bytes(e.bytes).decode() == e.token and len(e.top_logprobs) == top
        scores = [t.logprob for t in e.top_logprobs]
        equal(scores, sorted(scores, reverse=True))
        if top:
            equal(e.top_logprobs[0].token, e.token)
            assert abs(e.top_logprobs[0].logprob - e.logprob) < 1e-4


@case()
def chat_logprobs_stream():
    ask = dict(max_tokens=6, temperature=0, logprobs=True, top_logprobs=2)
    whole = [(e.token, round(e.logprob, 3)) for e in chat(FOX, **ask).choices[0].logprobs.content]
    got = []
    for c in chat(FOX, stream=True, **ask):
        for part in c.choices:
            got += [(e.token, round(e.logprob, 3)) for e in (part.logprobs.content if part.logprobs else None) or []]
    equal(got, whole)


@case()
def chat_top_logprobs_alone():
    error(suite.PLAIN.post("/v1/chat/completions", {"messages": HI, "max_tokens": 1, "top_logprobs": 3}), 400, "top_logprobs")


@case("system", "developer")
def chat_roles(role):
    messages = [{"role": role, "content": "Be brief."}, {"role": role, "content": "Be kind."}, *HI]
    prompt = suite.PLAIN.post("/apply-template", {"messages": messages}).json()["prompt"]
    assert "Be brief." in prompt and "Be kind." in prompt, prompt
    assert text(chat(messages, max_tokens=4))


@case()
def chat_parts():
    parts = [{"role": "user", "content": [{"type": "text", "text": "Tell me a story "}, {"type": "text", "text": "about a fox"}]}]
    equal(text(chat(parts, temperature=0, max_tokens=10)), text(chat(FOX, temperature=0, max_tokens=10)))


@case("image_url", "input_image")
def chat_images_refused(kind):
    part = {"type": kind, "image_url": {"url": "data:image/png;base64,AAAA"}}
    error(suite.PLAIN.post("/v1/chat/completions", {"messages": [{"role": "user", "content": [part]}], "max_tokens": 1}), 400, "messages")


@case(([],), ("hi",), (["hi"],), ([None],), ({},), ([{"content": "x"}],), ([{"role": "pirate", "content": "x"}],),
      ([{"role": "user", "content": 5}],), ([{"role": 5, "content": "x"}],), ([{"role": "user", "content": [5]}],),
      ([{"role": "user", "content": {"type": "text"}}],), (None,), ([{"role": "user", "content": [{"type": "text"}]}],),
      ([{"role": "user", "content": [{"type": "what", "text": "x"}]}],))
def chat_messages_wrong(messages):
    error(suite.PLAIN.post("/v1/chat/completions", {"messages": messages, "max_tokens": 1}), 400, "messages")


@case()
def chat_messages_missing():
    error(suite.PLAIN.post("/v1/chat/completions", {"max_tokens": 1}), 400, "messages")


@case("temperature", "top_p", "n", "stream", "stop", "max_tokens", "logit_bias", "tools", "tool_choice", "seed", "user",
      "response_format", "functions", "function_call", "stream_options", "logprobs", "top_logprobs", "metadata",
      "parallel_tool_calls", "reasoning_effort", "modalities", "audio", "max_completion_tokens")
def chat_null_is_absent(name):
    body = {"messages": HI, "max_completion_tokens": 1, name: None}
    if name == "max_completion_tokens":
        body["max_tokens"] = 1
    r = suite.PLAIN.post("/v1/chat/completions", body)
    equal(r.status_code, 200, r.text)
    assert name not in r.headers.get("x-lapis-warnings", "")


@case("audio", "adapters", "chat_template")
def chat_refused_fields(name):
    value = {"audio": {"voice": "x", "format": "wav"}, "adapters": "x", "chat_template": "{{ 1 }}"}[name]
    r = suite.PLAIN.post("/v1/chat/completions", {"messages": HI, "max_tokens": 1, name: value})
    assert r.status_code in (400, 403), r.text
    error(r, r.status_code, name)


@case()
def chat_modalities():
    error(suite.PLAIN.post("/v1/chat/completions", {"messages": HI, "modalities": ["text", "audio"]}), 400, "modalities")
    equal(suite.PLAIN.post("/v1/chat/completions", {"messages": HI, "max_tokens": 1, "modalities": ["text"]}).status_code, 200)


@case(({"x": 1},), ({"-1": 1},), ({"99999999": 1},), ({"4294967296": 1},), ({"3": "1"},), ({"3": None},), ({str(i): 0 for i in range(1025)},), ([],), (3,))
def chat_bias_wrong(bias):
    error(suite.PLAIN.post("/v1/chat/completions", {"messages": HI, "max_tokens": 1, "logit_bias": bias}), 400, "logit_bias")


@case()
def chat_bias_works():
    reply = chat(max_tokens=3, logit_bias={"3": 100})
    equal(text(reply), "!!!")


@case()
def chat_bias_of_any_size():
    equal(text(chat(max_tokens=3, logit_bias={"3": 1e308, "4": -1e308})), "!!!")


@case("presence_context_size", "frequency_context_size")
def penalties_look_back_each_by_its_own(name):
    ask = lambda **more: text(chat(FOX, temperature=0, max_tokens=60, extra_body={"repetition_penalty": 3.0, "repetition_context_size": 1, **more}))
    equal(ask(**{name: 100}), ask())
    assert ask() != ask(repetition_context_size=100)


@case("foo", "max_token", "Temperature")
def unknown_field_warned(name):
    r = suite.PLAIN.post("/v1/chat/completions", {"messages": HI, "max_tokens": 1, name: 1})
    equal(r.status_code, 200)
    assert name in r.headers.get("x-lapis-warnings", ""), dict(r.headers)


@case("store", "metadata", "user", "safety_identifier", "service_tier", "prediction", "verbosity",
      "prompt_cache_retention", "web_search_options", "moderation")
def idle_field_warned(name):
    r = suite.PLAIN.post("/v1/chat/completions", {"messages": HI, "max_tokens": 1, name: "x"})
    equal(r.status_code, 200, r.text)
    assert name in r.headers.get("x-lapis-warnings", ""), dict(r.headers)


@case("a\nb", "a\r\nx-evil: 1", "\u00e9", "x" * 50000)
def unknown_field_odd_name(name):
    r = suite.PLAIN.post("/v1/chat/completions", {"messages": HI, "max_tokens": 1, name: 1})
    equal(r.status_code, 200, r.text[:200])
    assert "x-evil" not in r.headers and "x-lapis-warnings" in r.headers


@case()
def no_warning_without_cause():
    assert "x-lapis-warnings" not in suite.PLAIN.post("/v1/chat/completions", {"messages": HI, "max_tokens": 1}).headers
