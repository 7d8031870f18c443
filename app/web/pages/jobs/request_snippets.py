"""The request of a new job as curl, Python and command line."""

from __future__ import annotations

import json
import shlex
from pprint import pformat
from typing import Any

from app.domain.jobs.create_job import CreateJob, settings_of

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
    words, left = ["tunery jobs create", f"--base-url {shlex.quote(url)}"], []
    for name, value in settings_of(body).items():
        option = f"--{name.replace('_', '-')}"
        if name in WITHOUT_OPTION:
            left.append(name)
        elif value == []:
            left.append(f"an empty {name}")
        elif name == "quantization":
            words.append("--no-quantization")
        elif name == "metadata":
            words += [f"{option} {shlex.quote(f'{key}={text}')}" for key, text in value.items()]
        elif name not in CreateJob.model_fields:
            text = value if isinstance(value, str) else json.dumps(value)
            words.append(f"--set {shlex.quote(f'{name}={text}')}")
        elif isinstance(value, list):
            words += [f"{option.removesuffix('s')} {shlex.quote(one)}" for one in value]
        elif value is True:
            words.append(option)
        elif (name, value) != ("method", "supervised"):
            words.append(f"{option} {shlex.quote(str(value))}")
    text = " \\\n  ".join(words)
    return f"{text}\n# without an option, use curl or Python: {', '.join(left)}" if left else text


def _indented(value: Any) -> str:
    return pformat(value, width=100, sort_dicts=False).replace("\n", "\n    ")
