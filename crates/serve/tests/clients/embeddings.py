"""Cases of /v1/embeddings with the official client, against what transformers computes for tiny encoders.

"""

import base64
import json
import math
import pathlib
import struct

DATA = pathlib.Path(__file__).resolve().parents[3] / "lm" / "tests" / "data" / "encoders.json"
MASK = 2**64 - 1

import suite


def weights(name, spec):
    """The numbers of a tensor, from the generator of crates/lm/tests/shared/golden.rs."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & MASK
    out = []
    for i in range(math.prod(spec["shape"])):
        z = (seed + i + 0x9E3779B97F4A7C15) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        out.append(spec["center"] + spec["scale"] * (2 * (((z ^ (z >> 31)) >> 40) / (1 << 24)) - 1))
    return out


def folder(root, data):
    """Writes the encoders as folders of sentence-transformers do."""
    for name, model in data["models"].items():
        at = root / name
        (at / "1_Pooling").mkdir(parents=True)
        header, body = {}, b""
        for key, spec in model["params"].items():
            values = weights(key, spec)
            end = len(body) + 4 * len(values)
            header[key] = {"dtype": "F32", "shape": spec["shape"], "data_offsets": [len(body), end]}
            body += struct.pack(f"<{len(values)}f", *values)
        head = json.dumps(header).encode()
        head += b" " * (-len(head) % 8)
        (at / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + body)
        (at / "config.json").write_text(json.dumps(model["config"]))
        (at / "tokenizer.json").write_text(json.dumps(data["tokenizer"]))
        kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
        modules = [{"type": f"sentence_transformers.models.{k}", "path": p} for k, p in kinds]
        (at / "modules.json").write_text(json.dumps(modules))
        (at / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')


def unit(vector):
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector]


def close(got, want):
    assert len(got) == len(want), f"{len(got)} numbers, not {len(want)}"
    worst = max(abs(a - b) for a, b in zip(got, want))
    assert worst < 1e-5, f"differs by {worst}"


def add(root):
    """Puts the cases among the others; gives what starts and what stops their server."""
    case, equal, error = suite.case, suite.equal, suite.error
    data = json.loads(DATA.read_text())
    folder(root, data)
    server = suite.Server(suite.PROGRAM, "--models-dir", str(root))
    texts, api = data["texts"], server.client.embeddings

    @case("bert", "roberta", "distilbert")
    def embeddings_as_transformers(name):
        model = data["models"][name]
        got = api.create(model=name, input=model["ids"])
        equal([d.index for d in got.data], list(range(len(model["ids"]))))
        for one, want in zip(got.data, model["vectors"]["mean"]):
            close(one.embedding, unit(want))
        equal(got.usage.prompt_tokens, sum(map(len, model["ids"])))
        equal(got.usage.total_tokens, got.usage.prompt_tokens)

    @case("float", "base64", None)
    def embeddings_formats(form):
        more = {"encoding_format": form} if form else {}
        got = api.create(model="bert", input=texts, **more)
        for one, want in zip(got.data, data["models"]["bert"]["vectors"]["mean"]):
            vector = one.embedding
            if isinstance(vector, str):
                raw = base64.b64decode(vector)
                vector = struct.unpack(f"<{len(raw) // 4}f", raw)
            close(vector, unit(want))

    @case(*[(i,) for i in range(len(texts))])
    def embeddings_alone_as_together(i):
        together = api.create(model="bert", input=texts, encoding_format="float").data[i].embedding
        alone = api.create(model="bert", input=texts[i], encoding_format="float").data[0].embedding
        equal(alone, together)
        equal(api.create(model="bert", input=data["ids"][i], encoding_format="float").data[0].embedding, together)

    @case(1, 2048)
    def embeddings_many(n):
        got = api.create(model="bert", input=["fox"] * n)
        equal(len(got.data), n)
        equal(got.data[-1].embedding, got.data[0].embedding)

    @case()
    def embeddings_dimensions_all():
        equal(len(api.create(model="bert", input="fox", dimensions=16).data[0].embedding), 16)

    @case(({"dimensions": 8}, "dimensions"), ({"dimensions": 99}, "dimensions"), ({"encoding_format": "x"}, "encoding_format"),
          ({"input": []}, "input"), ({"input": ["a"] * 2049}, "input"), ({"input": [1.5]}, "input"), ({"input": ["a", [1]]}, "input"),
          ({"input": {}}, "input"), ({"input": None}, "input"), ({"input": "fox " * 99}, "input"),
          ({"input": [[31]]}, "input"), ({"input": [[2**40]]}, "input"), ({"model": "default"}, "model"))
    def embeddings_wrong(more, param):
        response = server.post("/v1/embeddings", {"model": "bert", "input": "fox", **more})
        error(response, 400, param, "invalid_request_error")

    @case()
    def embeddings_unknown_model():
        error(server.post("/v1/embeddings", {"model": "brt", "input": "fox"}), 404, "model", holds="bert")

    @case()
    def embeddings_name_the_flag():
        error(server.post("/v1/embeddings", {"input": "fox"}), 400, "model", holds="--pooling")

    @case()
    def embeddings_encoders_do_not_chat():
        error(server.post("/v1/chat/completions", {"model": "bert", "messages": suite.HI}), 400, "model", holds="embeddings")
        listed = {m.id: m.capabilities for m in server.client.models.list().data}
        equal(listed["bert"], ["embeddings"])
        equal(listed["lapis-demo"], ["completion", "chat"])

    @case()
    def embeddings_user_is_taken():
        response = server.post("/v1/embeddings", {"model": "bert", "input": "fox", "user": "me", "zzz": 1})
        equal(response.status_code, 200)
        assert "zzz" in response.headers["x-lapis-warnings"], response.headers

    @case({}, {"top_n": 2}, {"return_documents": False}, {"documents": [{"text": t} for t in texts[1:]]})
    def rerank_by_cosine(more):
        vectors = [unit(v) for v in data["models"]["bert"]["vectors"]["mean"]]
        scores = [sum(a * b for a, b in zip(vectors[0], v)) for v in vectors[1:]]
        want = sorted(range(len(scores)), key=lambda i: -scores[i])[: more.get("top_n")]
        got = server.post("/v1/rerank", {"model": "bert", "query": texts[0], "documents": texts[1:], **more}).json()
        equal([r["index"] for r in got["results"]], want)
        close([r["relevance_score"] for r in got["results"]], [scores[i] for i in want])
        shown = [{"text": texts[1:][i]} for i in want] if more.get("return_documents") is not False else [None] * len(want)
        equal([r.get("document") for r in got["results"]], shown)

    @case(({"query": None}, "query"), ({"query": 5}, "query"), ({"documents": []}, "documents"), ({"documents": [5]}, "documents"), ({"documents": "a"}, "documents"),
          ({"documents": ["a"] * 2049}, "documents"), ({"top_n": 0}, "top_n"), ({"documents": ["fox " * 99]}, "documents"), ({"model": "default"}, "model"))
    def rerank_wrong(more, param):
        error(server.post("/v1/rerank", {"model": "bert", "query": "fox", "documents": ["a"], **more}), 400, param, "invalid_request_error")

    @case()
    def embeddings_leave_nothing():
        suite.until(lambda: server.metric("embedding_bytes") == 0, 2, "memory is reserved still")
        equal(server.metric("faults_total"), 0)

    return server
