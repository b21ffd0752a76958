"""Holds every answer that cases get through httpx, the official clients' too, to the schemas of /openapi.json."""

import importlib
import json
import urllib.request

import jsonschema

WRONG = []  # what did not fit, since somebody looked
SEEN = set()  # names of schemas that an answer was held to
DOCUMENT, CHECKS = {}, {}


def begin(url):
    """Looks at all answers from now on, by what a server says of itself."""
    DOCUMENT.update(json.load(urllib.request.urlopen(url + "/openapi.json")))
    # The official clients may have a httpx of their own.
    for name in ("httpx", "httpx2"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        watch(module)


def watch(module):
    plain = module.HTTPTransport.handle_request

    class Heard(module.SyncByteStream):
        def __init__(self, stream, listener):
            self.stream, self.listener = stream, listener

        def __iter__(self):
            for part in self.stream:
                self.listener.hear(part)
                yield part
            self.listener.end()

        def close(self):
            self.stream.close()

    def handle(self, request):
        response = plain(self, request)
        listener = Listener(request.method, request.url.path, response.status_code, response.headers.get("content-type", ""))
        response.stream = Heard(response.stream, listener)
        return response

    module.HTTPTransport.handle_request = handle


def error(path):
    return "AnthropicError" if path.startswith("/v1/messages") else "OllamaError" if path.startswith("/api/") else "Error"


def schema(method, path, status, kind):
    """What an answer of a type should look like: a schema, or None where nothing is said."""
    path = path.rstrip("/") if len(path) > 1 else path
    for known, methods in DOCUMENT["paths"].items():
        head, open_end, _ = known.partition("{id}")
        if (path == known or open_end and path.startswith(head) and len(path) > len(head)) and method.lower() in methods:
            answers = methods[method.lower()]["responses"]
            content = answers.get(str(status), answers["default"])["content"]
            assert kind in content, f"{method} {path}: {status} is {kind}, and not one of {list(content)}"
            return content[kind].get("schema")
    return {"$ref": "#/components/schemas/" + error(path)} if kind == "application/json" else None


class Listener:
    def __init__(self, method, path, status, kind):
        self.about, self.kind, self.data = f"{method} {path} {status}", kind.split(";")[0], b""
        self.schema = None
        if not kind or method in ("HEAD", "OPTIONS") or not path.isprintable():
            return
        try:
            self.schema = schema(method, path, status, self.kind)
        except AssertionError as e:
            WRONG.append(str(e))

    def hear(self, part):
        if self.schema is None:
            return
        self.data += part
        if self.kind == "text/event-stream":
            *events, self.data = self.data.split(b"\n\n")
            for event in events:
                for line in event.split(b"\n"):
                    if line.startswith(b"data: ") and line != b"data: [DONE]":
                        self.check(line[6:])

    def end(self):
        if self.schema is not None and self.kind == "application/json":
            self.check(self.data)

    def check(self, text):
        key = json.dumps(self.schema)
        if key not in CHECKS:
            whole = {**self.schema, "components": DOCUMENT["components"]}
            CHECKS[key] = jsonschema.Draft202012Validator(whole)
        SEEN.add(key)
        value = json.loads(text)
        fault = next(CHECKS[key].iter_errors(value), None)
        if fault is not None:
            fault = jsonschema.exceptions.best_match([fault])
            WRONG.append(f"{self.about} does not fit /openapi.json at {fault.json_path}: {fault.message:.200} in {text[:200]}")


def unseen():
    """Answers that are in the document, and of which no case had any."""
    named = lambda c: c.get("schema") and json.dumps(c["schema"])
    answers = [m["responses"]["200"]["content"].values() for ms in DOCUMENT["paths"].values() for m in ms.values()]
    return sorted({n for contents in answers for c in contents if (n := named(c))} - SEEN)
