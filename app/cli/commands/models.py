"""`tunery models`: list models; base models and their aliases, for administrators."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.client.polling import poll
from app.cli.client.references import MODEL, completion, named_path
from app.cli.errors import CliError, NotFoundError, UsageError
from app.cli.options import AsJson, with_client
from app.cli.output.console import print_json, print_note, print_table, time_text
from app.cli.output.results import Result, line
from app.cli.resource import named

if TYPE_CHECKING:
    from app.cli.client.http import Client, Json
    from app.domain.planning.base_sizes import DecoderShape

commands = typer.Typer(no_args_is_help=True, help="Base models and fine-tuned models.")

BASES, ALIASES = "organization/base_models", "organization/model_aliases"
REGISTRATIONS = "organization/base_model_registrations"
AliasName = Annotated[str, typer.Argument(help="The alias, such as gpt-4o-mini-2024-07-18.", metavar="ALIAS")]
ModelName = Annotated[
    str,
    typer.Argument(help="Name of the base model, such as Qwen3-4B.", metavar="NAME", autocompletion=completion(MODEL)),
]
TunedName = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="Name of the fine-tuned model, such as ft:base:organization:suffix:id.",
        autocompletion=completion(MODEL),
    ),
]

COLUMNS = ["base model", "parameters", "QLoRA, 2,048 tokens", "QLoRA, 8,192 tokens", "16-bit LoRA, 2,048 tokens"]
License = Annotated[str | None, typer.Option("--license", help="License of the model, such as apache-2.0.")]


@commands.command("add")
@with_client
def add(
    client: "Client",
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
    license_name: License = None,
    source: Annotated[
        str | None, typer.Option(help="Id of the model on its hub, such as Qwen/Qwen3-4B. Adapters name it.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit or tag of the model on its hub.")] = None,
) -> Result:
    """Register a base model for all projects, for administrators. Replaces a model of the same name.

    A worker with torch hashes all files and loads the model once, to check that it can be trained. DIRECTORY must be
    inside TUNERY_BASE_MODEL_DIRECTORIES, which `tunery up` sets to every directory.
    """
    about = {"learning_rate": learning_rate, "license": license_name, "source": source, "revision": revision}
    return _register(client, {"name": name, "directory": str(directory.absolute()), **about})


@commands.command("pull")
@with_client
def pull(
    client: "Client",
    model: Annotated[
        str,
        typer.Argument(help="Id of the model on its hub, with a branch, tag or commit: org/name@revision."),
    ],
    directory: Annotated[
        Path | None,
        typer.Argument(
            help="On the server: the directory of all models; the same path on every worker. The model gets one in it."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the base model. Default: its id on the hub.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="As in `tunery models add`.")] = None,
    license_name: License = None,
) -> Result:
    """Download a base model from a model hub and register it, for administrators.

    The hub is huggingface.co, or HF_ENDPOINT; HF_TOKEN is the token. After an interruption the same command downloads
    the files that are missing. With DIRECTORY this command downloads, on the server. Without it a worker does, with its
    own environment, into TUNERY_BASE_MODEL_PULL_DIRECTORY.
    """
    source, _, revision = model.partition("@")
    about = {"name": name or source, "learning_rate": learning_rate, "license": license_name, "source": source}
    if directory is None:
        return _register(client, about | {"revision": revision or None})
    from app import model_hub  # slow import
    from app.domain.base_models.registrations import option_problems
    from app.errors import combine_errors

    if problems := option_problems(name or source, learning_rate, source, revision or None):  # before the download
        raise combine_errors(problems)
    if (name or source) in {alias["id"] for alias in client.get(ALIASES)["data"]}:
        raise UsageError(f"{name or source} is an alias; remove it first (`tunery models unalias`), or give --name.")
    pulled = model_hub.pull(source, revision or None, directory.absolute(), print_note)
    return _register(client, about | {"directory": str(pulled.directory), "revision": pulled.commit})


def _register(client: "Client", body: "Json") -> Result:
    """Wait for the registration by a worker, and print its notes and the registered model."""
    row = client.post(REGISTRATIONS, body)
    path = named_path(REGISTRATIONS, row["id"])
    row = poll(client, path, row, lambda each: each["finished_at"] is None, _registration_note)
    for note in row["notes"]:
        print_note(note)
    if row["error"] is not None:
        raise UsageError(row["error"]["message"])
    for model in client.get(BASES)["data"]:
        if model["id"] == body["name"]:
            text = f"{model['id']}: {model['architecture']}, {model['parameters'] / 1e6:,.0f} M parameters, "
            text += f"context {model['max_context_length']}, learning rate {model['learning_rate']:g}, "
            return line(model, text + ", ".join(model["target_modules"]))
    raise CliError(f"The base model {body['name']} was registered, and has been removed since by another command.")


def _kind(model: "Json") -> str:
    if "alias_of" in model:
        return f"alias of {model['alias_of']}"
    return "trained" if model["id"].startswith("ft:") else "base"


tuned = named(commands, "models", TunedName)
tuned.add_list(
    "List the base models and the fine-tuned models.",
    {"id": "id", "kind": _kind, "context": "max_context_length", "created": ("created", time_text)},
    "No models. Register one with `tunery models add NAME DIRECTORY`.",
    page_size=None,
)


@commands.command("where")
@with_client
def where(client: "Client", name: ModelName) -> Result:
    """Print the directory of a base model on the workers, which PEFT, vLLM and `tunery adapters merge` need.

    For administrators.
    """
    models = {model["id"]: model for model in client.get(BASES)["data"]}
    if name not in models:
        raise NotFoundError(f"No base model is named {name!r}; registered: {', '.join(models) or 'none'}.")
    return line(models[name], models[name]["directory"])


@commands.command("alias")
@with_client
def set_alias(client: "Client", name: AliasName, base_model: ModelName) -> Result:
    """Let another name stand for a base model, such as the name that clients sent to OpenAI.

    A job that names the alias trains the base model and shows both names. Replaces an alias of this name. For
    administrators.
    """
    return line(client.post(ALIASES, {"name": name, "model": base_model}), f"{name} -> {base_model}")


aliases = named(commands, ALIASES, AliasName)
aliases.add_list(
    "List the aliases of base models, for administrators.",
    {
        "alias": "id",
        "base model": lambda alias: alias["model"] + ("" if alias["registered"] else " (removed)"),
    },
    "No aliases. Set one with `tunery models alias ALIAS NAME`.",
    name="aliases",
    page_size=None,
)
aliases.add_delete(
    "Remove an alias, for administrators. Jobs that were created by it are kept.", name="unalias", done="removed"
)
named(commands, BASES, ModelName).add_delete(
    "Remove a base model, for administrators. Its files and the adapters trained on it are kept.",
    name="remove",
    done="removed",
)


def _registration_note(row: "Json") -> str:
    state = "waits for a worker with torch" if row["status"] == "queued" else f"is {row['status']}"
    return f"{row['id']} {state}. It goes on if this command is interrupted."


tuned.add_delete("Delete the name of a fine-tuned model. Its job and the files of its adapter are kept.")


@commands.command("memory")
def memory(
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
) -> None:
    """Print the GPU memory that training on common base models needs at least, by this version's plans.

    For an adapter of rank 16 on all linear layers and documents of the given length, and the smallest usual card with
    this memory. It needs no service; `tunery jobs plan` plans a job with its own data on the service's devices.
    """
    from app.domain.planning.base_sizes import COMMON_BASES

    rows = [_row(base) for base in COMMON_BASES]
    if as_json:
        print_json([dict(zip(COLUMNS, row, strict=True)) for row in rows])
    elif markdown:
        for line in markdown_table(rows):
            typer.echo(line)
    else:
        print_table(COLUMNS, rows, "")
        print_note("Estimated from shapes. More memory is faster: packed batches get longer and less is recomputed.")


def markdown_table(rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows)]


def _row(base: "DecoderShape") -> list[str]:
    from app.domain.planning.base_sizes import training_memory

    entry, cells = base.entry, []
    for one in training_memory(entry):
        card = one["card_gigabytes"]
        cells.append(f"{(one['bytes'] or 0) / 1e9:.1f} GB ({f'{card} GB card' if card else 'no single card'})")
    return [base.name, f"{entry.parameters / 1e9:.1f} B", *cells]
