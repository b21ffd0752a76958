"""How a server ends."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import time

import httpx

import suite
from suite import ENDLESS, FOX, Server, answer, case, equal, request, until


def draining(stream):
    server = Server(suite.PROGRAM)
    try:
        ask = {"messages": FOX, "max_tokens": 400, "logit_bias": ENDLESS, "stream": stream}
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as s:
            s.sendall(request(ask))
            until(lambda: server.metric("running") >= 1, 5, "nothing runs")
            server.http.close()
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.15)
            assert server.process.poll() is None, "the server ended before its request"
            try:
                socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
                raise AssertionError("the port is open while the server drains")
            except ConnectionRefusedError:
                pass
            file = s.makefile("rb")
            if stream:
                got = b""
                while b"[DONE]" not in got:
                    line = file.readline()
                    assert line, f"the stream ended without [DONE]: {got[-200:]}"
                    got += line
                assert b'"length"' in got
            else:
                status, _, got = answer(file)
                equal(status, 200)
                equal(json.loads(got)["usage"]["completion_tokens"], 400)
        equal(server.process.wait(10), 0, "exit code")
    finally:
        server.stop()


@case(True, False)
def drained(stream):
    draining(stream)


@case(("SIGTERM", 0), ("SIGINT", 0))
def idle_end(name, code):
    server = Server(suite.PROGRAM)
    try:
        server.process.send_signal(getattr(signal, name))
        equal(server.process.wait(5), code)
    finally:
        server.stop()


@case(("SIGTERM", 143), ("SIGINT", 130))
def second_signal(name, code):
    server = Server(suite.PROGRAM)
    try:
        with socket.create_connection(("127.0.0.1", server.port)) as s:
            s.sendall(request({"messages": FOX, "n": 4, "logit_bias": ENDLESS}))
            until(lambda: server.metric("running") >= 1, 5, "nothing runs")
            server.process.send_signal(getattr(signal, name))
            time.sleep(0.2)
            server.process.send_signal(getattr(signal, name))
            equal(server.process.wait(2), code)
    finally:
        server.stop()


@case()
def drain_runs_out():
    server = Server(suite.PROGRAM, "--drain-timeout", "1")
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as s:
            s.sendall(request({"messages": FOX, "n": 16, "logit_bias": ENDLESS, "stream": True}))
            until(lambda: server.metric("running") >= 1, 5, "nothing runs")
            server.http.close()
            server.process.send_signal(signal.SIGTERM)
            got = s.makefile("rb").read()
        assert b'"error"' in got and b"[DONE]" not in got or got.count(b'"length"') == 16, got[-300:]
    finally:
        server.stop()


@case()
def supervised():
    """A server that is killed comes again at the same place; one that is asked to end does not."""
    port = socket.socket()
    port.bind(("127.0.0.1", 0))
    number = str(port.getsockname()[1])
    port.close()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LAPIS_")}
    parent = subprocess.Popen([suite.PROGRAM, "serve", "--supervise", "--port", number], stderr=subprocess.DEVNULL, env=environment)
    try:
        children = lambda: [int(i) for i in pathlib.Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
        healthy = lambda: httpx.get(f"http://127.0.0.1:{number}/health").status_code == 200
        until(healthy, 10, "it does not start")
        (first,) = children()
        os.kill(first, signal.SIGKILL)
        until(lambda: children() not in ([], [first]) and healthy(), 10, "it is not started again")
        parent.send_signal(signal.SIGTERM)
        equal(parent.wait(10), 0)
        assert not pathlib.Path(f"/proc/{first}").exists()
    finally:
        if parent.poll() is None:
            parent.kill()


@case()
def nothing_left_over():
    until(lambda: suite.PLAIN.metric("running") + suite.PLAIN.metric("waiting") == 0, 2, "something runs still")
    equal(suite.PLAIN.metric("faults_total"), 0, "lapis_faults_total")
    equal(suite.PLAIN.metric("reserved_bytes"), 0, "lapis_reserved_bytes")
    until(lambda: suite.PLAIN.metric("connections") <= 4, 5, f"{suite.PLAIN.metric('connections')} connections are open")
