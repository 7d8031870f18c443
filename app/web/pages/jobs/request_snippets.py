"""The request of a new job as curl, Python and command line."""

from __future__ import annotations

import json
import shlex
from pprint import pformat
from typing import Any

Json = dict[str, Any]

OPENAI_KEYS = ("model", "training_file", "validation_file", "suffix", "seed", "method", "metadata")
WITHOUT_OPTION = ("sample_prompts", "evaluation")  # of the command line


def curl(body: Json, url: str) -> str:
    text = shlex.quote(json.dumps(body, indent=2, ensure_ascii=False))
    return (
        f"curl -s {url}/v1/fine_tuning/jobs \\\n"
        '  -H "Authorization: Bearer $TUNERY_API_KEY" \\\n  -H "Content-Type: application/json" \\\n'
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
    for head in ("lora", "quantization"):
        settings = settings | {f"{head}.{name}": value for name, value in (body.get(head) or {}).items()}
    words += [f"--set {shlex.quote(f'{name}={_setting(value)}')}" for name, value in settings.items()]
    if "quantization" in body and body["quantization"] is None:
        words.append("--no-quantization")
    words += [f"--metadata {shlex.quote(f'{name}={value}')}" for name, value in body.get("metadata", {}).items()]
    words += ["--urgent"] if body.get("urgent") else []
    words += [f"--worker-label {shlex.quote(one)}" for one in body.get("worker_labels", [])]
    words += [f"--deliver-to {shlex.quote(one)}" for one in body.get("deliver_to", [])]
    text = " \\\n  ".join(words)
    left = ", ".join(name for name in WITHOUT_OPTION if name in body)
    if body.get("deliver_to") == []:
        left = ", ".join(filter(None, (left, "an empty deliver_to")))
    return f"{text}\n# without an option, use curl or Python: {left}" if left else text


def _indented(value: Any) -> str:
    return pformat(value, width=100, sort_dicts=False).replace("\n", "\n    ")


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
