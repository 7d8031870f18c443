"""The request of a new job as curl, Python and command line."""

from __future__ import annotations

import json
import shlex
from pprint import pformat
from typing import Any

from app.domain.jobs.create_job import CreateJob, settings_of

Json = dict[str, Any]

OPENAI_KEYS = ("model", "training_file", "validation_file", "suffix", "seed", "method", "metadata")
BY_NAME = ("sample_prompts", "evaluation")  # which have no option of their own


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
    for name, value in settings_of(body).items():
        option = f"--{name.replace('_', '-')}"
        if name == "quantization":
            words.append("--no-quantization")
        elif name == "metadata":
            words += [f"{option} {shlex.quote(f'{key}={text}')}" for key, text in value.items()]
        elif name not in CreateJob.model_fields or name in BY_NAME or value == []:
            text = value if isinstance(value, str) else json.dumps(value)
            words.append(f"--set {shlex.quote(f'{name}={text}')}")
        elif isinstance(value, list):
            words += [f"{option.removesuffix('s')} {shlex.quote(one)}" for one in value]
        elif name == "urgent":
            words += [option] if value else []
        elif (name, value) != ("method", "supervised"):
            words.append(f"{option} {shlex.quote(str(value))}")
    return " \\\n  ".join(words)


def _indented(value: Any) -> str:
    return pformat(value, width=100, sort_dicts=False).replace("\n", "\n    ")
