"""What mlx-lm's `evaluate` (on lm-evaluation-harness) makes of the tasks beside this file, with the demo model in float32.

    pip install "mlx[cpu]" mlx-lm lm_eval && python evaluate.py > evaluate.json
"""

import contextlib
import json
import os
import sys
from pathlib import Path

os.environ["DISABLE_MULTIPROC"] = "1"
import lm_eval
import mlx.core as mx
from lm_eval.tasks import TaskManager
from mlx_lm.evaluate import MLXLM, chat_template_fn

mx.set_default_device(mx.cpu)
here = Path(__file__).parent
model = str(here / "../../../../examples/demo-model/model")
runs = [
    ["choose", dict()],
    ["choose", dict(num_fewshot=3)],
    ["choose", dict(num_fewshot=3, apply_chat_template=True)],
    ["choose", dict(num_fewshot=2, apply_chat_template=True, fewshot_as_multiturn=True, limit=3)],
    ["first", dict()],
    ["first", dict(apply_chat_template=True)],
    ["blank", dict()],
    ["last", dict(num_fewshot=1)],
    ["roll", dict()],
    ["write", dict(apply_chat_template=True)],
]
out = []
os.chdir(here / "tasks")
with contextlib.redirect_stdout(sys.stderr):
    for task, settings in runs:
        chat = settings.get("apply_chat_template", False)
        lm = MLXLM(model, use_chat_template=chat)
        MLXLM.apply_chat_template = chat_template_fn()
        lm._model.set_dtype(mx.float32)
        found = lm_eval.simple_evaluate(
            model=lm,
            tasks=[task],
            task_manager=TaskManager(include_path=str(here / "tasks"), include_defaults=False),
            random_seed=123,
            numpy_random_seed=123,
            torch_random_seed=123,
            fewshot_random_seed=123,
            bootstrap_iters=1000,
            log_samples=True,
            **{"fewshot_as_multiturn": False, **settings},
        )
        results = {k: v for k, v in found["results"][task].items() if "," in k}
        samples = []
        for s in found["samples"][task]:
            contexts = list(dict.fromkeys(a[0] for a in s["arguments"]))
            samples.append(dict(filter=s["filter"], contexts=contexts, resps=[r[0] for r in s["resps"]]))
        out.append(dict(task=task, settings=settings, results=results, samples=samples))
json.dump(out, sys.stdout, ensure_ascii=False, default=lambda x: x.item())
print()
