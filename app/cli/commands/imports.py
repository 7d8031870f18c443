"""`tunery import openai`: an organization's fine-tuning files and jobs at OpenAI, stored and recreated here."""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client.references import file_path, job_path
from app.cli.client.transfers import upload_with_progress
from app.cli.errors import CliError, NotFoundError, TooManyRequests, UsageError
from app.cli.openai_import.recreate import ImportOutcome, Recreation, original_model, recreate
from app.cli.openai_import.save import save_file, save_job, save_training_files
from app.cli.openai_import.source import OPENAI_URL, NotReturned, OpenAISource
from app.cli.openai_import.state import ImportDirectory
from app.cli.options import with_client
from app.cli.output.console import duration_text, print_line, print_note

if TYPE_CHECKING:
    from app.cli.client.http import Client

# The job counts the tokens itself: the file is too large for a plan, or the API cannot read the base model.
NOT_PLANNED = ("file_too_large_to_plan", "service_unavailable")

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
) -> None:
    """Import fine-tuning files and jobs from OpenAI, which are only read there. The key is OPENAI_API_KEY.

    Saves files and jobs in a directory and the files at Tunery, and prints for each job what is kept, replaced or
    impossible. --plan adds tokens, memory and time, --run creates the jobs. If it is interrupted, run it again.
    """
    if (golden is None) != (source_model is None):
        raise UsageError("--record and --from belong together: the file for the answers, and the model that answers.")
    if plan and run:
        raise UsageError("--plan creates no job and --run does; give one of them.")
    with (
        contextlib.closing(OpenAISource(openai_url)) as source,
        contextlib.closing(ImportDirectory(directory)) as state,
    ):
        if golden is not None and source_model is not None:
            _record(source, state, source_model, golden, prompts)
            return
        bases = _model_map(model_map or ())
        save_training_files(source, state)
        found = _jobs(source, job or ())
        for each in found:
            save_job(source, state, each)
        print_note(f"Saved in {directory}: {len(state.files)} files, {len(found)} jobs.")
        aliases = {each["id"] for each in client.get("models")["data"] if each.get("alias_of")}
        failed = 0
        for each in found:
            if not job and each["status"] != "succeeded":
                print_line(f"{each['id']}: not recreated, its status is {each['status']}; name it with --job to do so")
                continue
            base = _base_model(str(each["model"]), bases, model, aliases)
            recreation = _recreate(client, source, state, each, base)
            failed += not _continue_job(client, state, each, recreation, plan, run)
    if failed:
        raise CliError(f"{failed} jobs cannot be recreated now; the lines above say why. Everything else is done.")


def _jobs(source: OpenAISource, wanted: Sequence[str]) -> list[dict[str, Any]]:
    """All jobs or those that were named, oldest first."""
    found = list(source.jobs())
    if unknown := sorted(set(wanted) - {each["id"] for each in found}):
        raise UsageError(f"OpenAI has no fine-tuning job {', '.join(unknown)}; it has {len(found)} jobs.")
    return [each for each in reversed(found) if not wanted or each["id"] in wanted]


def _model_map(pairs: Sequence[str]) -> dict[str, str]:
    parts = [pair.partition("=") for pair in pairs]
    if wrong := [old for old, equals, new in parts if not (old and equals and new)]:
        raise UsageError(f"--model-map {wrong[0]} is not of the form --model-map gpt-4o-mini-2024-07-18=Qwen3-4B.")
    return {old: new for old, _, new in parts}


def _base_model(old: str, bases: Mapping[str, str], default: str | None, aliases: Collection[str]) -> str | None:
    """What a model at OpenAI is trained on here, by its own name or that of the model it is a fine-tune of."""
    names = (old, original_model(old))
    named = next((bases[name] for name in names if name in bases), default)
    return named or next((name for name in names if name in aliases), None)


def _recreate(
    client: "Client", source: OpenAISource, state: ImportDirectory, job: dict[str, Any], model: str | None
) -> Recreation:
    """Store the files of the job here, and make its request."""
    recreation = recreate(job, model)
    for name, file_id in recreation.files.items():
        try:
            saved = _store_file(client, source, state, file_id)
        except NotReturned as error:
            text = f"{file_id}: OpenAI does not return it ({error})"
            recreation.add(ImportOutcome.IMPOSSIBLE, name, text)
        except (UsageError, NotFoundError) as error:
            recreation.add(_outcome(error), name, f"{file_id}: {error}")
        else:
            recreation.request[name] = saved["tunery_file"]
            recreation.add(ImportOutcome.KEPT, name, f"{file_id} ({saved['filename']}) -> {saved['tunery_file']}")
    return recreation


def _store_file(client: "Client", source: OpenAISource, state: ImportDirectory, file_id: str) -> dict[str, Any]:
    """Store a file here, once, with its origin; its provenance. Raises NotReturned, and errors of Tunery."""
    saved = state.files.get(file_id, {})
    if "tunery_file" in saved and _get(client, file_path(saved["tunery_file"])) is None:
        del saved["tunery_file"]  # deleted, or the state is that of an import to another server
        saved["has_origin"] = False
    if "tunery_file" not in saved:
        saved = save_file(source, state, file_id)
        path = state.file_path(file_id, saved["filename"])
        saved["tunery_file"] = _find_uploaded(client, file_id, saved, path) or str(
            upload_with_progress(client, path)["id"]
        )
        state.save()
    if not saved.get("has_origin"):
        client.post(file_path(saved["tunery_file"]), {"origin": _origin(file_id, saved)})
        saved["has_origin"] = True
        state.save()
    return saved


def _get(client: "Client", path: str) -> dict[str, Any] | None:
    try:
        return client.get(path)
    except NotFoundError:
        return None


def _outcome(error: CliError) -> ImportOutcome:
    return ImportOutcome.LATER if isinstance(error, TooManyRequests) else ImportOutcome.IMPOSSIBLE


def _find_uploaded(client: "Client", file_id: str, saved: dict[str, Any], path: Path) -> str | None:
    """The file here with this content: an earlier import was killed after the upload, or lost its state.

    A file with the origin of another one stays the other one's.
    """
    facts = {"filename": path.name, "bytes": saved["bytes"], "sha256": saved["sha256"], "expires_at": None}
    for each in client.get("files", purpose="fine-tune")["data"]:
        if facts.items() <= each.items() and (each.get("origin") or {}).get("id", file_id) == file_id:
            return str(each["id"])
    return None


def _origin(file_id: str, saved: dict[str, Any]) -> dict[str, Any]:
    """Where a file comes from, as its object here shows it."""
    facts = {"filename": saved["filename"], "created_at": saved["created_at"], "imported_at": saved.get("saved_at")}
    return {"service": "openai", "id": file_id} | {key: value for key, value in facts.items() if value is not None}


def _continue_job(
    client: "Client", state: ImportDirectory, job: dict[str, Any], recreation: Recreation, plan: bool, run: bool
) -> bool:
    """Print the notes, and plan or create the job; False if it cannot be recreated."""
    job_id = recreation.openai_job
    print_line(f"{job_id} ({job.get('fine_tuned_model') or job['status']})")
    for note in recreation.notes:
        print_line(f"  {note.outcome:<10}  {note.name}: {note.text}")
    if not recreation.is_possible:
        return False
    try:
        made = _made_job(client, state, recreation) if run else None
        if made is None:
            _check(client, state, recreation, plan)
        if run:
            made = made or client.post("fine_tuning/jobs", recreation.request)
            _remember(state, recreation, made)
    except (UsageError, NotFoundError) as error:
        print_line(f"  {_outcome(error):<10}  {error.param or 'request'}: {error}")
        return False
    return True


def _check(client: "Client", state: ImportDirectory, recreation: Recreation, is_plan: bool) -> None:
    """Check the request and every line of its files by the rules of a job, so that none is created which would fail.

    A request that was checked by an earlier import is not checked again, as that takes a second; a plan depends on the
    workers of the moment. Raises UsageError and NotFoundError.
    """
    known = state.jobs.setdefault(recreation.openai_job, {})
    if known.get("checked") == recreation.request and not is_plan:
        return
    try:
        plan = client.post("fine_tuning/jobs/plan", recreation.request)
    except CliError as error:
        if error.code not in NOT_PLANNED:
            raise
        print_line(f"  plan        unknown: {error}")
    else:
        if is_plan:
            _print_plan(plan)
    known["checked"] = recreation.request
    state.save()


def _print_plan(plan: dict[str, Any]) -> None:
    print_line(f"  plan        {plan['trained_tokens']:,} tokens in {plan['total_steps']:,} steps")
    if not plan["devices"]:
        print_line(f"  plan        {plan['message']}")
    for device in plan["devices"]:
        time = duration_text(device["seconds"])
        print_line(f"  plan        {device['name']}: {device['message']} Time about {time}.")


def _made_job(client: "Client", state: ImportDirectory, recreation: Recreation) -> dict[str, Any] | None:
    """The job that an earlier import created, also if it was interrupted right after it."""
    known = state.jobs.setdefault(recreation.openai_job, {})
    job = _get(client, job_path(known["job"])) if "job" in known else None
    if job is None:  # not created yet, or by an import to another server
        found = client.get("fine_tuning/jobs", **{"metadata[openai_job]": recreation.openai_job})["data"]
        job = found[0] if found else None
    return job


def _remember(state: ImportDirectory, recreation: Recreation, job: dict[str, Any]) -> None:
    state.jobs[recreation.openai_job]["job"] = job["id"]
    state.save()
    print_line(f"  job         {job['id']} ({job['status']})")


def _record(source: OpenAISource, state: ImportDirectory, model: str, golden: Path, prompts: Path | None) -> None:
    from app.cli.openai_import.record import record  # its rules for rows take 35 ms, which `--help` does not need

    content = prompts.read_bytes() if prompts else _validation_file(source, state, model)

    def show(number: int, total: int) -> None:
        if number % 20 == 0:
            print_note(f"{number} of {total} answers")

    recording = record(source, model, content, golden, show)
    print_note(f"{recording.new_answers} new answers of {model} recorded.")
    print_line(str(golden))
    if recording.refused:
        for refusal in recording.refused:
            print_line(f"refused: {refusal}")
        raise CliError(
            f"OpenAI refused {len(recording.refused)} prompts; the lines above say why. The answers to the others are "
            f"in {golden}."
        )


def _validation_file(source: OpenAISource, state: ImportDirectory, model: str) -> bytes:
    """The validation file of the job that made `model`."""
    made = next((job for job in source.jobs() if job.get("fine_tuned_model") == model), None)
    if made is None or not made.get("validation_file"):
        why = "OpenAI has no job that made it" if made is None else "its job has no validation file"
        raise UsageError(f"Which prompts? {model}: {why}. Give --prompts FILE.")
    try:
        saved = save_file(source, state, made["validation_file"])
    except NotReturned as error:
        text = f"OpenAI does not return the validation file {made['validation_file']} ({error}). Give --prompts FILE."
        raise UsageError(text) from None
    return state.file_path(made["validation_file"], saved["filename"]).read_bytes()
