"""Fills in what transformers gives for the templates of jinja.json: `python jinja.py`, in this folder."""
import json

import jinja2
import transformers
from transformers.utils.chat_template_utils import _compile_jinja_template

data = json.load(open("jinja.json"))
data["made_with"] = f"transformers {transformers.__version__}, jinja2 {jinja2.__version__}"
for case in data["cases"]:
    source = case.pop("template")
    case.clear()
    case["template"] = source
    try:
        case["output"] = _compile_jinja_template(source).render(**data["context"])
    except Exception as error:
        case["error"] = f"{type(error).__name__}: {error}"
with open("jinja.json", "w") as file:
    json.dump(data, file, ensure_ascii=False, indent=1)
    file.write("\n")
