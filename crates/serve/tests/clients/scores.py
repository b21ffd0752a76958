"""Cases of scored prompts (completions with echo and logprobs), and of calls that come out as text.

"""

import suite


def add():
    """Puts the cases among the others."""
    case, equal, error = suite.case, suite.equal, suite.error

    def complete(prompt, server=None, **more):
        return (server or suite.PLAIN).client.completions.create(model="default", prompt=prompt, **more)

    def tokens(text):
        return suite.PLAIN.post("/tokenize", {"content": text}).json()["tokens"]

    @case(0, 1, 5, 20)
    def scores_agree_with_writing(top):
        """What is written greedily is scored afterwards, as a prompt, by another way through the model."""
        start = tokens("The fox walked to")
        text = complete(start, max_tokens=24, temperature=0, logprobs=top).choices[0]
        ids = start + [t for t in tokens_of(text)]
        got = complete(ids, max_tokens=0, echo=True, logprobs=top).choices[0].logprobs
        equal((len(got.tokens), got.token_logprobs[0]), (len(ids), None))
        equal(got.tokens[len(start):], text.logprobs.tokens)
        for a, b in zip(got.token_logprobs[len(start):], text.logprobs.token_logprobs):
            assert abs(a - b) < 1e-3, (a, b)
        if top:
            equal(got.top_logprobs[0], None)
            for row, score, token in zip(got.top_logprobs[1:], got.token_logprobs[1:], got.tokens[1:]):
                assert 0 < len(row) <= top, row
                assert score <= max(row.values()) + 1e-6
                if token in row:
                    assert abs(row[token] - score) < 1e-5
        else:
            equal([t for t in got.top_logprobs if t], [])

    def tokens_of(choice):
        """The ids of what was written; each token's text is a token of the demo model."""
        return [t for text in choice.logprobs.tokens for t in one(text)]

    def one(text):
        # A byte-level vocabulary: a token's text is that token again.
        found = suite.PLAIN.post("/tokenize", {"content": text, "add_special": False}).json()["tokens"]
        equal(len(found), 1, text)
        return found

    @case()
    def scores_offsets():
        text = "The fox, été, walked 🦊 on."
        got = complete(text, max_tokens=3, echo=True, logprobs=1, temperature=0).choices[0]
        assert got.text.startswith(text)
        l = got.logprobs
        equal((l.text_offset[0], len(l.text_offset), l.text_offset == sorted(l.text_offset)), (0, len(l.tokens), True))
        equal(len(l.tokens), len(tokens(text)) + 3)
        written = [o for o in l.text_offset if o >= len(text)]
        equal((len(written), written[0]), (3, len(text)))
        for token, a, b in zip(l.tokens, l.text_offset, l.text_offset[1:]):
            if "\ufffd" not in token:
                equal(got.text[a:b], token)

    @case()
    def scores_same_in_streams():
        ask = dict(max_tokens=5, echo=True, logprobs=2, temperature=0, n=2)
        whole = complete("Once there was a fox", **ask)
        for i in range(2):
            parts = [p.choices[0] for p in complete("Once there was a fox", stream=True, **ask) if p.choices[0].index == i]
            want = whole.choices[i]
            equal("".join(p.text for p in parts), want.text)
            logs = [p.logprobs for p in parts if p.logprobs]
            equal(sum((l.tokens for l in logs), []), want.logprobs.tokens)
            equal(sum((l.token_logprobs for l in logs), []), want.logprobs.token_logprobs)
            equal(sum((l.text_offset for l in logs), []), want.logprobs.text_offset)

    @case(False, True)
    def scores_alone(stream):
        ask = dict(max_tokens=0, echo=True, logprobs=1, n=2, stream=stream)
        got = complete(["The fox", "A dog ran off"], **ask)
        if stream:
            parts = [c.choices[0] for c in got]
            equal({p.index for p in parts}, {0, 1, 2, 3})
            equal("".join(p.text for p in parts if p.index == 3), "A dog ran off")
            equal([p.finish_reason for p in parts if p.finish_reason], ["length"] * 4)
        else:
            equal([c.text for c in got.choices], ["The fox"] * 2 + ["A dog ran off"] * 2)
            equal({c.finish_reason for c in got.choices}, {"length"})
            equal(got.usage.completion_tokens, 0)
            equal(got.usage.prompt_tokens, len(tokens("The fox")) + len(tokens("A dog ran off")))

    @case()
    def scores_without_logprobs():
        got = complete("The fox", max_tokens=0, echo=True).choices[0]
        equal((got.text, got.logprobs), ("The fox", None))

    @case()
    def scores_take_nothing_from_before():
        """A prompt that is known is scored whole, and the same."""
        text = "The fox and the dog went home together "
        want = complete(text, max_tokens=0, echo=True, logprobs=0).choices[0].logprobs.token_logprobs
        complete(text, max_tokens=4)
        got = complete(text, max_tokens=0, echo=True, logprobs=0)
        equal(got.choices[0].logprobs.token_logprobs, want)
        equal(got.usage.prompt_tokens_details.cached_tokens, 0)

    @case()
    def scores_of_a_context():
        """A prompt as long as the context can be scored; nothing could follow it."""
        context = suite.PLAIN.client.models.list().data[0].context_length
        ids = (tokens("The fox walked home. ") * context)[:context]
        got = complete(ids, max_tokens=0, echo=True, logprobs=0).choices[0].logprobs
        equal(len(got.token_logprobs), context)
        body = {"prompt": ids + ids[:1], "max_tokens": 0, "echo": True}
        error(suite.PLAIN.post("/v1/completions", body), 400)

    @case(({"max_tokens": 0}, "max_tokens"), ({"max_tokens": -1}, "max_tokens"), ({"max_tokens": 0, "logprobs": 2}, "max_tokens"),
          ({"echo": True, "logprobs": 21}, "logprobs"))
    def scores_wrong(more, param):
        error(suite.PLAIN.post("/v1/completions", {"prompt": "The fox", **more}), 400, param)

    @case()
    def scores_of_one_token():
        got = complete(tokens("The")[:1], max_tokens=0, echo=True, logprobs=3).choices[0].logprobs
        equal((len(got.tokens), got.token_logprobs, got.text_offset), (1, [None], [0]))

    @case(("nobody", True), ("weather", False))
    def calls_as_text_warn(name, warns):
        tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
        call = '<tool_call>\n{"name": "%s", "arguments": {}}\n</tool_call>' % name
        pattern = call.replace("{", "[{]").replace("}", "[}]")
        body = {"messages": suite.HI, "tools": [tool], "response_format": {"type": "regex", "regex": pattern}}
        response = suite.TOOLS.post("/v1/chat/completions", body)
        equal(response.status_code, 200, response.text)
        message = response.json()["choices"][0]["message"]
        if warns:
            equal(message["content"], call)
            assert "could not be read" in response.headers["x-lapis-warnings"], response.headers
            suite.until(lambda: any("could not be read" in l for l in suite.TOOLS.lines), 2, "the log does not say it")
        else:
            equal(message["tool_calls"][0]["function"]["name"], "weather")
            assert "x-lapis-warnings" not in response.headers, response.headers
