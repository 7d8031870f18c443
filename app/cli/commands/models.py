"""`tunery models`: list models; base models and their aliases, for administrators."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client.service_discovery import model_path
from app.cli.errors import NotFoundError
from app.cli.options import AsJson, with_administration, with_client
from app.cli.output.console import print_json, print_line, print_note, print_table, time_text

if TYPE_CHECKING:
    from app.cli.administration.records import Administration, BaseModelRecord
    from app.cli.client.http import Client
    from app.domain.planning.base_sizes import DecoderShape

commands = typer.Typer(no_args_is_help=True, help="Base models and fine-tuned models.")

AliasName = Annotated[str, typer.Argument(help="The alias, such as gpt-4o-mini-2024-07-18.", metavar="ALIAS")]
ModelName = Annotated[str, typer.Argument(help="Name of the base model, such as Qwen3-4B.", metavar="NAME")]

COLUMNS = ["base model", "parameters", "QLoRA, 2,048 tokens", "QLoRA, 8,192 tokens", "16-bit LoRA, 2,048 tokens"]


@commands.command("add")
@with_administration
def add(
    admin: "Administration",
    name: ModelName,
    directory: Annotated[
        str,
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
    """Register a base model for all projects, for administrators. Replaces a model of the same name.

    Hashes all files and loads the model once, where torch is installed, to check that it can be trained. On the server
    this command does it. Over HTTP a worker does it, and DIRECTORY must be inside TUNERY_BASE_MODEL_DIRECTORIES.
    """
    from app.system.model_registration import RegistrationOptions

    options = RegistrationOptions(learning_rate, license_name, source, revision)
    _print_registered(admin.register_base_model(name, directory, options, print_note))


@commands.command("pull")
@with_administration
def pull(
    admin: "Administration",
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
    license_name: Annotated[
        str | None, typer.Option("--license", help="License of the model, such as apache-2.0.")
    ] = None,
) -> None:
    """Download a base model from a model hub and register it, for administrators.

    The hub is huggingface.co, or HF_ENDPOINT; HF_TOKEN is the token. After an interruption the same command downloads
    the files that are missing. On the server this command downloads into DIRECTORY. Over HTTP a worker does it, with
    its own environment, into TUNERY_BASE_MODEL_PULL_DIRECTORY.
    """
    from app.system.model_registration import RegistrationOptions

    source, _, revision = model.partition("@")
    options = RegistrationOptions(learning_rate, license_name, source, revision or None)
    _print_registered(admin.pull_base_model(name or source, directory, options, print_note))


def _print_registered(model: "BaseModelRecord") -> None:
    print_line(
        f"{model.name}: {model.architecture}, {model.parameters / 1e6:,.0f} M parameters, "
        f"context {model.context_length}, learning rate {model.learning_rate:g}, {', '.join(model.target_modules)}"
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
@with_administration
def where(admin: "Administration", name: ModelName) -> None:
    """Print the directory of a base model on the workers, which PEFT, vLLM and `tunery adapters merge` need.

    For administrators.
    """
    directories = {model.name: model.directory for model in admin.base_models()}
    if name not in directories:
        registered = ", ".join(directories) or "none"
        raise NotFoundError(f"No base model is named {name!r}; registered: {registered}.")
    print_line(directories[name])


@commands.command("alias")
@with_administration
def set_alias(admin: "Administration", name: AliasName, base_model: ModelName) -> None:
    """Let another name stand for a base model, such as the name that clients sent to OpenAI.

    A job that names the alias trains the base model and shows both names. Replaces an alias of this name. For
    administrators.
    """
    admin.set_alias(name, base_model)
    print_line(f"{name} -> {base_model}")


@commands.command("aliases")
@with_administration
def list_aliases(admin: "Administration", as_json: AsJson = False) -> None:
    """List the aliases of base models, for administrators."""
    found = [vars(alias) for alias in admin.aliases()]
    if as_json:
        print_json(found)
        return
    rows = [[each["name"], each["model"] if each["registered"] else f"{each['model']} (removed)"] for each in found]
    print_table(["alias", "base model"], rows, "No aliases. Set one with `tunery models alias ALIAS NAME`.")


@commands.command("unalias")
@with_administration
def remove_alias(admin: "Administration", name: AliasName) -> None:
    """Remove an alias, for administrators. Jobs that were created by it are kept."""
    admin.remove_alias(name)
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
@with_administration
def remove(admin: "Administration", name: ModelName) -> None:
    """Remove a base model, for administrators. Its files and the adapters trained on it are kept."""
    admin.remove_base_model(name)
    print_line(f"{name} removed")


def _kind(model: dict[str, Any]) -> str:
    if "alias_of" in model:
        return f"alias of {model['alias_of']}"
    return "trained" if model["id"].startswith("ft:") else "base"


def _context_text(model: dict[str, Any]) -> str:
    length = model.get("max_context_length")
    return "" if length is None else str(length)


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
    from app.domain.jobs.spec import QuantizationSpec
    from app.domain.planning.base_sizes import least_memory_bytes, smallest_card_gigabytes

    entry, cells = base.entry, []
    for document_tokens, quantization in ((2048, QuantizationSpec()), (8192, QuantizationSpec()), (2048, None)):
        size_bytes = least_memory_bytes(entry, document_tokens, quantization)
        card = smallest_card_gigabytes(size_bytes)
        cells.append(f"{size_bytes / 1e9:.1f} GB ({f'{card} GB card' if card else 'no single card'})")
    return [base.name, f"{entry.parameters / 1e9:.1f} B", *cells]
