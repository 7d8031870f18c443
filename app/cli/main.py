"""The `tunery` command. Every error ends as one sentence and an exit code, never as a stack trace."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from app.cli import adapters, files, jobs, keys, models
from app.cli.errors import INTERRUPTED, CliError, Misused
from app.cli.local.errors import CannotStart
from app.cli.options import DataDir
from app.cli.output import complain, print_line
from app.errors import TuneryError


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
app.add_typer(files.commands, name="files")
app.add_typer(jobs.commands, name="jobs")
app.add_typer(adapters.commands, name="adapters")
app.add_typer(models.commands, name="models")
app.add_typer(keys.commands, name="keys")


@app.callback()
def _root(
    show_version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version.")] = False,
) -> None:
    if show_version:
        print_line(version("tunery"))
        raise typer.Exit


@contextmanager
def _errors_as_sentences() -> Iterator[None]:
    try:
        yield
    except CliError as error:
        _end(str(error), error.exit_code)
    except TuneryError as error:  # from the domain: a model directory that can't be offered, for one
        _end(str(error), Misused.exit_code)
    except CannotStart as error:
        _end(str(error), CliError.exit_code)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except Exception as error:
        if os.environ.get("TUNERY_DEBUG") or _is_usage(error):
            raise
        _end(f"{type(error).__name__}: {error}. Set TUNERY_DEBUG=1 to see where.", CliError.exit_code)


def _end(text: str, exit_code: int) -> None:
    complain(text)
    raise typer.Exit(exit_code)
