"""`tunery files`: upload, list, validate, convert and download files."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from app.cli.client.references import FileId, FileIds, file_path, named_path
from app.cli.client.transfers import (
    download_file,
    is_path,
    prepare_place,
    require_readable,
    upload_with_progress,
    uploaded_files,
)
from app.cli.errors import CommandExit, UsageError
from app.cli.job_options import Model
from app.cli.options import with_client
from app.cli.output.console import print_line, print_note, size_text, time_text
from app.cli.output.file_preview import preview_lines
from app.cli.output.results import Columns, Result, fields, line, print_rows, table
from app.cli.resource import Resource
from app.domain.datasets.held_out import MAX_PERCENT, MAX_SEED
from app.domain.datasets.jsonl import MAX_LINE_BYTES
from app.domain.error_text.json_text import as_json, counted

if TYPE_CHECKING:
    from app.cli.client.http import Client
    from app.system.table_files import Preview

commands = typer.Typer(no_args_is_help=True, help="Datasets and results on the server.")

TABLE_SUFFIXES = (".csv", ".tsv", ".xlsx", ".parquet")
MAX_COLUMNS_SHOWN = 20
BAR_CHARACTERS = 40
MAX_FINDINGS_SHOWN = 20
TRAINED, CONTEXT = "bold green", "dim"


@commands.command("upload")
@with_client
def upload(
    client: "Client",
    path: Annotated[Path, typer.Argument(help="JSONL file with one example per line, or a CSV, TSV, XLSX or Parquet.")],
    purpose: Annotated[str, typer.Option(help="Purpose of the file.")] = "fine-tune",
    resume: Annotated[str | None, typer.Option(help="Id of an interrupted upload to resume.")] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="Of a table: the columns of input and output, text,label, or #1,#2 if its first row has no names. "
            "Default: those with usual names."
        ),
    ] = None,
    held_out_percent: Annotated[
        int | None, typer.Option(min=1, max=MAX_PERCENT, help="Percentage of the rows to hold out for validation.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=MAX_SEED, help="Seed of the selection of held-out rows. Default: 0.")
    ] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Show rows, labels and chats, and upload nothing.")
    ] = False,
) -> Result:
    """Upload a file and print its id. An upload of 64 MB or more is resumed after a lost connection.

    A table becomes chat examples, one a row. Held-out rows become a second file, which jobs on the first one use for
    validation and evaluation by default.
    """
    is_table = purpose == "fine-tune" and path.suffix.lower() in TABLE_SUFFIXES
    if not (is_table or preview or any(option is not None for option in (columns, held_out_percent, seed))):
        file = upload_with_progress(client, path, purpose, resume)
        return line(file, file["id"])
    if resume is not None:
        raise UsageError("--resume is for a file that is stored as it is; send a table, or a file to split, again.")
    if seed is not None and held_out_percent is None:
        raise UsageError("--seed has no effect without --held-out-percent; give both or none.")
    found = _preview(path, columns, held_out_percent, seed or 0)
    if preview:
        return Result(asdict(found), lambda: print_line("\n".join(preview_lines(found))))
    for text in preview_lines(found):
        print_note(text)
    file = upload_with_progress(client, path, purpose, fields=found.preparation.form_fields())
    held_out = f"Held-out rows: {file['held_out_file_id']}" if "held_out_file_id" in file else ""
    return line(file, file["id"], held_out)


def _preview(path: Path, columns: str | None, held_out_percent: int | None, seed: int) -> "Preview":
    """Raises UsageError for a file that the server would refuse."""
    from app.domain.datasets.preparation import Preparation  # slow imports, which `--help` does not need
    from app.domain.datasets.tables import Columns as TableColumns
    from app.domain.datasets.tables import TableError
    from app.system.table_files import preview_file

    require_readable(path)
    try:
        named = TableColumns.parse(columns) if columns is not None else None
        with path.open("rb") as file:
            found = preview_file(file, Preparation(named, held_out_percent, seed), None, MAX_LINE_BYTES)
    except TableError as error:
        raise UsageError(f"{path.name}: {error}") from None
    if found.names and found.columns is None:
        names = ", ".join(map(as_json, found.names[:MAX_COLUMNS_SHOWN]))
        raise UsageError(f"{path.name} has the columns {names}. Name those of input and output: --columns text,label")
    if found.problem:
        raise UsageError(f"{path.name}: {found.problem}")
    return found


@commands.command("list")
@with_client
def list_files(
    client: "Client",
    purpose: Annotated[str | None, typer.Option(help="Only files with this purpose.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of files, newest first.")] = 100,
) -> Result:
    """List the project's files, newest first."""
    files, has_more = client.first_items("files", limit, max_page=1000, purpose=purpose)
    if has_more:
        print_note(f"Shows the newest {counted(limit, 'file')}; use --limit to show more.")
    columns: Columns = {
        "id": "id",
        "filename": "filename",
        "size": ("bytes", size_text),
        "purpose": "purpose",
        "created": ("created_at", time_text),
    }
    return table(files, columns, "No files. Upload one with `tunery files upload PATH`.")


Resource(commands, file_path, FileId).add_show(
    "Show one file.",
    {
        "id": "id",
        "filename": "filename",
        "size": ("bytes", size_text),
        "lines": ("line_count", "{:,}".format),
        "SHA-256": "sha256",
        "held-out rows": "held_out_file_id",
        "training rows": "training_file_id",
        "origin": ("origin", lambda origin: f"{origin['service']} {origin['id']}"),
        "purpose": "purpose",
        "created": ("created_at", time_text),
        "expires": ("expires_at", time_text),
    },
    name="get",
)


@commands.command("download")
@with_client
def download(
    client: "Client",
    file_id: FileId,
    path: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Output path. Default: the file's name, in the current directory."),
    ] = None,
) -> Result:
    """Download and verify a file. An interrupted download is resumed."""
    file = client.get(file_path(file_id))
    destination = path or Path(Path(file["filename"]).name or file_id)
    prepare_place(destination)
    part = destination.with_name(f".{destination.name}.{file_id}.part")
    download_file(client, file, part).replace(destination)
    return line(file, str(destination))


@commands.command("delete")
@with_client
def delete(client: "Client", file_ids: FileIds) -> Result:
    """Delete files permanently. The stored bytes are deleted once no unfinished job needs them."""
    deleted = [client.delete(path) for path in [file_path(file_id) for file_id in file_ids]]
    return line(deleted, "\n".join(f"{each['id']} deleted" for each in deleted))


@commands.command("validate")
@with_client
def validate(
    client: "Client",
    file: Annotated[str, typer.Argument(help="File id, or path of a file to upload.", metavar="FILE")],
    model: Model,
    validation_file: Annotated[
        str | None, typer.Option(help="File id or path; rows in both files are reported.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="The method of the job. Default: detected from the first row.")
    ] = None,
    context_length: Annotated[
        int | None, typer.Option(help="Context length in tokens. Default: that of the model.")
    ] = None,
    rows: Annotated[int, typer.Option(min=0, max=50, help="Number of rows to print as the model receives them.")] = 3,
) -> Result:
    """Validate a dataset by the rules of training. Exits with 1 if a job would reject the file."""
    files = {"training_file": file, "validation_file": validation_file}
    if any(map(is_path, files.values())):
        client.get(named_path("models", model))  # raises NotFoundError before anything is uploaded
    query = {"model": model, "method": method, "context_length": context_length, "rows": rows}
    with uploaded_files(client, files, keep=False) as ids:
        path = file_path(ids["training_file"], "validate")
        report = client.post(path, None, validation_file=ids["validation_file"], **query)
    return Result(report, lambda: _print_report(report), None if report["valid"] else typer.Exit(CommandExit.FAILED))


def _print_report(report: dict[str, Any]) -> None:
    print_line(report["message"])
    print_warnings(report["warnings"])
    fields(report, _report_fields()).show()
    findings = report["findings"]
    shown = findings["data"][:MAX_FINDINGS_SHOWN]
    if shown:
        print_rows(shown, {"line": "line", "code": "code", "message": "message"})
    if rest := findings["count"] - len(shown):
        print_note(f"{rest:,} more findings; --json shows the first {len(findings['data'])}.")
    _print_histogram(report["tokens"]["histogram"])
    for row in report["rows"]:
        _print_row(row)


def print_warnings(warnings: list[dict[str, Any]]) -> None:
    """Print the warnings, which do not prevent a job, below the verdict."""
    if warnings:
        print_line("\nWarnings:\n" + "\n".join(f"- {each['message']}" for each in warnings) + "\n")


def _report_fields() -> Columns:
    return {
        "file": lambda report: f"{report['file']} ({report['filename']})",
        "format": lambda report: f"{report['format'] or 'unknown'}, method {report['method']}",
        "rows": ("coverage", lambda coverage: f"{coverage['rows']:,}"),
        "tokens": ("tokens", lambda tokens: f"{tokens['total']:,} per epoch, {tokens['trained']:,} of them trained"),
        "tokens per row": (
            "tokens",
            lambda tokens: ", ".join(f"{name} {value:g}" for name, value in (tokens["lengths"] or {}).items()),
        ),
        "context length": ("context_length", "{:,}".format),
        **{name: (name, lines_text) for name in ("cut", "empty", "masked")},
        "duplicates": ("duplicates", _duplicates_text),
        "also in validation file": ("overlap", lambda overlap: counted(overlap["rows"], "row")),
    }


def lines_text(lines: dict[str, Any]) -> str:
    """12 (lines 1, 5, 7, …)"""
    from app.domain.datasets.warnings import LineCount  # slow import, which `--help` does not need

    return str(LineCount(lines["count"], lines["first_lines"])) if lines["count"] else ""


def _duplicates_text(duplicates: dict[str, Any]) -> str:
    if not duplicates["rows"]:
        return ""
    groups = "; ".join("lines " + ", ".join(map(str, group["lines"])) for group in duplicates["groups"][:3])
    more = "; …" if len(duplicates["groups"]) > 3 else ""
    repeats = "repeats" if duplicates["rows"] == 1 else "repeat"
    return f"{counted(duplicates['rows'], 'row')} {repeats} another ({groups}{more})"


def _print_histogram(buckets: list[dict[str, int]]) -> None:
    max_rows = max((bucket["rows"] for bucket in buckets), default=0)
    columns: Columns = {
        "tokens": lambda bucket: f"{bucket['least']:,}-{bucket['most']:,}",
        "rows": ("rows", "{:,}".format),
        "": ("rows", lambda rows: "█" * round(BAR_CHARACTERS * rows / max_rows)),
    }
    if buckets:
        print_rows(buckets, columns)


def _print_row(row: dict[str, Any]) -> None:
    """Print a row as the model receives it; trained tokens are coloured, or in brackets without colour."""
    console = Console(highlight=False, soft_wrap=True)
    untrained = "" if row["trained"] else ", no trained tokens"
    cut = f", {row['cut_tokens']:,} cut" if row["cut_tokens"] else ""
    console.print(f"\nline {row['line']}: {row['tokens']:,} tokens{cut}{untrained}", style="bold", markup=False)
    for document in row["documents"]:
        if document["side"]:
            console.print(f"{document['side']}:", style="italic", markup=False)
        console.print(_segments_text(document, console.is_terminal))


def _segments_text(document: dict[str, Any], is_coloured: bool) -> Text:
    text = Text()
    for segment in document["segments"]:
        is_bracketed = segment["trained"] and not is_coloured
        shown = f"⟦{segment['text']}⟧" if is_bracketed else segment["text"]
        text.append(shown, style=TRAINED if segment["trained"] else CONTEXT)
    if document["omitted_tokens"]:
        text.append(f" … {document['omitted_tokens']:,} more tokens", style="italic")
    return text
