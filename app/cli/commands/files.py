"""`tunery files`: upload, list, validate, convert and download files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from app.cli.client.references import FileId, FileIds
from app.cli.client.service_discovery import file_path, model_path
from app.cli.client.transfers import (
    download_file,
    is_path,
    upload_with_progress,
    uploaded_files,
)
from app.cli.errors import UsageError
from app.cli.job_options import Model
from app.cli.options import AsJson, with_client
from app.cli.output.console import print_fields, print_json, print_line, print_note, print_table, size_text, time_text

if TYPE_CHECKING:
    from app.cli.client.http import Client

commands = typer.Typer(no_args_is_help=True, help="Datasets and results on the server.")

BAR_CHARACTERS = 40
MAX_FINDINGS_SHOWN = 20
TRAINED, CONTEXT = "bold green", "dim"


@commands.command("upload")
@with_client
def upload(
    client: "Client",
    path: Annotated[Path, typer.Argument(help="JSONL file with one chat or prompt/completion example per line.")],
    purpose: Annotated[str, typer.Option(help="Purpose of the file.")] = "fine-tune",
    resume: Annotated[str | None, typer.Option(help="Id of an interrupted upload to resume.")] = None,
    as_json: AsJson = False,
) -> None:
    """Upload a file and print its id. An upload of 64 MB or more is resumed after a lost connection."""
    file = upload_with_progress(client, path, purpose, resume)
    if as_json:
        print_json(file)
    else:
        print_line(file["id"])


@commands.command("list")
@with_client
def list_files(
    client: "Client",
    purpose: Annotated[str | None, typer.Option(help="Only files with this purpose.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of files, newest first.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List the project's files, newest first."""
    filters = {"purpose": purpose} if purpose else {}
    files, has_more = client.first_items("files", limit, max_page=1000, **filters)
    if has_more:
        print_note(f"Shows the newest {limit} files; use --limit to show more.")
    if as_json:
        print_json(files)
        return
    rows = [
        [file["id"], file["filename"], size_text(file["bytes"]), file["purpose"], time_text(file["created_at"])]
        for file in files
    ]
    columns = ["id", "filename", "size", "purpose", "created"]
    print_table(columns, rows, "No files. Upload one with `tunery files upload PATH`.")


@commands.command("get")
@with_client
def get(client: "Client", file_id: FileId, as_json: AsJson = False) -> None:
    """Show one file."""
    file = client.get(file_path(file_id))
    if as_json:
        print_json(file)
    else:
        print_fields(_fields(file))


@commands.command("download")
@with_client
def download(
    client: "Client",
    file_id: FileId,
    path: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Output path. Default: the file's name, in the current directory."),
    ] = None,
) -> None:
    """Download and verify a file. An interrupted download is resumed."""
    file = client.get(file_path(file_id))
    destination = path or Path(Path(file["filename"]).name or file_id)
    if destination.exists() or destination.is_symlink():
        raise UsageError(f"{destination} already exists. Choose another path with -o, or remove it.")
    destination.parent.mkdir(parents=True, exist_ok=True)
    part = destination.with_name(f".{destination.name}.{file_id}.part")
    download_file(client, file, part).replace(destination)
    print_line(str(destination))


@commands.command("delete")
@with_client
def delete(client: "Client", file_ids: FileIds) -> None:
    """Delete files permanently. The stored bytes are deleted once no unfinished job needs them."""
    for path in [file_path(file_id) for file_id in file_ids]:
        print_line(f"{client.delete(path)['id']} deleted")


def _fields(file: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("id", file["id"]),
        ("filename", file["filename"]),
        ("size", size_text(file["bytes"])),
        ("lines", f"{file['line_count']:,}" if file.get("line_count") is not None else ""),
        ("SHA-256", file["sha256"]),
        ("origin", f"{file['origin']['service']} {file['origin']['id']}" if file.get("origin") else ""),
        ("purpose", file["purpose"]),
        ("created", time_text(file["created_at"])),
        ("expires", time_text(file["expires_at"]) if file.get("expires_at") else ""),
    ]


@commands.command("validate")
@with_client
def validate(
    client: "Client",
    file: Annotated[str, typer.Argument(help="File id, or path of a file to upload.", metavar="FILE")],
    model: Model,
    validation_file: Annotated[
        str | None, typer.Option(help="File id or path; rows in both files are reported.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="supervised or dpo. Default: detected from the first row.")] = None,
    context_length: Annotated[
        int | None, typer.Option(help="Context length in tokens. Default: that of the model.")
    ] = None,
    rows: Annotated[int, typer.Option(min=0, max=50, help="Number of rows to print as the model receives them.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Validate a dataset by the rules of training. Exits with 1 if a job would reject the file."""
    files = {"training_file": file, "validation_file": validation_file}
    if any(map(is_path, files.values())):
        client.get(model_path(model))  # raises NotFoundError before anything is uploaded
    query = {"model": model, "method": method, "context_length": context_length, "rows": rows}
    with uploaded_files(client, files, keep=False) as ids:
        query["validation_file"] = ids["validation_file"]
        query = {name: value for name, value in query.items() if value is not None}
        report = client.post(f"{file_path(ids['training_file'])}/validate", None, **query)
    if as_json:
        print_json(report)
    else:
        _print_report(report)
    if not report["valid"]:
        raise typer.Exit(1)


def _print_report(report: dict[str, Any]) -> None:
    print_line(report["message"])
    print_warnings(report["warnings"])
    print_fields(_report_fields(report))
    findings = report["findings"]
    if findings["count"]:
        shown = findings["data"][:MAX_FINDINGS_SHOWN]
        print_table(["line", "code", "message"], [[str(row["line"]), row["code"], row["message"]] for row in shown], "")
        if findings["count"] > len(shown):
            rest = findings["count"] - len(shown)
            print_note(f"{rest:,} more findings; --json shows the first {len(findings['data'])}.")
    _print_histogram(report["tokens"]["histogram"])
    for row in report["rows"]:
        _print_row(row)


def print_warnings(warnings: list[dict[str, Any]]) -> None:
    """Print the warnings, which do not prevent a job, below the verdict."""
    if warnings:
        print_line("\nWarnings:\n" + "\n".join(f"- {each['message']}" for each in warnings) + "\n")


def _report_fields(report: dict[str, Any]) -> list[tuple[str, str]]:
    tokens, lengths = report["tokens"], report["tokens"]["lengths"] or {}
    overlap = report["overlap"]
    return [
        ("file", f"{report['file']} ({report['filename']})"),
        ("format", f"{report['format'] or 'unknown'}, method {report['method']}"),
        ("rows", f"{report['coverage']['rows']:,}"),
        ("tokens", f"{tokens['total']:,} per epoch, {tokens['trained']:,} of them trained"),
        ("tokens per row", ", ".join(f"{name} {value:g}" for name, value in lengths.items())),
        ("context length", f"{report['context_length']:,}"),
        *((name, lines_text(report[name])) for name in ("cut", "empty", "masked")),
        ("duplicates", _duplicates_text(report["duplicates"])),
        ("also in validation file", f"{overlap['rows']:,} rows" if overlap else ""),
    ]


def lines_text(lines: dict[str, Any]) -> str:
    """12 (lines 1, 5, 7, …)"""
    if not lines["count"]:
        return ""
    more = ", …" if lines["count"] > len(lines["first_lines"]) else ""
    return f"{lines['count']:,} (lines {', '.join(map(str, lines['first_lines']))}{more})"


def _duplicates_text(duplicates: dict[str, Any]) -> str:
    if not duplicates["rows"]:
        return ""
    groups = "; ".join("lines " + ", ".join(map(str, group["lines"])) for group in duplicates["groups"][:3])
    more = "; …" if len(duplicates["groups"]) > 3 else ""
    return f"{duplicates['rows']:,} rows repeat another ({groups}{more})"


def _print_histogram(buckets: list[dict[str, int]]) -> None:
    max_rows = max((bucket["rows"] for bucket in buckets), default=0)
    rows = [
        [
            f"{bucket['least']:,}-{bucket['most']:,}",
            f"{bucket['rows']:,}",
            "█" * round(BAR_CHARACTERS * bucket["rows"] / max_rows),
        ]
        for bucket in buckets
    ]
    if rows:
        print_table(["tokens", "rows", ""], rows, "")


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
