"""`tunery ask`: one prompt to a model that a delivery serves, or that an idle worker answers for."""

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.client.references import JOB, LAST, MODEL, REFERENCE_FORMS, completion, resolve_model
from app.cli.errors import NotFoundError, UsageError
from app.cli.options import AsJson, given, with_client
from app.cli.output.console import print_json, print_note

if TYPE_CHECKING:
    from app.cli.client.http import Client

commands = typer.Typer()

STANDARD_INPUT = "-"


@commands.command("ask")
@with_client
def ask(
    client: "Client",
    model: Annotated[
        str,
        typer.Argument(
            help=f"Name of a model (`tunery models list`), or a job that made one: {REFERENCE_FORMS}.",
            autocompletion=completion(MODEL),
        ),
    ],
    prompt: Annotated[str, typer.Argument(help="The message of the user; - reads it from standard input.")],
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Maximum number of tokens of the answer.")] = None,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, help="Sampling temperature. Default: 0, always the most likely token.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Ask a model one question and print its answer as it comes.

    An engine answers for a model that was delivered to it, else an idle worker, if the server has trial answers.

    Examples: `tunery ask @last "Where is my parcel?"`, `tunery ask Qwen3-4B - < prompt.txt`
    """
    text = sys.stdin.read() if prompt == STANDARD_INPUT else prompt
    if not text.strip():
        raise UsageError("The prompt is empty.")
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": text})
    body = given(messages=messages, temperature=temperature, max_tokens=max_tokens)
    answer = _answer_as_json if as_json else _print_answer
    is_job = model.startswith((LAST, JOB.prefix))
    try:
        answer(client, body | {"model": resolve_model(client, model) if is_job else model})
    except NotFoundError as error:
        job = None
        with contextlib.suppress(NotFoundError):  # else by its name, or a prefix of its id without ftjob-
            job = None if is_job else resolve_model(client, model)
        if job is None:
            raise error from None
        answer(client, body | {"model": job})


def _answer_as_json(client: "Client", body: dict[str, Any]) -> None:
    print_json(client.post("chat/completions", body))


def _print_answer(client: "Client", body: dict[str, Any]) -> None:
    """Print the answer while it arrives, and why it ended if it was cut."""
    reason = None
    for event in client.stream("chat/completions", body | {"stream": True}):
        for choice in event["choices"]:
            print((choice.get("delta") or {}).get("content") or "", end="", flush=True)
            reason = choice.get("finish_reason") or reason
    print(flush=True)
    if reason not in (None, "stop"):
        print_note(f"The answer ended with the reason {reason}.")
