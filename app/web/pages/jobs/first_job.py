"""The first job as curl, Python and CLI, shown while a project has none."""

from __future__ import annotations

from functools import partial

from app.web.components.elements import card, code_block, link, tabs, tag

INTRODUCTION = (
    "A job fine-tunes a base model on your examples and returns an adapter. Upload a dataset (JSONL or CSV), then "
    "create a job here; or start from a terminal:"
)
CURL = """\
export TUNERY={url} KEY=tnry_...        # this server, and your API key

curl -s $TUNERY/v1/files -H "Authorization: Bearer $KEY" -F purpose=fine-tune -F file=@train.jsonl
curl -s $TUNERY/v1/fine_tuning/jobs -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" \\
  -d '{{"model": "{model}", "training_file": "file-..."}}'"""
PYTHON = """\
from openai import OpenAI

client = OpenAI(base_url="{url}/v1", api_key="tnry_...")
with open("train.jsonl", "rb") as content:
    file = client.files.create(file=content, purpose="fine-tune")
job = client.fine_tuning.jobs.create(model="{model}", training_file=file.id)
print(job.id, job.status)"""
CLI = """\
export TUNERY_BASE_URL={url} TUNERY_API_KEY=tnry_...
tunery jobs create --model {model} --training-file train.jsonl --watch"""


def show(url: str, model: str) -> None:
    """The empty state of the list of jobs."""
    with card("No jobs yet", "t-empty"):
        tag("p", INTRODUCTION, "t-lede")
        with tag("div", classes="t-actions"):
            link("Upload a dataset", "/datasets", "t-button t-primary")
            link("New job", "/jobs/new", "t-button")
        texts = {"curl": CURL, "Python": PYTHON, "Command line": CLI}
        tabs(
            "The first job",
            [(name, partial(code_block, text.format(url=url, model=model))) for name, text in texts.items()],
        )
