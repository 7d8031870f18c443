"""`tunery import openai`: an organization's fine-tuning files and jobs at OpenAI, stored and recreated here."""

import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.errors import CliError, UsageError
from app.cli.openai_import.importer import Importer
from app.cli.openai_import.record import ImportRecord
from app.cli.openai_import.recreate import original_model, recreate
from app.cli.openai_import.source import OPENAI_URL, OpenAISource, Refused
from app.cli.options import AsJson, parse_pairs, with_client
from app.cli.output.console import print_line, print_note
from app.domain.error_text.json_text import counted

if TYPE_CHECKING:
    from app.cli.client.http import Client

commands = typer.Typer(no_args_is_help=True, help="Bring fine-tuning jobs from other services.")


@commands.callback()
def _group() -> None:
    """A group, so that `openai` stays a name of a command."""


@commands.command("openai")
@with_client
def import_openai(
    client: "Client",
    model: Annotated[
        str | None,
        typer.Option(help="Base model for every job whose model has no --model-map. Default: the server's aliases."),
    ] = None,
    model_map: Annotated[
        list[str] | None,
        typer.Option("--model-map", metavar="OPENAI=BASE", help="Base model for one model; repeatable."),
    ] = None,
    directory: Annotated[
        Path, typer.Option(help="Directory for what is read from OpenAI, and for the state of the import.")
    ] = Path("openai-import"),
    job: Annotated[list[str] | None, typer.Option(help="Only this job at OpenAI; repeatable.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Store the files and plan every job; create no job.")] = False,
    run: Annotated[bool, typer.Option("--run", help="Create the jobs.")] = False,
    golden: Annotated[
        Path | None, typer.Option("--record", help="Record answers of the model --from in this JSONL file.")
    ] = None,
    source_model: Annotated[str | None, typer.Option("--from", help="Model at OpenAI whose answers to record.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="JSONL file with the questions. Default: the validation file of --from's job.")
    ] = None,
    openai_url: Annotated[str, typer.Option(help="URL of OpenAI's API.")] = OPENAI_URL,
    as_json: AsJson = False,
) -> None:
    """Import fine-tuning files and jobs from OpenAI, which are only read there. The key is OPENAI_API_KEY.

    Saves files and jobs in a directory and the files at Tunery, and prints for each job what is kept, replaced or
    impossible. --plan adds tokens, memory and time, --run creates the jobs. If it is interrupted, run it again. With
    --json it prints a line for each job.
    """
    if (golden is None) != (source_model is None):
        raise UsageError("--record and --from belong together: the file for the answers, and the model that answers.")
    if plan and run:
        raise UsageError("--plan creates no job and --run does; give one of them.")
    say = print_note if as_json else print_line
    with (
        contextlib.closing(OpenAISource(openai_url)) as source,
        contextlib.closing(ImportRecord(directory)) as record,
    ):
        importer = Importer(client, source, record, say)
        if golden is not None and source_model is not None:
            _record_answers(importer, source_model, golden, prompts)
            return
        bases = parse_pairs("--model-map", model_map, "gpt-4o-mini-2024-07-18=Qwen3-4B", may_be_empty=False)
        jobs = importer.save_all(job or ())  # before the first request to Tunery
        saved = sum("filename" in facts for facts in record.facts.values())
        print_note(f"Saved in {directory}: {counted(saved, 'file')}, {counted(len(jobs), 'job')}.")
        aliases = {each["id"] for each in client.get("models")["data"] if each.get("alias_of")}
        failed = 0
        for each in jobs:
            if not job and each["status"] != "succeeded":
                say(f"{each['id']}: not recreated, its status is {each['status']}; name it with --job to do so")
                continue
            made = recreate(each, _base_model(str(each["model"]), bases, model, aliases))
            try:
                importer.bring(made, plan, run)
            finally:
                made.print(as_json)
            failed += not made.is_possible
    if failed:
        raise CliError(
            f"Jobs that cannot be recreated now: {failed}; the lines above say why. Everything else is done."
        )


def _base_model(old: str, bases: Mapping[str, str], default: str | None, aliases: Collection[str]) -> str | None:
    """What a model at OpenAI is trained on here, by its own name or that of the model it is a fine-tune of."""
    names = (old, original_model(old))
    named = next((bases[name] for name in names if name in bases), default)
    return named or next((name for name in names if name in aliases), None)


def _record_answers(importer: Importer, model: str, golden: Path, prompts: Path | None) -> None:
    from app.cli.openai_import.answers import record_answers  # its rules for rows take 35 ms, unneeded by `--help`

    content = prompts.read_bytes() if prompts else _validation_file(importer, model)
    count, refused = record_answers(importer.source, model, content, golden)
    print_note(f"{count} new answers of {model} recorded.")
    print_line(str(golden))
    for text in refused:
        print_line(f"refused: {text}")
    if refused:
        count_text = f"OpenAI refused {counted(len(refused), 'prompt')}; the lines above say why."
        raise CliError(f"{count_text} The answers to the others are in {golden}.")


def _validation_file(importer: Importer, model: str) -> bytes:
    """The validation file of the job that made `model`."""
    made = next((job for job in importer.source.jobs() if job.get("fine_tuned_model") == model), None)
    if made is None or not made.get("validation_file"):
        why = "OpenAI has no job that made it" if made is None else "its job has no validation file"
        raise UsageError(f"Which prompts? {model}: {why}. Give --prompts FILE.")
    file_id = made["validation_file"]
    try:
        saved = importer.save_file(file_id)
    except Refused as error:
        text = f"OpenAI does not return the validation file {file_id} ({error}). Give --prompts FILE."
        raise UsageError(text) from None
    return importer.path_of(file_id, saved["filename"]).read_bytes()
