"""The `tunery` command. Every error is printed as one sentence and sets the exit code; there is no stack trace."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.client.service_discovery import find_layout
from app.cli.command_tree import TreeGroup, complete_tree
from app.cli.commands import (
    answers,
    backups,
    delivery_targets,
    files,
    imports,
    keys,
    login,
    mcp,
    models,
    projects,
    queue,
    status,
    webhooks,
)
from app.cli.commands.jobs import adapters, evals, evaluations, jobs, progress, results
from app.cli.errors import CliError, CommandExit, NotFoundError, UsageError
from app.cli.local_stack.machine import CannotStart
from app.cli.options import AsJson, DataDir
from app.cli.output.console import print_checks, print_error, print_line
from app.errors import NotFound, TuneryError


def main() -> None:
    app()


class CommandGroup(TreeGroup):
    def invoke(self, ctx: Any) -> Any:
        with _print_errors():
            return super().invoke(ctx)


app = typer.Typer(
    name="tunery",
    cls=CommandGroup,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune language models on your own GPUs through an OpenAI-compatible API.\n\n"
    "`ls`, `show` and `rm` stand for `list`, `get` and `delete`; `COMMAND --help` shows the options of a command.",
)

Host = Annotated[
    str, typer.Option(help="Address to listen on; 0.0.0.0 accepts connections from the network, behind a proxy.")
]
WebPort = Annotated[
    int | None,
    typer.Option(
        min=0, max=65_535, help="Port of the dashboard; 0 selects a free port. Default: the port after --port, if free."
    ),
]
Port = Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 selects a free port.")]


@app.command()
def up(data_dir: DataDir = None, host: Host = "127.0.0.1", port: Port = 8000, web_port: WebPort = None) -> None:
    """Run the whole service on this machine until Ctrl-C."""
    from app.cli.local_stack.up import run

    raise typer.Exit(run(find_layout(data_dir).root, host, port, web_port))


@app.command()
def doctor(
    data_dir: DataDir = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    before_upgrade: Annotated[
        bool,
        typer.Option("--before-upgrade", help="Check with a new release, before it is started, what it will change."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check this machine and the running service, and print what to install or change.

    With --before-upgrade: schema, backup, disk, running jobs, settings that this release does not know, and workers of
    another release. Install the new release beside the running one, and run its command. Nothing is changed.
    """
    from app.cli.local_stack.checks import machine_checks, upgrade_checks

    root = find_layout(data_dir).root
    checks = upgrade_checks(data_dir) if before_upgrade else machine_checks(root, host, port)
    raise typer.Exit(print_checks(checks, as_json=as_json))


@app.command()
def demo(
    directory: Annotated[
        Path | None, typer.Option(help="Directory of the demo's own service. Default: .demo in the repository.")
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option(help="Directory with train.jsonl and heldout.jsonl. Default: that of the repository."),
    ] = None,
) -> None:
    """Fine-tune the bundled model with a service on this machine and compare its answers. Takes a few minutes."""
    from app.cli.commands.demo import run

    run(directory, examples)


for module in (progress, results):
    jobs.commands.add_typer(module.commands)
for name, group in {
    "files": files.commands,
    "jobs": jobs.commands,
    "adapters": adapters.commands,
    "evals": evals.commands,
    "models": models.commands,
    "import": imports.commands,
    "projects": projects.projects,
    "keys": keys.commands,
    "audit": keys.audit,
    "secrets": keys.secrets,
    "webhooks": webhooks.commands,
    "storage": backups.storage_commands,
    "targets": delivery_targets.commands,
}.items():
    app.add_typer(group, name=name)
for module in (
    answers,
    queue,
    status,
    projects,
    backups,
    evaluations,
    login,
    mcp,
):  # no name: adds their commands to `tunery`
    app.add_typer(module.commands)
complete_tree(app)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", "-V", help="Print the version.")] = False,
) -> None:
    if show_version:
        print_line(version("tunery"))
    elif context.invoked_subcommand is None:
        print_line(context.get_help())


@contextmanager
def _print_errors() -> Iterator[None]:
    try:
        yield
    except (typer.Exit, typer.Abort, typer.TyperException):
        raise
    except KeyboardInterrupt:
        raise typer.Exit(CommandExit.INTERRUPTED) from None
    except Exception as error:
        if os.environ.get("TUNERY_DEBUG") or _is_broken_pipe(error):
            raise
        print_error(_error_text(error))
        raise typer.Exit(_exit_code(error)) from None


def _error_text(error: Exception) -> str:
    if isinstance(error, CliError | CannotStart | TuneryError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        filename = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{filename}."
    return f"{type(error).__name__}: {error}. This is a bug in Tunery; set TUNERY_DEBUG=1 for a stack trace."


def _exit_code(error: Exception) -> int:
    if isinstance(error, CliError):
        return error.exit_code
    if isinstance(error, NotFound):
        return NotFoundError.exit_code
    # A domain error, such as a directory that cannot be registered as a base model, is a usage error.
    return UsageError.exit_code if isinstance(error, TuneryError) else CliError.exit_code


def _is_broken_pipe(error: Exception) -> bool:
    """Whether the reader of a pipe has closed it, as in `tunery jobs list | head`."""
    return isinstance(error, OSError) and error.errno == errno.EPIPE
