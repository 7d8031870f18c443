"""`tunery models`: list models over the API; base models and their aliases in the database."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client.service_discovery import model_path
from app.cli.errors import NotFoundError, UsageError
from app.cli.options import AsJson, with_client, with_database
from app.cli.output.console import print_json, print_line, print_note, print_table, time_text
from app.domain.base_models.names import NAME, NAME_RULE

if TYPE_CHECKING:
    from app.cli.client.database import Database
    from app.cli.client.http import Client

commands = typer.Typer(no_args_is_help=True, help="Base models and fine-tuned models.")

SOURCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
AliasName = Annotated[str, typer.Argument(help="The alias, such as gpt-4o-mini-2024-07-18.", metavar="ALIAS")]
ModelName = Annotated[str, typer.Argument(help="Name of the base model, such as Qwen3-4B.", metavar="NAME")]


@commands.command("add")
@with_database
def add(
    database: "Database",
    name: ModelName,
    directory: Annotated[
        Path,
        typer.Argument(help="Directory with safetensors, config.json and tokenizer; the same path on every worker."),
    ],
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Default LoRA learning rate for this model (reference: 1200 = steps x epochs). "
            "Default: derived from the hidden size."
        ),
    ] = None,
    license_name: Annotated[
        str | None, typer.Option("--license", help="License of the model, such as apache-2.0.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Id of the model on its hub, such as Qwen/Qwen3-4B. Adapters name it.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit or tag of the model on its hub.")] = None,
) -> None:
    """Register a base model for all projects (on the server). Replaces a model of the same name.

    Hashes all files and loads the model once, where torch is installed, to check that it can be trained.
    """
    _validate_options(name, learning_rate, source, revision)
    _register(database, name, directory.absolute(), learning_rate, license_name, source, revision)


@commands.command("pull")
@with_database
def pull(
    database: "Database",
    model: Annotated[
        str,
        typer.Argument(help="Id of the model on its hub, with a branch, tag or commit: org/name@revision."),
    ],
    directory: Annotated[
        Path, typer.Argument(help="Directory of all models; the same path on every worker. The model gets one in it.")
    ],
    name: Annotated[str | None, typer.Option(help="Name of the base model. Default: its id on the hub.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="As in `tunery models add`.")] = None,
    license_name: Annotated[
        str | None, typer.Option("--license", help="License of the model, such as apache-2.0.")
    ] = None,
) -> None:
    """Download a base model from a model hub and register it (on the server).

    The hub is huggingface.co, or HF_ENDPOINT; HF_TOKEN is the token. After an interruption the same command downloads
    the files that are missing.
    """
    from app.services import model_hub
    from app.services.models import refuse_alias_name

    source, _, revision = model.partition("@")
    _validate_options(name or source, learning_rate, source, revision or None)
    with database.transaction() as session:
        refuse_alias_name(session, name or source)
    pulled = model_hub.pull(source, revision or None, directory.absolute(), print_note)
    _register(database, name or source, pulled.directory, learning_rate, license_name, source, pulled.commit)


def _register(
    database: "Database",
    name: str,
    directory: Path,
    learning_rate: float | None,
    license_name: str | None,
    source: str | None,
    revision: str | None,
) -> None:
    from app.db import models
    from app.db.access import audit
    from app.services.models import refuse_alias_name
    from app.system import model_check, model_files

    with database.transaction() as session:  # before the long check, and again with the registration
        refuse_alias_name(session, name)
    if model_files.is_dequantized_first(directory):
        print_note(f"Converting {directory} to 16 bits, once …")
        directory = model_check.dequantize(directory)
        print_note(f"The base model is {directory}. Copy it to the same path on every worker.")
    entry = model_files.read_catalog_entry(directory, learning_rate, license_name)
    print_note(f"Checking that {directory} can be trained …")
    report = model_check.check_model(directory)
    if report is None:
        print_note(
            "Not checked: this machine has no torch or too little memory. The first job checks the model "
            "and counts its memory; plans before it are rough."
        )
    else:
        entry = model_files.with_report(entry, report)
        for note in report.notes:
            print_note(note)
    entry = entry.model_copy(update={"source": source, "revision": revision})
    print_note(f"Hashing {entry.size_bytes / 1e9:.2f} GB in {directory} …")
    files, manifest_sha256 = model_files.hash_directory(directory)
    with database.transaction() as session:
        audit.add_object(name, None)
        refuse_alias_name(session, name)
        models.register(session, name, directory, files, manifest_sha256, entry)
    print_line(
        f"{name}: {entry.architecture}, {entry.parameters / 1e6:,.0f} M parameters, context {entry.context_length}, "
        f"learning rate {entry.learning_rate:g}, {', '.join(sorted(entry.target_modules))}"
    )


@commands.command("list")
@with_client
def list_models(client: "Client", as_json: AsJson = False) -> None:
    """List the base models and the fine-tuned models."""
    models = client.get("models")["data"]
    if as_json:
        print_json(models)
        return
    rows = [[model["id"], _kind(model), _context_text(model), time_text(model["created"])] for model in models]
    print_table(
        ["id", "kind", "context", "created"], rows, "No models. Register one with `tunery models add NAME DIRECTORY`."
    )


@commands.command("where")
@with_database
def where(database: "Database", name: ModelName) -> None:
    """Print the directory of a base model (on the server), which PEFT, vLLM and `tunery adapters merge` need."""
    from app.db import models

    with database.transaction() as session:
        directories = {row.name: row.directory for row in models.list_base(session)}
    if name not in directories:
        raise _unknown_model(name, list(directories))
    print_line(directories[name])


@commands.command("alias")
@with_database
def set_alias(database: "Database", name: AliasName, base_model: ModelName) -> None:
    """Let another name stand for a base model (on the server), such as the name that clients sent to OpenAI.

    A job that names the alias trains the base model and shows both names. Replaces an alias of this name.
    """
    from app.db.access import audit
    from app.services import models

    with database.transaction() as session:
        audit.add_object(name, None)
        models.set_alias(session, name, base_model)
    print_line(f"{name} -> {base_model}")


@commands.command("aliases")
@with_database
def list_aliases(database: "Database", as_json: AsJson = False) -> None:
    """List the aliases of base models (on the server)."""
    from app.services import models

    with database.transaction() as session:
        found: list[dict[str, Any]] = [
            {"name": alias.name, "model": alias.base_model, "registered": is_registered}
            for alias, is_registered in models.list_aliases(session)
        ]
    if as_json:
        print_json(found)
        return
    rows = [[each["name"], each["model"] if each["registered"] else f"{each['model']} (removed)"] for each in found]
    print_table(["alias", "base model"], rows, "No aliases. Set one with `tunery models alias ALIAS NAME`.")


@commands.command("unalias")
@with_database
def remove_alias(database: "Database", name: AliasName) -> None:
    """Remove an alias (on the server). Jobs that were created by it are kept."""
    from app.db.access import audit
    from app.services import models

    with database.transaction() as session:
        audit.add_object(name, None)
        models.remove_alias(session, name)
    print_line(f"{name} removed")


@commands.command("delete")
@with_client
def delete(
    client: "Client",
    name: Annotated[str, typer.Argument(help="Name of the fine-tuned model, such as ft:base:organization:suffix:id.")],
) -> None:
    """Delete the name of a fine-tuned model. Its job and the files of its adapter are kept."""
    print_line(f"{client.delete(model_path(name))['id']} deleted")


@commands.command("remove")
@with_database
def remove(database: "Database", name: ModelName) -> None:
    """Remove a base model (on the server). Its files and the adapters trained on it are kept."""
    from app.db import models

    with database.transaction() as session:
        if not models.unregister(session, name):
            raise _unknown_model(name, [row.name for row in models.list_base(session)])
    print_line(f"{name} removed")


def _unknown_model(name: str, registered: list[str]) -> NotFoundError:
    return NotFoundError(f"No base model is named {name!r}; registered: {', '.join(registered) or 'none'}.")


def _validate_options(name: str, learning_rate: float | None, source: str | None, revision: str | None) -> None:
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a model name. {NAME_RULE}")
    if learning_rate is not None and not 0 < learning_rate < 1:
        raise UsageError(f"--learning-rate {learning_rate:g} is not between 0 and 1; usual for LoRA: 1e-4 to 2e-3.")
    if source is not None and not SOURCE.fullmatch(source):
        raise UsageError(f"{source!r} is not a model's id on a hub; it has the form organization/name.")
    if revision is not None and (source is None or not REVISION.fullmatch(revision)):
        text = "needs a --source" if source is None else "is not a commit or tag: letters, digits and ._/- are allowed"
        raise UsageError(f"--revision {revision!r} {text}.")


def _kind(model: dict[str, Any]) -> str:
    if "alias_of" in model:
        return f"alias of {model['alias_of']}"
    return "trained" if model["id"].startswith("ft:") else "base"


def _context_text(model: dict[str, Any]) -> str:
    length = model.get("max_context_length")
    return "" if length is None else str(length)
