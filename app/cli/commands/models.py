"""`tunery models`: what may be trained. Adding and removing is the operator's business, straight on the database."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client.service_discovery import model_path
from app.cli.errors import Missing, UsageError
from app.cli.options import AsJson, with_client, with_database
from app.cli.output.console import print_json, print_line, print_note, print_table, time_text

if TYPE_CHECKING:
    from app.cli.client.database import Database
    from app.cli.client.http import Client

commands = typer.Typer(no_args_is_help=True, help="Base models on offer, and models trained here.")

# As hubs name models: Qwen/Qwen3-4B, so that scripts keep theirs. A colon would split ft:base:organization:suffix:id.
NAME = re.compile(r"(?=.{1,128}\Z)[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
ModelName = Annotated[str, typer.Argument(help="The name that users give, such as Qwen3-4B.", metavar="NAME")]


@commands.command("add")
@with_database
def add(
    database: "Database",
    name: ModelName,
    directory: Annotated[Path, typer.Argument(help="safetensors, config.json, tokenizer; as every worker sees it.")],
    learning_rate: Annotated[
        float | None, typer.Option(help="LoRA's, where steps x epochs = 1200; absent: from the hidden size.")
    ] = None,
    license_name: Annotated[str | None, typer.Option("--license", help="Such as apache-2.0.")] = None,
) -> None:
    """Offer a base model to every project. Its files are hashed; the same name again replaces it."""
    from app.db import models
    from app.db.access import audit
    from app.system import model_files

    _refuse_unusable(name, learning_rate)
    directory = directory.absolute()
    entry = model_files.read_catalog_entry(directory, learning_rate, license_name)
    print_note(f"Hashing {entry.size_bytes / 1e9:.2f} GB in {directory} …")
    files, manifest_sha256 = model_files.hash_directory(directory)
    with database.transaction() as session:
        audit.add_object(name, None)
        models.register(session, name, directory, files, manifest_sha256, entry)
    print_line(
        f"{name}: {entry.architecture}, {entry.parameters / 1e6:,.0f} M parameters, context {entry.context_length}, "
        f"learning rate {entry.learning_rate:g}, {', '.join(sorted(entry.target_modules))}"
    )


@commands.command("list")
@with_client
def list_models(client: "Client", as_json: AsJson = False) -> None:
    """List the base models on offer and the models trained here."""
    found = client.get("models")["data"]
    if as_json:
        print_json(found)
        return
    rows = [[model["id"], _kind(model), _context(model), time_text(model["created"])] for model in found]
    print_table(["id", "kind", "context", "created"], rows, "No models. `tunery models add NAME DIR` offers one.")


@commands.command("where")
@with_database
def where(database: "Database", name: ModelName) -> None:
    """Print the directory of a base model, which PEFT, vLLM and `tunery adapters merge` need beside an adapter."""
    from app.db import models

    with database.transaction() as session:
        directories = {row.name: row.directory for row in models.list_base(session)}
    if name not in directories:
        raise _unknown(name, list(directories))
    print_line(directories[name])


@commands.command("delete")
@with_client
def delete(
    client: "Client", name: Annotated[str, typer.Argument(help="Such as ft:base:organization:suffix:id.")]
) -> None:
    """Delete a model that was trained here: its name is gone, its job and the files of its adapter stay."""
    print_line(f"{client.delete(model_path(name))['id']} deleted")


@commands.command("remove")
@with_database
def remove(database: "Database", name: ModelName) -> None:
    """Offer a base model no longer. Its files and the adapters trained on it stay."""
    from app.db import models

    with database.transaction() as session:
        if not models.unregister(session, name):
            raise _unknown(name, [row.name for row in models.list_base(session)])
    print_line(f"{name} is no longer on offer")


def _unknown(name: str, known: list[str]) -> Missing:
    return Missing(f"No base model is called {name!r}; on offer: {', '.join(known) or 'none'}.")


def _refuse_unusable(name: str, learning_rate: float | None) -> None:
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} can't be a model's name: 1 to 128 letters, digits, dots, dashes and underscores, with "
            "slashes between parts that begin with a letter or a digit (no colon: the name becomes part of ft: names)."
        )
    if learning_rate is not None and not 0 < learning_rate < 1:
        raise UsageError(
            f"--learning-rate {learning_rate:g} is not above 0 and below 1; LoRA's are about 1e-4 to 2e-3."
        )


def _kind(model: dict[str, Any]) -> str:
    return "trained" if model["id"].startswith("ft:") else "base"


def _context(model: dict[str, Any]) -> str:
    length = model.get("max_context_length")
    return "" if length is None else str(length)
