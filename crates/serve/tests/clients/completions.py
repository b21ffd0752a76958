"""Completions of texts."""

import suite
from suite import case, equal, error


def complete(prompt, **more):
    return suite.PLAIN.client.completions.create(model="default", prompt=prompt, **more)


@case()
def completion_plain():
    reply = complete("Once there was", max_tokens=6)
    equal(reply.object, "text_completion")
    assert reply.choices[0].text and reply.usage.completion_tokens == 6


@case()
def completion_forms():
    tokens = suite.PLAIN.post("/tokenize", {"content": "Once there was"}).json()["tokens"]
    ask = dict(max_tokens=8, temperature=0)
    want = complete("Once there was", **ask).choices[0].text
    equal(complete(tokens, **ask).choices[0].text, want)
    equal([c.text for c in complete([tokens, tokens], **ask).choices], [want, want])
    equal([c.text for c in complete(["Once there was", "Once there was"], **ask).choices], [want, want])


@case()
def completion_many():
    reply = complete(["One day", "The fox", "At night"], n=2, max_tokens=4, seed=1)
    equal([c.index for c in reply.choices], list(range(6)))


@case(False, True)
def completion_echo(stream):
    ask = dict(max_tokens=5, temperature=0)
    want = "The fox" + complete("The fox", **ask).choices[0].text
    reply = complete("The fox", echo=True, stream=stream, **ask)
    equal("".join(c.choices[0].text for c in reply) if stream else reply.choices[0].text, want)


@case()
def completion_echo_logprobs():
    logprobs = complete("The fox walked", echo=True, logprobs=1, max_tokens=2, temperature=0).choices[0].logprobs
    equal(logprobs.token_logprobs[0], None)
    assert "".join(logprobs.tokens).startswith("The fox walked")


@case()
def completion_echo_score():
    choice = complete("The fox walked", echo=True, logprobs=0, max_tokens=0).choices[0]
    equal(choice.text, "The fox walked")


@case()
def completion_echo_times():
    r = suite.PLAIN.post("/v1/completions", {"prompt": "The fox walked", "echo": True, "logprobs": 0, "max_tokens": 0}).json()
    equal({k: v for k, v in r["timings"].items() if v < 0}, {})
    assert r["timings"]["prefill_ms"] > 0, r["timings"]


@case()
def completion_too_long():
    e = error(suite.PLAIN.post("/v1/completions", {"prompt": "x " * 3000}), 400, "prompt")
    equal(e["code"], "context_length_exceeded")


@case(0, 1, 5, 20)
def completion_logprobs(top):
    choice = complete("The fox", max_tokens=4, temperature=0, logprobs=top).choices[0]
    l = choice.logprobs
    equal("".join(l.tokens), choice.text)
    equal((len(l.token_logprobs), len(l.text_offset)), (4, 4))
    at = l.text_offset[0]
    for token, offset in zip(l.tokens, l.text_offset):
        equal(offset, at)
        at += len(token)
    if top:
        for token, score, tops in zip(l.tokens, l.token_logprobs, l.top_logprobs):
            assert len(tops) <= top + 1 and abs(tops[token] - score) < 1e-4


@case()
def completion_stream():
    ask = dict(max_tokens=10, seed=3)
    parts = list(complete("The fox", stream=True, **ask))
    equal("".join(p.choices[0].text for p in parts), complete("The fox", **ask).choices[0].text)
    equal({p.object for p in parts}, {"text_completion"})
    equal([p.choices[0].finish_reason for p in parts if p.choices[0].finish_reason], ["length"])


@case(False, True)
def completion_keeps_first_space(stream):
    token, = suite.PLAIN.post("/tokenize", {"content": " one"}).json()["tokens"]
    reply = complete("The fox", max_tokens=1, logit_bias={str(token): 100}, stream=stream)
    equal("".join(c.choices[0].text for c in reply) if stream else reply.choices[0].text, " one")


@case(False, True)
def completion_stop(stream):
    whole = complete("The fox", max_tokens=30, temperature=0).choices[0].text
    stop = whole[20:26]
    reply = complete("The fox", max_tokens=30, temperature=0, stop=stop, stream=stream)
    got = "".join(c.choices[0].text for c in reply) if stream else reply.choices[0].text
    equal(got, whole[: whole.index(stop)])


@case()
def completion_best_of():
    equal(len(complete("The fox", n=2, best_of=4, max_tokens=4, seed=1).choices), 2)
    error(suite.PLAIN.post("/v1/completions", {"prompt": "a", "n": 3, "best_of": 2, "max_tokens": 1}), 400, "best_of")


@case()
def completion_suffix():
    error(suite.PLAIN.post("/v1/completions", {"prompt": "a", "suffix": "b", "max_tokens": 1}), 400, "suffix")


@case((5,), ([],), ({},), (None,), ([5, "a"],), (["a", [1]],), ([["a"]],), ([-1],), ([1.5],), ([99999999],), ([[99999999]],), ([2**63],), ([[]],), ("",), (True,))
def completion_prompt_wrong(prompt):
    r = suite.PLAIN.post("/v1/completions", {"prompt": prompt, "max_tokens": 1})
    if prompt == "" and r.status_code == 200:
        return
    error(r, 400, "prompt")
