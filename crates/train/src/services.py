"""Hands the lines on standard input to a service that follows runs: the first says what the run is, each other is a record."""

import sys

# Packages are those that are installed, not files of this folder.
sys.path[:] = [place for place in sys.path if place]

import json  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402

# Standard output is for one word to lapis; what the service prints is for people.
answer = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
# Ctrl-C is lapis's: the records that are left still go out.
signal.signal(signal.SIGINT, signal.SIG_IGN)

run = json.loads(sys.stdin.readline())
name, project, folder, config = run["service"], run["project"], run["folder"], run["config"]
label = os.path.basename(folder)
try:
    service = __import__(name)
except ImportError:
    print("missing", file=answer, flush=True)
    sys.exit(1)
if name == "wandb":
    service.init(project=project, name=label, dir=folder, config=config)
elif name == "swanlab":
    service.init(project=project, experiment_name=label, logdir=os.path.join(folder, "swanlog"), config=config)
else:
    service.init(project=project or os.path.basename(os.getcwd()), name=label, config=config)
print("ready", file=answer, flush=True)
for line in sys.stdin:
    record = json.loads(line)
    service.log(record, step=record["iteration"])
service.finish()
