#!/usr/bin/env python3
"""Cases of the pages, driven in a real Chromium over its DevTools protocol.

    pip install websockets        # and a Chromium: `apt-get install chromium`, or CHROMIUM=/path/to/it
    python browser.py /path/to/lapis [--shots FOLDER] [part of a case's name]

Starts its own servers on free ports and one browser without a window. Prints a line for each case and a count; exits
with 1 on a failure. With --shots it leaves pictures of the pages in a folder.
"""

import base64
import contextlib
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

from websockets.sync.client import connect

FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--disable-extensions",
         "--hide-scrollbars", "--mute-audio", "--remote-debugging-port=0", "--remote-allow-origins=*", "--lang=en-US"]
KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, ""), " ": (32, " "), "ArrowDown": (40, "")}
STORY = "Tell me a story about a fox"
# What a model or a file may say, and what must come of it.
MARKDOWN = """# Title

Some **bold**, *italic* and `code`; <b id="html">not bold</b> <img src=x onerror="window.hacked=1"> <script>window.hacked=1</script>

- one
- two
  - deeper

1. first
2. second

| a | b |
|---|--:|
| 1 | 2 |

> quoted

```python
print("<hi>")
```

[good](https://example.org/a) and [bad](javascript:window.hacked=1)"""


class Server:
    """A server of its own."""

    def __init__(self, program, *flags):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LAPIS_")}
        self.process = subprocess.Popen([program, "serve", "--port", "0", *flags], stderr=subprocess.PIPE, text=True, env=environment)
        found = next(filter(None, (re.search(r"http://127\.0\.0\.1:\d+", line) for line in self.process.stderr)))
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        self.url = found[0]
        end = time.monotonic() + 30
        while True:
            try:
                return urllib.request.urlopen(self.url + "/ready", timeout=5).close()
            except OSError:
                assert time.monotonic() < end, "/ready is not 200"
                time.sleep(0.02)

    def stop(self):
        self.process.kill()
        self.process.wait()


class Browser:
    """A browser, and the one page of it that is looked at."""

    def __init__(self, folder):
        program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))))
        self.folder, self.numbers = folder, itertools.count(1)
        self.process = subprocess.Popen([program, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        port = folder / "profile" / "DevToolsActivePort"
        end = time.monotonic() + 30
        while not port.exists() or "\n" not in port.read_text():
            assert time.monotonic() < end and self.process.poll() is None, "the browser does not start"
            time.sleep(0.02)
        host = f"127.0.0.1:{port.read_text().splitlines()[0]}"
        targets = json.load(urllib.request.urlopen(f"http://{host}/json/list", timeout=10))
        page = next(t for t in targets if t["type"] == "page")
        self.open_things = contextlib.ExitStack()
        self.socket = self.open_things.enter_context(connect(page["webSocketDebuggerUrl"], max_size=1 << 28))
        self.faults, self.requests, self.canned, self.events = [], [], None, []
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(domain + ".enable")
        self.downloads = folder / "downloads"
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads), eventsEnabled=False)

    def hear(self, message):
        method, p = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.faults.append(p["exceptionDetails"].get("exception", {}).get("description") or p["exceptionDetails"]["text"])
        elif method == "Runtime.consoleAPICalled" and p["type"] in ("error", "warning", "assert"):
            self.faults.append(" ".join(str(a.get("value") or a.get("description")) for a in p["args"]))
        elif method == "Log.entryAdded" and p["entry"]["level"] in ("error", "warning"):
            self.faults.append(p["entry"]["text"] + " " + p["entry"].get("url", ""))
        elif method == "Network.requestWillBeSent":
            self.requests.append(p["request"]["url"])
        elif method == "Fetch.requestPaused":
            self.events.append(p)
        elif method == "Page.javascriptDialogOpening":
            self.faults.append("a dialog: " + p["message"])

    def call(self, method, **params):
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv(timeout=20))
            if message.get("id") != number:
                self.hear(message)
                continue
            assert "error" not in message, f"{method}: {message.get('error')}"
            return message["result"]

    def js(self, expression):
        got = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in got, f"{expression}: {got['exceptionDetails'].get('exception', {}).get('description')}"
        return got["result"].get("value")

    def until(self, expression, seconds=10):
        end = time.monotonic() + seconds
        while not (got := self.js(expression)):
            assert time.monotonic() < end, f"it does not come: {expression}"
            time.sleep(0.02)
            self.answer()
        return got

    def answer(self):
        """Answers requests that were stopped on their way with what was given."""
        while self.events:
            body = base64.b64encode(self.canned.encode()).decode()
            self.call("Fetch.fulfillRequest", requestId=self.events.pop(0)["requestId"], responseCode=200, body=body,
                      responseHeaders=[{"name": "content-type", "value": "text/event-stream"}])

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.until(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    def key(self, name, shift=False):
        code, words = KEYS[name]
        more = {"key": name, "code": "Space" if name == " " else name, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", **({"text": words} if words else {}), **more)
        self.call("Input.dispatchKeyEvent", type="keyUp", **more)

    def write(self, words):
        self.call("Input.insertText", text=words)

    def click(self, selector):
        spot = self.until(f"""(() => {{ const el = document.querySelector({json.dumps(selector)}); if (!el || el.disabled) return null;
            el.scrollIntoView({{ block: "nearest" }}); const r = el.getBoundingClientRect();
            const x = r.x + r.width / 2, y = r.y + r.height / 2;
            return r.width && el.contains(document.elementFromPoint(x, y)) ? [x, y] : null; }})()""")
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=spot[0], y=spot[1], button="left", clickCount=1)

    def look(self, width=1280, height=800, dark=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def shot(self, name):
        if SHOTS:
            SHOTS.mkdir(parents=True, exist_ok=True)
            time.sleep(0.3)
            data = self.call("Page.captureScreenshot", format="png")["data"]
            (SHOTS / (name + ".png")).write_bytes(base64.b64decode(data))

    def stop(self):
        self.open_things.close()
        # Its own group: the browser is many processes.
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


CASES = []
SHOTS = None


def case(function):
    CASES.append(function)
    return function


def equal(got, want, what=""):
    assert got == want, f"{what} got {got!r:.300}, want {want!r:.300}"


RUNNING = "document.getElementById('send').dataset.running === 'true'"
OVER = "document.getElementById('send').dataset.running !== 'true' && [...document.querySelectorAll('.assistant')].every(a => a.getAttribute('aria-busy') === 'false')"
SAID = "document.querySelector('.assistant:last-of-type .md:not(.inside)').textContent"


def fresh(b, url):
    """The chat without a past."""
    b.open(url + "/")
    b.js("localStorage.clear(), sessionStorage.clear()")
    b.open(url + "/")
    b.until("document.querySelectorAll('#model option').length > 0 && document.querySelector('#model').value !== ''")


def send(b, words):
    b.js("document.getElementById('prompt').focus()")
    b.write(words)
    b.key("Enter")


def slowly(b, rate):
    b.call("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=rate, uploadThroughput=-1)


@case
def page_loads(b, url):
    fresh(b, url)
    equal(b.js("document.title"), "lapis")
    equal(b.js("document.activeElement.id"), "prompt", "what has the focus")
    equal(b.js("document.getElementById('model').value"), "lapis-demo")
    paints = []
    while len(paints) < 5 and min(paints, default=1e9) >= 300:
        b.open(url + "/")
        paints.append(b.until("performance.getEntriesByName('first-contentful-paint')[0]?.startTime"))
    assert min(paints) < 300, f"first paint after {min(paints):.0f} ms"
    b.shot("chat-empty")


@case
def reply_streams(b, url):
    fresh(b, url)
    slowly(b, 20000)
    send(b, STORY)
    b.until(RUNNING)
    first = b.until(f"document.querySelector('.assistant .md:not(.inside)') && {SAID}")
    b.until(f"{SAID}.length > {len(first)}")
    slowly(b, -1)
    b.until(OVER)
    assert len(b.js(SAID)) > 20
    equal(b.js("document.querySelector('.user .text').textContent"), STORY)
    assert b.js("/^\\d+ tokens · .*tokens\\/s/.test(document.querySelector('.assistant .stats').textContent)"), b.js("document.querySelector('.assistant .stats').textContent")
    equal(b.js("document.title"), STORY + " · lapis")
    equal(b.js("document.querySelectorAll('#chats li').length"), 1)
    b.shot("chat-reply")


@case
def reply_stops(b, url):
    for way in ("Escape", "button"):
        fresh(b, url)
        slowly(b, 6000)
        send(b, STORY)
        b.until(f"{RUNNING} && document.querySelector('.assistant .md:not(.inside)')?.textContent.length > 5")
        b.key("Escape") if way == "Escape" else b.click("#send")
        b.until(OVER)
        slowly(b, -1)
        assert "stopped" in b.js("document.querySelector('.assistant .stats').textContent"), way
        kept = b.js(SAID)
        b.open(url + "/")
        b.click("#chats .open")
        equal(b.js(SAID), kept, "after a reload")


@case
def edits_are_branches(b, url):
    fresh(b, url)
    send(b, STORY)
    b.until(f"document.querySelector('.assistant') && {OVER}")
    old = b.js(SAID)
    b.js("document.querySelector('.user').scrollIntoView()")
    b.click(".user [aria-label=Edit]")
    b.until("document.activeElement.matches('.editing textarea')")
    b.js("document.activeElement.select()")
    b.write("Explain how tides work")
    b.key("Enter")
    b.until(f"document.querySelector('.user .text')?.textContent === 'Explain how tides work' && {OVER}")
    new = b.js(SAID)
    assert b.js("document.querySelector('.user .count').textContent").endswith("2 / 2")
    b.click(".user [aria-label='Earlier version']")
    equal((b.js("document.querySelector('.user .text').textContent"), b.js(SAID)), (STORY, old))
    b.click(".user [aria-label='Later version']")
    equal(b.js(SAID), new)
    # Escape leaves an edit, and the focus where it was.
    b.click(".user [aria-label=Edit]")
    b.until("document.activeElement.matches('.editing textarea')")
    b.key("Escape")
    b.until("document.activeElement.matches('.user [aria-label=Edit]')")


@case
def replies_are_given_again(b, url):
    fresh(b, url)
    b.click("#tune-open")
    b.js("document.getElementById('temperature').focus()")
    b.write("1.5")
    b.key("Tab")
    b.click("#tune-close")
    send(b, STORY)
    b.until(f"document.querySelector('.assistant') && {OVER}")
    first = b.js(SAID)
    b.click(".assistant [aria-label='Answer again']")
    b.until(f"document.querySelector('.assistant .count')?.textContent.endsWith('2 / 2') && {OVER}")
    second = b.js(SAID)
    assert first != second, "the same at a temperature of 1.5"
    b.shot("chat-branches")
    b.click(".assistant [aria-label='Earlier version']")
    equal(b.js(SAID), first)
    b.open(url + "/")
    b.click("#chats .open")
    equal(b.js(SAID), first, "after a reload")
    b.click(".assistant [aria-label='Later version']")
    equal(b.js(SAID), second, "after a reload")


@case
def settings_count(b, url):
    fresh(b, url)
    b.click("#tune-open")
    for name, value in (("max_tokens", "3"), ("temperature", "1"), ("seed", "12345678901234567")):
        b.js(f"document.getElementById('{name}').focus()")
        b.write(value)
        b.key("Tab")
    b.js("document.getElementById('system').focus()")
    b.write("You are kind.")
    b.key("Tab")
    b.shot("chat-settings")
    b.call("Network.setCacheDisabled", cacheDisabled=True)
    b.js("window.sent = []; const old = window.fetch; window.fetch = (u, o) => { window.sent.push(o?.body); return old(u, o); }; 0")
    send(b, STORY)
    b.until(f"document.querySelector('.assistant') && {OVER}")
    body = b.js("window.sent.at(-1)")
    assert '"seed":12345678901234567' in body and '"max_tokens":3' in body and "You are kind." in body, body
    words = b.js("document.querySelector('.assistant .stats').textContent")
    assert words.startswith("3 tokens") and "cut at the limit" in words, words
    b.open(url + "/")
    equal(b.js("document.getElementById('max_tokens').value"), "3", "for new conversations")
    b.click("#tune-open")
    b.click("#reset")
    equal(b.js("document.getElementById('system').value + document.getElementById('seed').value"), "")


def file(chats):
    return {"format": "lapis-chat", "version": 1, "chats": chats}


def conversation(id, title, reply):
    return {"id": id, "title": title, "updated": 1, "model": "", "settings": {}, "nodes": {
        "": {"id": "", "children": ["aaaaaaaa1"], "pick": 0},
        "aaaaaaaa1": {"id": "aaaaaaaa1", "parent": "", "role": "user", "content": "<i>Show</i> me", "children": ["aaaaaaaa2"], "pick": 0},
        "aaaaaaaa2": {"id": "aaaaaaaa2", "parent": "aaaaaaaa1", "role": "assistant", "content": reply, "reasoning": "I <b>think</b>.",
                      "model": "m<u>", "finish": "stop", "calls": [{"name": "look<i>", "arguments": "{\"at\": \"<b>\"}"}], "children": [], "pick": 0}}}


def bring(b, folder, data):
    path = folder / "import.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    node = b.call("DOM.querySelector", nodeId=b.call("DOM.getDocument")["root"]["nodeId"], selector="#file")["nodeId"]
    b.js("document.getElementById('notice').hidden = true")  # What was said of the file before this one.
    b.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])
    b.until("!document.getElementById('notice').hidden")
    return b.js("document.querySelector('#notice span').textContent")


def is_markdown(b):
    """What came of the text above."""
    facts = {
        "h2": "Title", "strong": "bold", "em": "italic", "p code": "code", "ul > li": "one", "ul ul li": "deeper", "ol li + li": "second",
        "th": "a", "td.right": "2", "blockquote": "quoted", ".block pre code": 'print("<hi>")', ".block .top span": "python", "a": "good"}
    for selector, words in facts.items():
        got = b.js(f"document.querySelector('.assistant .md:not(.inside) ' + {json.dumps(selector)})?.textContent")
        assert got is not None and words in got, f"{selector}: {got!r}"
    equal(b.js("[...document.querySelectorAll('.assistant a')].map(a => [a.href, a.rel, a.target])"),
          [["https://example.org/a", "noopener noreferrer", "_blank"]], "links")
    assert '<img src=x onerror="window.hacked=1">' in b.js(SAID), "markup is shown as it is"
    equal(b.js("window.hacked ?? document.querySelectorAll('#main img, #main script, #html').length"), 0, "HTML that ran")


@case
def files_come_and_go(b, url):
    fresh(b, url)
    two = file([conversation("bbbbbbbb1", "Marked <b>up</b>", MARKDOWN), conversation("bbbbbbbb2", "Other", "Plain.")])
    equal(bring(b, b.folder, two), "Imported 2 conversations.")
    equal(b.js("[...document.querySelectorAll('#chats .open')].map(e => e.textContent).sort()"), ["Marked <b>up</b>", "Other"])
    b.click("#chats .open[title^=Marked]")
    is_markdown(b)
    equal(b.js("document.querySelector('.calls strong').textContent"), "look<i>")
    equal(b.js("document.querySelector('.user .text').textContent"), "<i>Show</i> me")
    b.js("document.querySelector('.assistant details').open = true")
    b.shot("chat-markdown")
    b.look(dark=True)
    b.shot("chat-markdown-dark")
    b.look()
    equal(bring(b, b.folder, two), "All of them are here already.")
    for bad in ("no json", "[]", '{"format": "lapis-chat", "chats": [5, {"nodes": {"": {"children": ["zzzzzzzz9"]}}}]}'):
        words = bring(b, b.folder, bad)
        assert "holds no conversations" in words or words.startswith("Imported"), words
    b.click("#export")
    end = time.monotonic() + 10
    while not (found := [f for f in b.downloads.glob("*.json")]):
        assert time.monotonic() < end, "no file comes"
        time.sleep(0.02)
    time.sleep(0.1)
    data = json.loads(found[0].read_text())
    assert data["format"] == "lapis-chat" and {"bbbbbbbb1", "bbbbbbbb2"} <= {c["id"] for c in data["chats"]}
    b.js("document.getElementById('search').focus()")
    b.write("Plain")
    b.until("document.querySelectorAll('#chats li').length === 1")
    b.click("#chats .open")
    equal(b.js(SAID), "Plain.")


@case
def replies_are_never_html(b, url):
    fresh(b, url)
    pieces = [{"role": "assistant", "content": ""}, {"reasoning_content": "I <b>wonder</b>."}]
    pieces += [{"content": MARKDOWN[i:i + 7]} for i in range(0, len(MARKDOWN), 7)]
    pieces += [{"tool_calls": [{"index": 0, "id": "c", "function": {"name": "look", "arguments": ""}}]},
               {"tool_calls": [{"index": 0, "function": {"arguments": "{\"at\": \"<img src=x onerror=window.hacked=1>\"}"}}]}]
    chunks = [{"choices": [{"index": 0, "delta": p, "finish_reason": None}]} for p in pieces]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    b.canned = "".join(f"data: {json.dumps(c)}\n\n" for c in chunks) + "data: [DONE]\n\n"
    b.call("Fetch.enable", patterns=[{"urlPattern": "*/v1/chat/completions"}])
    send(b, "Show me")
    b.until(f"!!document.querySelector('.assistant .calls strong') && {OVER}")
    b.call("Fetch.disable")
    is_markdown(b)
    equal(b.js("document.querySelector('.assistant details .inside').textContent"), "I <b>wonder</b>.")
    assert "<img src=x" in b.js("document.querySelector('.calls pre').textContent")


@case
def errors_are_told(b, url):
    fresh(b, url)
    b.canned = 'data: {"error": {"message": "It <b>broke</b>."}}\n\n'
    b.call("Fetch.enable", patterns=[{"urlPattern": "*/v1/chat/completions"}])
    send(b, STORY)
    b.until("!!document.querySelector('.error')")
    b.call("Fetch.disable")
    equal(b.js("document.querySelector('.error span').textContent"), "It <b>broke</b>.")
    b.shot("chat-error")
    b.click(".error button")
    b.until(f"!document.querySelector('.error button') && {OVER}")
    assert len(b.js(SAID)) > 5


@case
def keyboard_is_enough(b, url):
    fresh(b, url)
    b.write("Say one word")
    b.key("Enter", shift=True)
    equal(b.js("document.querySelectorAll('.user').length"), 0, "Shift+Enter sends")
    b.write("please")
    b.key("Enter")
    b.until(f"document.querySelector('.assistant') && {OVER}")
    equal(b.js("document.querySelector('.user .text').textContent"), "Say one word\nplease")
    # Around the page with Tab: everything that can be pressed is reached, has a name and shows that it is there.
    b.js("document.activeElement.blur()")
    seen = []
    for _ in range(60):
        b.key("Tab")
        seen.append(b.js("""(() => { const e = document.activeElement; if (e === document.body) return null;
            return [e.id || e.getAttribute("aria-label") || e.textContent, !!(e.getAttribute("aria-label") || e.labels?.length || e.textContent.trim() || e.title),
                getComputedStyle(e).outlineStyle !== "none" || !!e.closest(".box")]; })()"""))
        if seen[-1] and seen[-1] in seen[:-1]:
            break
    names = [s[0] for s in seen if s]
    equal([s for s in seen if s and not (s[1] and s[2])], [], "without a name, or unseen")
    for wanted in ("new", "search", "import", "export", "side-open", "model", "tune-open", "scroll", "Edit", "Copy the reply", "Answer again", "prompt"):
        assert wanted in names, f"{wanted} is not reached: {names}"
    # Settings open and close, and the focus goes with them.
    b.js("document.getElementById('tune-open').focus()")
    b.key("Enter")
    equal(b.js("document.activeElement.id"), "system")
    b.js("document.getElementById('tune-close').focus()")
    b.key(" ")
    equal(b.js("document.activeElement.id"), "tune-open")
    b.js("document.querySelector('[aria-label=Edit]').focus()")
    b.key("Enter")
    b.until("document.activeElement.matches('.editing textarea')")
    b.key("Escape")


@case
def names_and_contrast(b, url):
    fresh(b, url)
    send(b, "Hi")
    b.until(f"document.querySelector('.assistant') && {OVER}")
    for path, dark in itertools.product(("/", "/dashboard", "/docs"), (False, True)):
        if b.js("location.pathname") != path:
            b.open(url + path)
        b.look(dark=dark)
        if path == "/dashboard":
            b.until("!document.getElementById('numbers').hidden")
        time.sleep(0.15)
        equal(b.js(CONTRAST), [], f"{path}{' dark' if dark else ''}")
        equal(b.js("[...document.querySelectorAll('button, input, select, textarea, a, [role=meter]')].filter(e => e.checkVisibility() && !e.ariaLabel && !e.labels?.length"
                   " && !e.getAttribute('aria-labelledby') && !e.textContent.trim()).map(e => e.outerHTML.slice(0, 80))"), [], path)
        equal(b.js("document.documentElement.lang + document.querySelectorAll('h1').length + document.querySelectorAll('main').length"), "en11", path)
    b.look()


# Texts with less contrast to what is behind them than WCAG asks for.
CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (c) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = ([r, g, b]) => [r, g, b].map((v) => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4).reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c[3] === 255) return c; } return rgb(matchMedia("(prefers-color-scheme: dark)").matches ? "#121212" : "#fff"); };
  const out = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility({ opacityProperty: true, visibilityProperty: true }) || e.closest(".hidden, noscript, :disabled, option")) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) out.push(e.tagName + " " + e.textContent.trim().slice(0, 30) + " " + ((a + .05) / (b + .05)).toFixed(2));
  }
  return out;
})()"""


@case
def narrow_pages_fit(b, url):
    fresh(b, url)
    send(b, STORY)
    b.until(f"document.querySelector('.assistant') && {OVER}")
    b.look(360, 720)
    b.until("document.documentElement.scrollWidth <= innerWidth")
    b.shot("chat-narrow")
    b.click("#side-open")
    b.until("document.activeElement.id === 'side-close'")
    b.shot("chat-narrow-list")
    b.key("Escape")
    b.until("document.activeElement.id === 'side-open'")
    b.click("#tune-open")
    b.key("Escape")
    equal(b.js("document.getElementById('tune').hidden"), True)
    for path in ("/dashboard", "/docs"):
        b.open(url + path)
        time.sleep(0.2)
        equal(b.js("document.documentElement.scrollWidth <= innerWidth"), True, path)
        b.shot(path[1:] + "-narrow")
    b.look()


@case
def dashboard_tells(b, url):
    b.open(url + "/dashboard")
    b.until("!document.getElementById('numbers').hidden")
    equal(b.js("document.getElementById('state').textContent"), "ready")
    equal(b.js("document.querySelector('#models td').textContent"), "lapis-demo")
    body = json.dumps({"prompt": "Once", "max_tokens": 300, "n": 4, "logit_bias": {"2": -100}})
    b.js(f"window.done = 0; fetch('/v1/completions', {{ method: 'POST', headers: {{ 'Content-Type': 'application/json' }}, body: {json.dumps(body)} }}).then((r) => {{ window.done = r.status; }}); 0")
    b.until("parseFloat(document.getElementById('out').textContent.replace(',', '')) > 0")
    equal(b.until("window.done"), 200)
    b.until("!!document.querySelector('#out-line .line')")
    b.until("[...document.querySelectorAll('#requests tr')].some(r => r.textContent.includes('/v1/completions'))")
    wide = b.js("(() => { const m = document.getElementById('cache-meter'); return m.firstChild.offsetWidth / m.offsetWidth - m.ariaValueNow; })()")
    assert abs(wide) < 0.02, wide
    b.shot("dashboard")
    b.look(dark=True)
    b.shot("dashboard-dark")
    b.look()
    b.click("#pause")
    equal(b.js("document.getElementById('pause').textContent"), "Go on")
    before = len(b.requests)
    time.sleep(1.2)
    b.js("0")
    equal(len(b.requests), before, "requests while it pauses")
    b.click("#pause")
    b.until("document.getElementById('pause').textContent === 'Pause'")


@case
def docs_load(b, url):
    b.open(url + "/docs")
    assert b.js("document.querySelectorAll('h2').length") > 20
    assert b.js("document.body.textContent.includes('/v1/responses')")
    b.shot("docs")
    b.open(url + "/openapi.json")
    assert b.js("JSON.parse(document.body.innerText).openapi") == "3.1.0"


@case
def keys_are_asked_for(b, url):
    folder = b.folder
    (folder / "keys").write_text("a: s3cret-key\n")
    server = Server(PROGRAM, "--api-key-file", str(folder / "keys"))
    expected = len(b.faults)
    try:
        b.open(server.url + "/")
        b.until("document.getElementById('key-dialog').open")
        b.shot("chat-key")
        b.write("wrong")
        b.key("Enter")
        b.until("document.getElementById('key-note').classList.contains('bad')")
        b.write("s3cret-key")
        b.key("Enter")
        b.until("document.getElementById('model').value === 'lapis-demo'")
        send(b, "Hi")
        b.until(f"document.querySelector('.assistant') && {OVER}")
        assert len(b.js(SAID)) > 0
        equal(b.js("JSON.stringify(localStorage).includes('s3cret')"), False, "a key that outlives its tab")
        b.open(server.url + "/dashboard")
        b.until("!document.getElementById('numbers').hidden")
        b.js("sessionStorage.clear()")
        b.until("!document.getElementById('key-form').hidden")
        b.js("document.getElementById('key').focus()")
        b.write("s3cret-key")
        b.key("Enter")
        b.until("!document.getElementById('numbers').hidden")
        # The console tells of answers that refuse; nothing else is expected there.
        b.faults[expected:] = [f for f in b.faults[expected:] if "401" not in f]
    finally:
        server.stop()


def main():
    global SHOTS, PROGRAM
    arguments = sys.argv[1:]
    if "--shots" in arguments:
        at = arguments.index("--shots")
        SHOTS = pathlib.Path(arguments[at + 1]).resolve()
        del arguments[at:at + 2]
    PROGRAM, wanted = arguments[0], arguments[1] if len(arguments) > 1 else ""
    folder = pathlib.Path(tempfile.mkdtemp())
    began, failed, ran, server, browser = time.monotonic(), 0, 0, None, None
    try:
        server, browser = Server(PROGRAM), Browser(folder)
        for run in CASES:
            if wanted not in run.__name__:
                continue
            ran += 1
            browser.faults.clear()
            browser.requests.clear()
            browser.look()
            start, problem = time.monotonic(), None
            try:
                run(browser, server.url)
                browser.js("0")
                foreign = [u for u in browser.requests if not re.match(r"http://127\.0\.0\.1:\d+/|data:|blob:", u)]
                equal(browser.faults, [], "in the console:")
                equal(foreign, [], "requests to elsewhere:")
            except Exception as e:
                failed += 1
                problem = " ".join(f"{type(e).__name__}: {e}".split())[:600]
                slowly(browser, -1)
                browser.call("Fetch.disable")
                browser.shot("failed-" + run.__name__)
            print(f"{'FAIL' if problem else 'ok  '} {run.__name__} {time.monotonic() - start:.1f} s{': ' + problem if problem else ''}", flush=True)
    finally:
        for one in (browser, server):
            if one:
                one.stop()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{ran} cases, {failed} failed, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
