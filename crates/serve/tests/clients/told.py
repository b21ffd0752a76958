"""What a server tells of itself: its numbers for Prometheus, and a line of the log for each request."""

import json
import pathlib
import re
import shutil
import socket
import struct
import tempfile
import time

import httpx

import suite
from suite import ENDLESS, FOX, HI, case, chat, equal, request, until

# Each line of the specification's list, and the metrics that are it.
TOLD = {
    "requests by route and status": ["requests_total"],
    "errors by code": ["errors_total"],
    "queue length and wait": ["queue_length", "queue_seconds_bucket"],
    "time to first token": ["time_to_first_token_seconds_bucket"],
    "inter-token latency": ["inter_token_seconds_bucket"],
    "end-to-end time": ["request_seconds_bucket"],
    "prompt and output tokens": ["prompt_tokens_total", "output_tokens_total"],
    "running rows": ["running"],
    "prefill tokens": ["prefill_tokens_total"],
    "batch occupancy": ["batch_occupancy", "batch_limit", "decode_rows_total", "decode_steps_total"],
    "KV pages": ["kv_pages_used", "kv_pages_total"],
    "prefix cache": ["prefix_cache_hits_total", "prefix_cache_misses_total", "prefix_cache_evictions_total", "prefix_cache_bytes"],
    "prefix cache on disk": ["prefix_disk_hits_total", "prefix_disk_misses_total", "prefix_disk_evictions_total", "prefix_disk_bytes"],
    "reused tokens": ["cached_tokens_total", "prefix_disk_read_tokens_total"],
    "drafts": ["draft_proposed_tokens_total", "draft_accepted_tokens_total"],
    "models": ["model_warm_up_seconds_bucket", "model_loads_total", "model_unloads_total", "model_load_seconds_bucket"],
    "adapters": ["adapters", "models_with_adapters", "adapter_load_seconds_bucket"],
    "cancellations": ["cancelled_total"],
    "memory": ["memory_bytes", "memory_limit_bytes"],
    "open connections": ["connections"],
    "rejected by reason": ["rejected_total"],
    "grammar compile time": ["grammar_compile_seconds_bucket"],
    "build info": ["build_info"],
}


def numbers(server):
    """All numbers by name and labels."""
    found = re.findall(r"^lapis_(\w+)(?:\{(.*)\})? (\S+)$", server.http.get("/metrics").text, re.M)
    return {(name, labels): float(value) for name, labels, value in found}


def label(server, name, **labels):
    return numbers(server).get((name, ",".join(f'{k}="{v}"' for k, v in labels.items())), 0)


@case(*TOLD)
def metric_of(what):
    suite.PLAIN.http.get("/nothing")
    httpx.get(suite.PLAIN.url + "/health", headers={"host": "elsewhere.example"})
    there = {name for name, _ in numbers(suite.PLAIN)}
    equal([name for name in TOLD[what] if name not in there], [])


@case()
def metrics_form():
    """Each is told of once, with what it is and of which type, and no counter ever falls."""
    text = suite.PLAIN.http.get("/metrics").text
    kinds = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.M))
    equal(len(kinds), len(re.findall(r"^# TYPE", text, re.M)))
    equal(set(kinds), set(re.findall(r"^# HELP (\S+) \S", text, re.M)))
    for line in text.splitlines():
        if not line.startswith("#"):
            name = re.match(r"\w+", line)[0]
            assert name in kinds or kinds.get(re.sub("_(bucket|sum|count)$", "", name)) == "histogram", line
    for name, kind in kinds.items():
        equal(name.endswith("_total"), kind == "counter" or name == "lapis_kv_pages_total", f"{name}: {kind}")
    before = numbers(suite.PLAIN)
    chat(max_tokens=4)
    after = numbers(suite.PLAIN)
    falls = [key for key, value in before.items() if kinds.get("lapis_" + key[0]) == "counter" and after[key] < value]
    equal(falls, [])


@case()
def metrics_move():
    """What a request does is in the numbers."""
    server = suite.Server(suite.PROGRAM, "--draft", "ngram")
    try:
        body = {"messages": FOX, "max_tokens": 40, "temperature": 0, "logit_bias": ENDLESS}
        answers = [server.post("/v1/chat/completions", body).json() for _ in range(2)]
        server.post("/v1/chat/completions", {"messages": HI, "max_tokens": 30, "response_format": {"type": "json_object"}})
        server.post("/v1/chat/completions", {"model": "nothing", "messages": HI})
        server.post("/v1/messages", {"max_tokens": "x", "messages": HI})
        usage = [a["usage"] for a in answers]
        until(lambda: label(server, "requests_total", route="/v1/chat/completions", status="200") == 3, 5, "three requests")
        n = {name: value for (name, labels), value in numbers(server).items() if not labels}
        assert n["output_tokens_total"] >= 80 and n["prompt_tokens_total"] > 2 * usage[0]["prompt_tokens"]
        equal(n["cached_tokens_total"] >= usage[1]["prompt_tokens_details"]["cached_tokens"] > 0, True)
        equal(n["prompt_tokens_total"] - n["cached_tokens_total"], n["prefill_tokens_total"])
        assert n["decode_rows_total"] >= n["decode_steps_total"] > 0 and n["draft_proposed_tokens_total"] >= n["draft_accepted_tokens_total"]
        assert n["grammar_compile_seconds_count"] >= 1 and n["inter_token_seconds_count"] > 70 and n["time_to_first_token_seconds_count"] == 3
        equal((n["model_loads_total"], n["model_unloads_total"], n["adapters"]), (1, 0, 0))
        until(lambda: 0 < numbers(server)["kv_pages_used", ""] < numbers(server)["kv_pages_total", ""], 5, "no pages")
        equal(label(server, "errors_total", code="model_not_found"), 1)
        equal(label(server, "errors_total", code="invalid_request_error"), 1)
        equal(label(server, "requests_total", route="/v1/messages", status="400"), 1)
        until(lambda: numbers(server)["running", ""] == 0 == numbers(server)["batch_occupancy", ""], 5, "something runs")
    finally:
        server.stop()


@case()
def metrics_of_refusals():
    """Who is refused is counted by the reason, and requests by the name of their key, which is never told."""
    before = numbers(suite.KEYED)
    for headers in ({}, {"authorization": "Bearer x"}, {"host": "elsewhere.example"}, {"origin": "https://elsewhere.example"}):
        httpx.get(suite.KEYED.url + "/v1/models", headers=headers)
    httpx.post(suite.KEYED.url + "/v1/chat/completions", content="x", headers={"x-api-key": suite.KEYED.key, "content-type": "text/plain"})
    new = lambda name, **labels: label(suite.KEYED, name, **labels) - before.get((name, ",".join(f'{k}="{v}"' for k, v in labels.items())), 0)
    for reason, count in (("invalid_api_key", 2), ("host_not_allowed", 1), ("origin_not_allowed", 1), ("unsupported_media_type", 1)):
        until(lambda: new("rejected_total", reason=reason) == count, 2, f"{reason} {new('rejected_total', reason=reason)}")
        equal(new("errors_total", code=reason), count)
    assert new("key_requests_total", key="first") > 0
    assert suite.KEYED.key not in suite.KEYED.http.get("/metrics").text


def adapter(folder):
    """An adapter of the demo model that changes nothing."""
    config = json.loads((suite.DEMO / "config.json").read_text())
    width, heads = config["hidden_size"], config["num_attention_heads"]
    out = heads * config.get("head_dim", width // heads)
    shapes = {"lora_a": [width, 2], "lora_b": [2, out]}
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4 * shape[0] * shape[1]
        header[f"model.layers.0.self_attn.q_proj.{name}"] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(header).encode()
    folder.mkdir()
    (folder / "adapters.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(at))
    (folder / "adapter_config.json").write_text(json.dumps({"num_layers": -1, "lora_parameters": {"rank": 2, "scale": 1.0, "dropout": 0.0}}))


@case()
def every_answer_of_the_operator():
    """Those that no other case asks for: they are held to the document, too."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "admin").write_text("admin-key\n")
        shutil.copytree(suite.DEMO, folder / "models" / "other")
        (folder / "adapters").mkdir()
        adapter(folder / "adapters" / "plain")
        server = suite.Server(suite.PROGRAM, "--admin-key-file", str(folder / "admin"), "--models-dir", str(folder / "models"),
                              "--adapters-dir", str(folder / "adapters"))
        try:
            def ask(method, path, **body):
                r = server.http.request(method, path, json=body or None, headers={"authorization": "Bearer admin-key"})
                equal(r.status_code, 200, r.text)
                return r.json()

            equal([m["id"] for m in ask("GET", "/admin/models")["models"]], ["lapis-demo"])
            equal(ask("POST", "/admin/models", model="other")["id"], "other")
            equal(ask("DELETE", "/admin/models/other"), {"id": "other", "unloaded": True})
            equal(ask("POST", "/admin/adapters", name="plain")["rank"], 2)
            plain = {"messages": FOX, "max_tokens": 8, "temperature": 0}
            words = [server.post("/v1/chat/completions", {**plain, "model": m}).json()["choices"][0]["message"]["content"] for m in ("lapis-demo", "lapis-demo:plain")]
            equal(words[0], words[1])
            equal([[on["id"] for on in a["loaded"]] for a in ask("GET", "/admin/adapters")["adapters"]], [["lapis-demo:plain"]])
            n = numbers(server)
            equal((n["adapters", ""], n["models_with_adapters", ""], n["adapter_load_seconds_count", ""]), (1, 1, 1))
            equal(ask("DELETE", "/admin/adapters/plain"), {"name": "plain", "unloaded": True})
            until(lambda: ask("GET", "/admin/cache")["entries"] > 0, 5, "nothing is remembered")
            assert ask("DELETE", "/admin/cache")["cleared"] > 0
            for path in ("/dashboard.json", "/api/version", "/api/tags", "/api/ps"):
                ask("GET", path)
        finally:
            server.stop()


def logged(server, name):
    """The line of the log about a request, once it is there."""
    lines = lambda: [json.loads(l) for l in server.lines if l.startswith("{") and json.loads(l).get("id") == name]
    until(lines, 5, f"no line about {name}: {server.lines}")
    time.sleep(0.2)
    equal(len(lines()), 1, name)
    return lines()[0]


@case()
def log_lines():
    """One for each request, with who asked for what, what came of it, and how long it took."""
    server = suite.Server(suite.PROGRAM, "--log-format", "json", "--pooling", "mean")
    try:
        post = lambda path, body, name: server.http.post(path, json=body, headers={"x-request-id": name})
        answer = post("/v1/chat/completions", {"messages": FOX, "max_tokens": 5}, "whole").json()
        line = logged(server, "whole")
        usage = answer["usage"]
        want = {"key": "-", "method": "POST", "path": "/v1/chat/completions", "route": "/v1/chat/completions", "status": 200,
                "model": "lapis-demo", "prompt_tokens": usage["prompt_tokens"], "cached_tokens": 0,
                "completion_tokens": usage["completion_tokens"], "error": None}
        equal({k: line[k] for k in want}, want)
        assert 0 < line["queue_ms"] <= line["ttft_ms"] <= line["ms"], line
        post("/v1/messages", {"messages": FOX, "max_tokens": 5, "stream": True}, "stream")
        line = logged(server, "stream")
        equal((line["status"], line["completion_tokens"] > 0, line["ttft_ms"] <= line["ms"]), (200, True, True), line)
        # Prompts of one request are one line, and so are texts whose vectors are asked for.
        post("/v1/completions", {"prompt": ["a b", "c d e"], "max_tokens": 3, "logit_bias": ENDLESS}, "several")
        equal(logged(server, "several")["completion_tokens"], 6)
        post("/v1/embeddings", {"input": "a text"}, "vector")
        line = logged(server, "vector")
        equal((line["status"], line["model"], line["prompt_tokens"] > 0, line["ttft_ms"]), (200, "lapis-demo", True, None), line)
        post("/v1/chat/completions", {"messages": FOX, "top_p": 7}, "wrong")
        line = logged(server, "wrong")
        equal((line["status"], line["model"], "top_p" in line["error"]), (400, None, True), line)
        post("/nothing/" + "x" * 300, {}, "nowhere")
        equal((logged(server, "nowhere")["route"], logged(server, "nowhere")["status"]), ("other", 404))
    finally:
        server.stop()


@case(True, False)
def log_of_who_left(stream):
    """A client that goes is one line, with 499."""
    server = suite.Server(suite.PROGRAM, "--log-format", "json")
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as s:
            s.sendall(request({"messages": FOX, "logit_bias": ENDLESS, "stream": stream}, "X-Request-Id: left"))
            until(lambda: server.metric("output_tokens_total") > 0, 5, "nothing is written")
        line = logged(server, "left")
        equal((line["status"], line["completion_tokens"] > 0, line["model"]), (499, True, "lapis-demo"), line)
        until(lambda: label(server, "requests_total", route="/v1/chat/completions", status="499") == 1, 2, "it is not counted")
    finally:
        server.stop()
