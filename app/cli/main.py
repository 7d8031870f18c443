"""The `tunery` command. Every error ends as one sentence and an exit code, never as a stack trace."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from app.cli.client.service_discovery import find_layout
from app.cli.commands import (
    adapters,
    audit,
    clones,
    exports,
    file_reports,
    files,
    jobs,
    keys,
    models,
    plans,
    projects,
    queue,
    records,
    webhooks,
)
from app.cli.errors import INTERRUPTED, CliError, Missing, UsageError
from app.cli.local_stack.errors import CannotStart
from app.cli.options import DataDir
from app.cli.output.console import print_error, print_line
from app.errors import NotFound, TuneryError


def main() -> None:
    app()


class Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        with _errors_as_sentences():
            return super().invoke(ctx)


app = typer.Typer(
    name="tunery",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune language models on your own GPUs, over OpenAI's wire.",
)

Host = Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 opens it to the network.")]
Port = Annotated[int, typer.Option(min=0, max=65_535, help="0 takes any free one.")]


@app.command()
def up(data_dir: DataDir = None, host: Host = "127.0.0.1", port: Port = 8000) -> None:
    """Run the whole service on this machine until Ctrl-C."""
    from app.cli.local_stack.up import UpOptions, run

    raise typer.Exit(run(UpOptions(find_layout(data_dir).root, host, port)))


@app.command()
def doctor(data_dir: DataDir = None, host: Host = "127.0.0.1", port: Port = 8000) -> None:
    """Say what this machine lacks for `tunery up`, and what to do about it."""
    from app.cli.local_stack.doctor import findings, print_findings

    raise typer.Exit(print_findings(findings(find_layout(data_dir).root, host, port)))


@app.command()
def demo(
    directory: Annotated[Path | None, typer.Option(help="Where its own stack lives; absent: .demo here.")] = None,
) -> None:
    """Fine-tune the bundled model through the real service, and show what it learned. Takes a few minutes."""
    from app.cli.commands.demo import run

    run(directory)


app.add_typer(files.commands, name="files")
app.add_typer(jobs.commands, name="jobs")
files.commands.add_typer(file_reports.commands)  # no name: its one command is another of theirs
for more in (plans, records, clones, exports):
    jobs.commands.add_typer(more.commands)
app.add_typer(adapters.commands, name="adapters")
app.add_typer(models.commands, name="models")
app.add_typer(projects.commands, name="projects")
app.add_typer(keys.commands, name="keys")
app.add_typer(audit.commands, name="audit")
app.add_typer(webhooks.commands, name="webhooks")
app.add_typer(queue.commands)  # no name: its commands are ours


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if show_version:
        print_line(version("tunery"))
    elif context.invoked_subcommand is None:
        print_line(context.get_help())


@contextmanager
def _errors_as_sentences() -> Iterator[None]:
    try:
        yield
    except (typer.Exit, typer.Abort, typer.TyperException):
        raise
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if os.environ.get("TUNERY_DEBUG") or _is_broken_pipe(error):
            raise
        print_error(_sentence(error))
        raise typer.Exit(_exit_code(error)) from None


def _sentence(error: Exception) -> str:
    if isinstance(error, CliError | CannotStart | TuneryError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}."
    return f"{type(error).__name__}: {error}. This is a mistake of ours; TUNERY_DEBUG=1 shows where."


def _exit_code(error: Exception) -> int:
    if isinstance(error, CliError):
        return error.exit_code
    if isinstance(error, NotFound):
        return Missing.exit_code
    # From the domain: a directory that can't be offered as a base model, for one.
    return UsageError.exit_code if isinstance(error, TuneryError) else CliError.exit_code


def _is_broken_pipe(error: Exception) -> bool:
    """`tunery jobs list | head` is no error."""
    return isinstance(error, OSError) and error.errno == errno.EPIPE
