"""The request of a new job as curl, Python and command line."""

from __future__ import annotations

import json
import shlex
from pprint import pformat
from typing import Any

Json = dict[str, Any]

OPENAI_KEYS = ("model", "training_file", "validation_file", "suffix", "seed", "method", "metadata")


def curl(body: Json, url: str) -> str:
    text = shlex.quote(json.dumps(body, indent=2, ensure_ascii=False))
    return (
        f"curl -s {url}/v1/fine_tuning/jobs \\\n"
        '  -H "Authorization: Bearer $TUNERY_API_KEY" -H "Content-Type: application/json" \\\n'
        f"  -d {text}"
    )


def python(body: Json, url: str) -> str:
    """For the official client: what it does not know goes into `extra_body`."""
    known = {name: value for name, value in body.items() if name in OPENAI_KEYS}
    extra = {name: value for name, value in body.items() if name not in OPENAI_KEYS}
    arguments = known | ({"extra_body": extra} if extra else {})
    lines = "\n".join(f"    {name}={_indented(value)}," for name, value in arguments.items())
    return (
        "import os\n\nfrom openai import OpenAI\n\n"
        f'client = OpenAI(base_url="{url}/v1", api_key=os.environ["TUNERY_API_KEY"])\n'
        f"job = client.fine_tuning.jobs.create(\n{lines}\n)\nprint(job.id)"
    )


def command(body: Json, url: str) -> str:
    words = ["tunery jobs create", f"--base-url {shlex.quote(url)}"]
    words += [
        f"--{name.replace('_', '-')} {shlex.quote(str(body[name]))}"
        for name in ("model", "training_file", "validation_file", "suffix", "seed", "priority")
        if name in body
    ]
    method = body.get("method", {"type": "supervised"})
    if method["type"] != "supervised":
        words.append(f"--method {method['type']}")
    settings = method.get(method["type"], {}).get("hyperparameters", {})
    settings = settings | {f"lora.{name}": value for name, value in body.get("lora", {}).items()}
    words += [f"--set {shlex.quote(f'{name}={_setting(value)}')}" for name, value in settings.items()]
    if body.get("quantization", {}) is None:
        words.append("--no-quantization")
    text = " \\\n  ".join(words)
    return f"{text}\n# sample_prompts have no option: use curl or Python" if "sample_prompts" in body else text


def _indented(value: Any) -> str:
    return pformat(value, width=100, sort_dicts=False).replace("\n", "\n    ")


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
