"""Cases of the server, driven by the official clients of OpenAI and Anthropic, by httpx and by plain sockets.

    pip install openai anthropic httpx jsonschema
    python crates/serve/tests/clients /path/to/lapis [part of a case's name]

Starts its own servers on free ports. Prints a line for each failure and a count; exits with 1 on a failure.
"""

import json
import pathlib
import shutil
import sys
import tempfile
import traceback

import agents
import chat  # noqa: F401
import completions  # noqa: F401
import customs  # noqa: F401
import embeddings
import end  # noqa: F401
import flags  # noqa: F401
import formats  # noqa: F401
import held
import messages  # noqa: F401
import refusals  # noqa: F401
import responses
import routes  # noqa: F401
import scores
import suite
import told  # noqa: F401
import wire  # noqa: F401


def main():
    suite.PROGRAM, wanted = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
    folder = pathlib.Path(tempfile.mkdtemp())
    failed = ran = 0
    try:
        (folder / "keys").write_text("first:first-key-123\nsecond:second-key\n")
        # The demo model with a template that knows tools.
        shutil.copytree(suite.DEMO, folder / "tools")
        settings = json.loads((folder / "tools" / "tokenizer_config.json").read_text())
        (folder / "tools" / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": suite.TEMPLATE}))
        suite.PLAIN = suite.Server(suite.PROGRAM)
        held.begin(suite.PLAIN.url)
        suite.KEYED = suite.Server(suite.PROGRAM, "--api-key-file", str(folder / "keys"), "--alias", "claude-*=default", "--alias", "claude-other=nope", key="first-key-123")
        suite.TOOLS = suite.Server(suite.PROGRAM, "--model", str(folder / "tools"))
        shutil.copytree(folder / "tools", folder / "marked")
        agents.marked(folder / "marked")
        suite.MARKED = suite.Server(suite.PROGRAM, "--model", str(folder / "marked"))
        scores.add()
        suite.EMBEDDER = embeddings.add(folder / "encoders")
        # The last case looks at what the others left.
        cases = [*suite.CASES, *((name, lambda run=run: run(suite.PLAIN, suite.TOOLS)) for name, run in responses.CASES)]
        cases.sort(key=lambda c: c[0] == "nothing_left_over")
        for name, run in cases:
            if wanted not in name:
                continue
            ran += 1
            try:
                run()
                assert not held.WRONG, held.WRONG[0]
            except Exception as e:
                failed += 1
                at = traceback.extract_tb(e.__traceback__)[:3][-1].lineno  # in the case itself
                shown = " ".join(f"{type(e).__name__}: {e}".split())
                print(f"FAIL {name}: {shown[:600]} (line {at})", flush=True)
            held.WRONG.clear()
        if not wanted and (unseen := held.unseen()):
            failed += 1
            print(f"FAIL no answer was held to {unseen}")
    finally:
        for server in (suite.PLAIN, suite.KEYED, suite.TOOLS, suite.MARKED, suite.EMBEDDER):
            if server:
                server.stop()
        shutil.rmtree(folder)
    for line in suite.TOLD:
        print(line)
    print(f"{ran} cases, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
