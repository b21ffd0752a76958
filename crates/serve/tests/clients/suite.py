"""What all cases share: servers to ask, and how answers are checked."""

import json
import os
import pathlib
import re
import socket
import ssl
import statistics
import subprocess
import tempfile
import threading
import time

import httpx
import openai


DEMO = pathlib.Path(__file__).resolve().parents[4] / "examples" / "demo-model" / "model"
END = "2"  # the id of <|im_end|>, which ends a reply
SHORT = {END: 100}  # a bias that ends replies at once
ENDLESS = {END: -100}  # a bias that keeps replies going
FOX = [{"role": "user", "content": "Tell me a story about a fox"}]
HI = [{"role": "user", "content": "hi"}]

TEMPLATE = """{% if tools %}<|im_start|>system
A call is <tool_call>
{"name": <name>, "arguments": <object>}
</tool_call>
{% for tool in tools %}{{ tool.function.name }} {% endfor %}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content or '' }}{% for call in m.tool_calls or [] %}<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


class Server:
    """A server of its own."""

    def __init__(self, program, *flags, key=None, environment=None, trust=None):
        """`trust`: the file of the certificate, for TLS."""
        self.key = key
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LAPIS_")} | (environment or {})
        # What other servers remembered on disk must not be found.
        self.cache = tempfile.TemporaryDirectory()
        environment["XDG_CACHE_HOME"] = self.cache.name
        self.process = subprocess.Popen(
            [program, "serve", "--port", "0", *flags], stderr=subprocess.PIPE, text=True, env=environment
        )
        self.lines = []
        for line in self.process.stderr:
            self.lines.append(line)
            found = re.search(r"https?://127\.0\.0\.1:(\d+)", line)
            if found:
                break
        else:
            raise RuntimeError("no address: " + "".join(self.lines))
        self.port, self.url = int(found[1]), found[0]
        threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True).start()
        headers = {"authorization": f"Bearer {key}"} if key else {}
        verify = ssl.create_default_context(cafile=trust) if trust else True
        self.http = httpx.Client(base_url=self.url, timeout=60, headers=headers, verify=verify)
        self.client = openai.OpenAI(base_url=self.url + "/v1", api_key=key or "none", max_retries=0, timeout=60, http_client=openai.DefaultHttpxClient(verify=verify))
        until(lambda: self.http.get("/ready").status_code == 200, 30, "/ready is not 200")

    def post(self, path, body, **more):
        return self.http.post(path, json=body, **more)

    def raw(self, data, answers=1, timeout=20):
        """Sends bytes, gives the answers as (status, headers, body)."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as s:
            try:
                s.sendall(data)
            except ConnectionError:
                pass
            file = s.makefile("rb")
            return [answer(file) for _ in range(answers)]

    def metric(self, name):
        found = re.search(rf"^lapis_{name} (\S+)$", self.http.get("/metrics").text, re.M)
        assert found, f"no metric {name}"
        return float(found[1])

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.cache.cleanup()


def answer(file):
    """One answer from a connection; 1xx are given as they are."""
    line = file.readline()
    assert line, "the connection was closed without an answer"
    status, headers = int(line.split()[1]), {}
    while (line := file.readline().strip()):
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    return status, headers, file.read(int(headers.get("content-length", 0)))


def until(check, seconds, what):
    """Asks again and again."""
    end = time.monotonic() + seconds
    while True:
        try:
            if check():
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < end, what
        time.sleep(0.01)


def equal(got, want, what=""):
    assert got == want, f"{what} got {got!r:.300}, want {want!r:.300}"


def error(response, status, param=None, kind=None, holds=""):
    """Checks an answer that refuses."""
    equal(response.status_code, status, response.text)
    body = response.json()
    equal(list(body), ["error"])
    equal(set(body["error"]), {"message", "type", "param", "code"})
    if param:
        equal(body["error"]["param"], param, body["error"]["message"])
    if kind:
        equal(body["error"]["type"], kind)
    assert holds in body["error"]["message"], f"{holds!r} is not in {body['error']['message']!r}"
    return body["error"]


def holds(schema, value, at="$"):
    """Checks a value by the few words of JSON Schema that are used here."""
    if "enum" in schema:
        assert value in schema["enum"], f"{at}: {value!r}"
        return
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}
    kind = schema["type"]
    assert isinstance(value, kinds[kind]) and (kind == "boolean" or not isinstance(value, bool)), f"{at}: {value!r}"
    if kind == "object":
        for name in schema.get("required", []):
            assert name in value, f"{at} lacks {name}"
        for name, part in value.items():
            assert name in schema["properties"], f"{at} has {name}"
            holds(schema["properties"][name], part, f"{at}.{name}")
    if kind == "array":
        assert schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 1 << 30), f"{at}: {value}"
        for part in value:
            holds(schema["items"], part, at + "[]")
    if kind in ("integer", "number"):
        assert schema.get("minimum", value) <= value <= schema.get("maximum", value), f"{at}: {value}"


CASES = []


def case(*table):
    """Puts a function among the cases: once, or once for each row of a table."""

    def add(function):
        for row in table or [()]:
            row = row if isinstance(row, tuple) else (row,)
            label = function.__name__ + (f" {row!r:.100}" if row else "")
            CASES.append((label, lambda function=function, row=row: function(*row)))
        return function

    return add


PLAIN = KEYED = TOOLS = MARKED = EMBEDDER = None
PROGRAM = ""


def chat(messages=None, server=None, **more):
    more.setdefault("model", "default")
    return (server or PLAIN).client.chat.completions.create(messages=messages or HI, **more)


def text(reply, i=0):
    return reply.choices[i].message.content


def joined(stream):
    """The text, the reasons and the chunks of a stream."""
    chunks = list(stream)
    parts = [c.choices[0] for c in chunks if c.choices]
    return "".join(p.delta.content or "" for p in parts), [p.finish_reason for p in parts if p.finish_reason], chunks


JSON = {"content-type": "application/json"}
TOLD = []  # what was measured, for who reads the end of the list


def told(what, seconds):
    """Keeps the median of some times."""
    TOLD.append(f"{statistics.median(seconds) * 1e3:8.2f} ms  {what}")


def request(body, *headers, path="/v1/chat/completions"):
    body = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
