"""`tunery files validate`: what a job would make of a data set, before there is one."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from app.cli.client.service_discovery import file_path, model_path
from app.cli.client.training_files import is_path, uploaded
from app.cli.job_options import Model
from app.cli.options import AsJson, with_client
from app.cli.output.console import print_fields, print_json, print_line, print_note, print_table

if TYPE_CHECKING:
    from app.cli.client.http import Client

commands = typer.Typer()

BAR_LETTERS = 40
FINDINGS_SHOWN = 20
TRAINED, CONTEXT = "bold green", "dim"


@commands.command("validate")
@with_client
def validate(
    client: "Client",
    file: Annotated[str, typer.Argument(help="A file's id, or a path to upload.", metavar="FILE")],
    model: Model,
    validation_file: Annotated[str | None, typer.Option(help="Rows in both files are told: an id or a path.")] = None,
    method: Annotated[str | None, typer.Option(help="supervised or dpo; absent: as the first row is.")] = None,
    context_length: Annotated[int | None, typer.Option(help="Tokens; absent: the model's.")] = None,
    rows: Annotated[int, typer.Option(min=0, max=50, help="So many rows as the model sees them.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Report on a data set by the rules of training. Exits with 1 where a job would not take the file."""
    given = {"training_file": file, "validation_file": validation_file}
    paths = {name: path for name, path in given.items() if is_path(path)}
    if paths:
        client.get(model_path(model))  # before anything is uploaded for a name that is not on offer
    asked = {"model": model, "method": method, "context_length": context_length, "rows": rows}
    with uploaded(client, given) as ids:
        asked["validation_file"] = ids["validation_file"]
        asked = {name: value for name, value in asked.items() if value is not None}
        report = client.post(f"{file_path(ids['training_file'])}/validate", None, **asked)
    for name, path in paths.items():
        print_note(f"{path} is {ids[name]}.")
    if as_json:
        print_json(report)
    else:
        _show(report)
    if not report["valid"]:
        raise typer.Exit(1)


def _show(report: dict[str, Any]) -> None:
    print_line(report["message"])
    _show_warnings(report["warnings"])
    print_fields(_fields(report))
    found = report["findings"]
    if found["count"]:
        shown = found["data"][:FINDINGS_SHOWN]
        print_table(["line", "code", "message"], [[str(one["line"]), one["code"], one["message"]] for one in shown], "")
        if found["count"] > len(shown):
            print_note(f"{found['count'] - len(shown):,} more findings; --json has the first {len(found['data'])}.")
    _show_histogram(report["tokens"]["histogram"])
    for row in report["rows"]:
        _show_row(row)


def _show_warnings(warnings: list[dict[str, Any]]) -> None:
    """A block of its own below the verdict: a job runs all the same."""
    if warnings:
        print_line("\nWarnings:\n" + "\n".join(f"- {each['message']}" for each in warnings) + "\n")


def _fields(report: dict[str, Any]) -> list[tuple[str, str]]:
    tokens, lengths = report["tokens"], report["tokens"]["lengths"] or {}
    overlap = report["overlap"]
    return [
        ("file", f"{report['file']} ({report['filename']})"),
        ("format", f"{report['format'] or 'none'}, for the method {report['method']}"),
        ("rows", f"{report['coverage']['rows']:,}"),
        ("tokens", f"{tokens['total']:,} an epoch, {tokens['trained']:,} of them trained"),
        ("tokens a row", ", ".join(f"{name} {value:g}" for name, value in lengths.items())),
        ("context length", f"{report['context_length']:,}"),
        *((name, _lines(report[name])) for name in ("cut", "empty", "masked")),
        ("duplicates", _groups(report["duplicates"])),
        ("in validation file", f"{overlap['rows']:,} rows" if overlap else ""),
    ]


def _lines(lines: dict[str, Any]) -> str:
    if not lines["count"]:
        return ""
    more = ", …" if lines["count"] > len(lines["first_lines"]) else ""
    return f"{lines['count']:,} (lines {', '.join(map(str, lines['first_lines']))}{more})"


def _groups(duplicates: dict[str, Any]) -> str:
    if not duplicates["rows"]:
        return ""
    groups = "; ".join("lines " + ", ".join(map(str, group["lines"])) for group in duplicates["groups"][:3])
    more = "; …" if len(duplicates["groups"]) > 3 else ""
    return f"{duplicates['rows']:,} rows repeat another ({groups}{more})"


def _show_histogram(buckets: list[dict[str, int]]) -> None:
    most = max((one["rows"] for one in buckets), default=0)
    rows = [
        [
            f"{bucket['least']:,}-{bucket['most']:,}",
            f"{bucket['rows']:,}",
            "█" * round(BAR_LETTERS * bucket["rows"] / most),
        ]
        for bucket in buckets
    ]
    if rows:
        print_table(["tokens", "rows", ""], rows, "")


def _show_row(row: dict[str, Any]) -> None:
    """Trained tokens stand out by colour; in a pipe, where there is none, they stand between brackets."""
    console = Console(highlight=False, soft_wrap=True)
    kept = "" if row["trained"] else ", contributes nothing"
    cut = f", {row['cut_tokens']:,} cut" if row["cut_tokens"] else ""
    console.print(f"\nline {row['line']}: {row['tokens']:,} tokens{cut}{kept}", style="bold", markup=False)
    for document in row["documents"]:
        if document["side"]:
            console.print(f"{document['side']}:", style="italic", markup=False)
        console.print(_marked(document, console.is_terminal))


def _marked(document: dict[str, Any], is_coloured: bool) -> Text:
    text = Text()
    for segment in document["segments"]:
        is_bracketed = segment["trained"] and not is_coloured
        shown = f"⟦{segment['text']}⟧" if is_bracketed else segment["text"]
        text.append(shown, style=TRAINED if segment["trained"] else CONTEXT)
    if document["omitted_tokens"]:
        text.append(f" … {document['omitted_tokens']:,} more tokens", style="italic")
    return text
