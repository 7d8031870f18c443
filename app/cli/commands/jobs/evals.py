"""`tunery evals`: list, show, await and cancel the evaluations of a job, and read their rows."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client.polling import wait
from app.cli.client.references import JobId, job_path
from app.cli.commands.jobs.evaluations import progress_text, show_summary
from app.cli.errors import NotFoundError
from app.cli.options import with_client
from app.cli.output.console import time_text
from app.cli.output.results import Columns, Result, fields, line, table
from app.cli.resource import part_of_job
from app.domain.error_text.json_text import counted, unquoted

if TYPE_CHECKING:
    from app.cli.client.http import Client, Json

commands = typer.Typer(no_args_is_help=True, help="Evaluations of a job; `tunery eval` makes one.")

MAX_CHARACTERS = 60
EvaluationId = Annotated[
    str | None, typer.Argument(metavar="EVALUATION", help="Evaluation id. Default: the newest one of the job.")
]


class RowFilter(StrEnum):
    GOT_WORSE = "got_worse"
    STILL_WRONG = "still_wrong"


@commands.command("get")
@with_client
def get(client: "Client", job_id: JobId, evaluation_id: EvaluationId = None) -> Result:
    """Show an evaluation: its progress, or its result.

    Example: tunery evals get @last
    """
    evaluation = client.get(_path(client, job_id, evaluation_id))

    def show() -> None:
        fields(evaluation, ABOUT).show()
        if evaluation["summary"] is not None:
            show_summary(evaluation)

    return Result(evaluation, show)


@commands.command("cancel")
@with_client
def cancel(client: "Client", job_id: JobId, evaluation_id: EvaluationId = None) -> Result:
    """Cancel an evaluation. Its answers are lost."""
    evaluation = client.post(f"{_path(client, job_id, evaluation_id)}/cancel")
    return line(evaluation, f"{evaluation['id']}  {evaluation['status']}")


@commands.command("wait")
@with_client
def wait_for(client: "Client", job_id: JobId, evaluation_id: EvaluationId = None) -> Result:
    """Wait for an evaluation, and show its result. Exits with 1 if it has failed or was cancelled."""
    path = _path(client, job_id, evaluation_id)
    evaluation = wait(client, path, client.get(path), progress_text)
    return Result(evaluation, lambda: show_summary(evaluation))


@commands.command("rows")
@with_client
def rows(
    client: "Client",
    job_id: JobId,
    evaluation_id: EvaluationId = None,
    filter: Annotated[RowFilter | None, typer.Option(help="Only rows with this verdict. Default: all.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of rows.")] = 20,
) -> Result:
    """List the rows of an evaluation: both answers, the expected one and the scores.

    Example: tunery evals rows @last --filter got_worse
    """
    path = _path(client, job_id, evaluation_id)
    found, has_more = client.first_items(f"{path}/rows", limit, filter=filter)
    empty = "No rows have this verdict." if filter else "No rows."
    if not found and (evaluation := client.get(path))["status"] != "succeeded":
        state = ", ".join(text for text in (evaluation["status"], progress_text(evaluation)) if text)
        empty = f"{evaluation['id']} is {state}. It has rows when it has succeeded."
    note = f"Shows the first {counted(limit, 'row')}; use --limit to show more." if has_more else ""
    return table(found, ROW_COLUMNS, empty, note)


def _path(client: "Client", job_id: str, evaluation_id: str | None) -> str:
    """The API path of the evaluation, or of the newest one. Raises NotFoundError."""
    if evaluation_id is None:
        newest = client.get(job_path(job_id, "evaluations"), limit=1)["data"]
        if not newest and (job := client.get(job_path(job_id))).get("evaluation"):
            raise NotFoundError(f"The evaluation of {job_id} begins when the job has succeeded; it is {job['status']}.")
        if not newest:
            raise NotFoundError(f"{job_id} has no evaluation; make one with `tunery eval {job_id} --file FILE`.")
        evaluation_id = newest[0]["id"]
    return job_path(job_id, "evaluations", evaluation_id)


def _short(text: Any) -> str:
    return "" if text is None else unquoted(" ".join(str(text).split()), MAX_CHARACTERS)


def _answer(model: str) -> Any:
    return lambda row: _short(row["answers"][model]["text"] or row["answers"][model]["error"])


def _scores(row: "Json") -> str:
    """`exact 0 -> 1` for each grader: from the base model to the adapter."""

    def text(score: float | None) -> str:
        return "none" if score is None else f"{score:.3g}"

    return ", ".join(f"{name} {text(one['base'])} -> {text(one['adapter'])}" for name, one in row["scores"].items())


ABOUT: Columns = {
    "id": "id",
    "status": "status",
    "progress": progress_text,
    "error": ("error", lambda error: f"{error['code']}: {error['message']}"),
    "model": "model",
    "file": "file",
    "created": ("created_at", time_text),
    "finished": ("finished_at", time_text),
}
ROW_COLUMNS: Columns = {
    "line": ("line", str),
    "verdict": "verdict",
    "question": ("question", _short),
    "expected": ("reference_answer", _short),
    "base": _answer("base"),
    "adapter": _answer("adapter"),
    "scores": _scores,
}
part_of_job(commands, "evaluations").add_list(
    "List the evaluations of a job, newest first.",
    {
        "id": "id",
        "status": "status",
        "result": lambda one: (one["headline"] or {}).get("brief", "") or progress_text(one),
        "file": "file",
        "created": ("created_at", time_text),
    },
    "{} has no evaluations.",
)
