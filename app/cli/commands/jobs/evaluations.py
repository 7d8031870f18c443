"""`tunery eval` and `tunery compare`: base model and adapter on held-out rows, or on a few prompts."""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client.polling import wait
from app.cli.client.references import CheckpointId, JobWithResult, file_path, job_path, resolve_file
from app.cli.client.transfers import is_path, upload_with_progress
from app.cli.errors import UsageError
from app.cli.options import given, with_body, with_client
from app.cli.output.compare import AnswerComparison, print_comparison
from app.cli.output.console import duration_text, print_line, print_note, print_table
from app.cli.output.results import Result, line
from app.domain.error_text.json_text import counted

if TYPE_CHECKING:
    from app.cli.client.http import Client

commands = typer.Typer()

PURPOSE = "evals"
OUTPUT = "{{ sample.output_text }}"
EXPECTED_FIELD = "reference_answer"  # the expected answer of a chat line or a completion

MaxNewTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer in tokens. Default: 256.")]
SixteenBit = Annotated[
    bool, typer.Option("--16-bit", help="Load the base model in 16 bits. Default: as in the training.")
]


def _generation(
    max_new_tokens: MaxNewTokens = None, sixteen_bit: SixteenBit = False, checkpoint: CheckpointId = None
) -> Any:
    base_precision = "16-bit" if sixteen_bit else None
    return given(max_new_tokens=max_new_tokens, base_precision=base_precision, checkpoint=checkpoint)


@commands.command("eval")
@with_client
@with_body(_generation)
def evaluate(
    client: "Client",
    job_id: JobWithResult,
    file: Annotated[
        str, typer.Option("--file", help="JSONL file of held-out rows: a path to upload, or a file's id or name.")
    ],
    graders: Annotated[
        Path | None, typer.Option(help="JSON file with a list of graders. Default: the answer equals the expected one.")
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(help="Grade labels; the value is the field with the label, or reference_answer."),
    ] = None,
    json_fields: Annotated[bool, typer.Option("--json-fields", help="Grade answers that are JSON objects.")] = False,
    similarity: Annotated[
        list[str] | None, typer.Option(help="Grade by a metric, such as fuzzy_match, bleu, rouge_l; repeatable.")
    ] = None,
    expected_field: Annotated[
        str, typer.Option(help="Field of the rows with the expected answer. Default: the answer at the end of the row.")
    ] = EXPECTED_FIELD,
    max_rows: Annotated[int | None, typer.Option(min=1, help="Maximum number of rows. Default: 500.")] = None,
    body: Any = None,
    reference_model: Annotated[str | None, typer.Option(help="Model of an endpoint to compare with.")] = None,
    reference_endpoint: Annotated[str | None, typer.Option(help="Endpoint that the operator has named.")] = None,
    reference_field: Annotated[str | None, typer.Option(help="Field of the rows with recorded answers.")] = None,
    promote_if: Annotated[
        str | None, typer.Option(metavar="GRADER[:MARGIN]", help="Deliver the adapter only if it is no worse.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the report in Markdown to this path.")] = None,
    results: Annotated[Path | None, typer.Option(help="Write the results per row (JSONL) to this path.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Print the id without waiting for the result.")] = False,
) -> Result:
    """Evaluate an adapter: base model and adapter answer held-out rows, graders score the answers.

    Example: tunery eval @last --file heldout.jsonl --label label
    """
    body |= given(
        graders=_graders(graders, label, json_fields, similarity or (), f"{{{{ item.{expected_field} }}}}"),
        max_rows=max_rows,
        reference=given(model=reference_model, endpoint=reference_endpoint, field=reference_field) or None,
        promote_if=_promote_if(promote_if) if promote_if else None,
    )
    for output in filter(None, (report, results)):
        if not output.parent.is_dir():  # an evaluation may take hours
            raise UsageError(f"The directory of {output} does not exist; create it first, or choose another path.")
    evaluation = _create(client, job_id, file, body)
    if not detach:
        evaluation = _wait(client, job_id, evaluation)
        for path, key in ((report, "report_file"), (results, "results_file")):
            if path is not None:
                path.write_text(client.text(file_path(evaluation[key], "content")), encoding="utf-8")
    return line(evaluation, evaluation["id"]) if detach else Result(evaluation, lambda: show_summary(evaluation))


@commands.command("compare")
@with_client
@with_body(_generation)
def compare(
    client: "Client",
    job_id: JobWithResult,
    prompt: Annotated[list[str], typer.Option("--prompt", help="A prompt to answer; repeatable.")],
    system: Annotated[str | None, typer.Option(help="System message before each prompt.")] = None,
    body: Any = None,
) -> Result:
    """Show the answers of base model and adapter to a few prompts, side by side. A training worker generates them.

    Example: tunery compare @last --prompt "My card has not arrived."
    """
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as rows:
        for text in prompt:
            messages = [{"role": "system", "content": system}] if system else []
            rows.write(json.dumps({"messages": [*messages, {"role": "user", "content": text}]}) + "\n")
        rows.flush()
        evaluation = _create(client, job_id, rows.name, body)
    try:
        evaluation = _wait(client, job_id, evaluation)
    finally:
        client.delete(file_path(evaluation["file"]))
    lines = client.text(file_path(evaluation["results_file"], "content")).split("\n")
    answers = [json.loads(line) for line in lines if line]
    rows_shown = [
        AnswerComparison(row["question"], "", row["answers"]["base"]["text"], row["answers"]["adapter"]["text"])
        for row in answers
    ]
    value = {"precision": evaluation["precision"], "answers": answers}
    return Result(value, lambda: print_comparison(rows_shown, f"The base model answered in {evaluation['precision']}"))


def _graders(
    path: Path | None, label: str | None, json_fields: bool, metrics: Sequence[str], expected: str
) -> list[Any]:
    """The graders of the options; `expected` is the template of the expected answer."""
    graders: list[Any] = []
    if path is not None:
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UsageError(f"{path} is not JSON ({error}).") from None
        graders += given if isinstance(given, list) else [given]
    if label is not None:
        graders.append({"type": "label_accuracy", "name": "label", "reference": f"{{{{ item.{label} }}}}"})
    if json_fields:
        fields = {"type": "json_fields", "name": "json_fields", "reference": expected}
        graders += [{"type": "json_valid", "name": "json_valid"}, fields]
    for metric in metrics:
        similar = {"type": "text_similarity", "name": metric, "evaluation_metric": metric}
        graders.append(similar | {"input": OUTPUT, "reference": expected})
    exact = {"type": "string_check", "name": "exact", "input": OUTPUT, "reference": expected, "operation": "eq"}
    return graders or [exact]


def _promote_if(text: str) -> dict[str, Any]:
    grader, colon, margin = text.rpartition(":")
    if not colon:
        return {"grader": text}
    try:
        return {"grader": grader, "margin": float(margin)}
    except ValueError:
        raise UsageError(f"--promote-if {text} is not of the form GRADER or GRADER:MARGIN.") from None


def _create(client: "Client", job_id: str, file: str, body: dict[str, Any]) -> dict[str, Any]:
    """Create an evaluation. A file that was uploaded for it is deleted again if it is refused."""
    is_local = is_path(file)
    file_id = str(upload_with_progress(client, Path(file), PURPOSE)["id"]) if is_local else resolve_file(client, file)
    try:
        return client.post(job_path(job_id, "evaluations"), {"file": file_id, **body})
    except UsageError:
        if is_local:
            client.delete(file_path(file_id))
        raise


def _wait(client: "Client", job_id: str, evaluation: dict[str, Any]) -> dict[str, Any]:
    return wait(client, job_path(job_id, "evaluations", evaluation["id"]), evaluation, progress_text)


def progress_text(evaluation: dict[str, Any]) -> str:
    """The answers so far and the time that remains; empty for one that does not run."""
    if evaluation["status"] != "running":
        return ""
    done, finish = evaluation["progress"], evaluation["estimated_finish"]
    parts = [f"{done['answers']} of {counted(done['total_answers'], 'answer')} of both models"] if done else []
    if finish is not None and (seconds := finish - time.time()) > 0:
        parts.append(f"about {duration_text(seconds)} left" if done else f"at most {duration_text(seconds)} left")
    return ", ".join(parts)


def show_summary(evaluation: dict[str, Any]) -> None:
    """Print the result: the headline, the scores by grader, the decision on the delivery, the warnings."""
    summary, headline = evaluation["summary"], evaluation["headline"]
    if headline is not None:
        print_line(headline["text"])
    models, differences = ["base", "adapter"], {"difference": "difference"}
    if summary["answers"]["reference"] is not None:
        models.append("reference")
        differences["adapter - reference"] = "reference_difference"
    columns = ["grader", *models, *(title for each in differences for title in (each, "95 % interval"))]
    rows = [
        [
            grader["name"],
            *("none" if grader[model]["mean"] is None else f"{grader[model]['mean']:.3f}" for model in models),
            *(text for key in differences.values() for text in _difference(grader[key])),
        ]
        for grader in summary["graders"]
    ]
    print_table(columns, rows, f"{counted(summary['rows'], 'row')} answered; no graders.")
    print_line(f"{counted(summary['rows'], 'row')}; the base model answered in {evaluation['precision']}.")
    if summary["promotion"] is not None:
        allowed = "allowed" if summary["promotion"]["allowed"] else "not allowed"
        print_line(f"Delivery is {allowed}: {summary['promotion']['reason']}.")
    for warning in summary["warnings"]:
        print_note(f"Warning: {warning}")
    print_note(f"Report: tunery files download {evaluation['report_file']}; results: {evaluation['results_file']}")


def _difference(difference: dict[str, Any] | None) -> list[str]:
    if difference is None:
        return ["", ""]
    if difference["low"] is None:
        return [f"{difference['mean']:+.3f}", ""]
    return [f"{difference['mean']:+.3f}", f"{difference['low']:+.3f} to {difference['high']:+.3f}"]
