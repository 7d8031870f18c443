"""`tunery ask`: one prompt to a model that a delivery serves, or that an idle worker answers for."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.errors import UsageError
from app.cli.options import with_client
from app.cli.output.console import print_note

if TYPE_CHECKING:
    from app.cli.client.http import Client

commands = typer.Typer()

STANDARD_INPUT = "-"


@commands.command("ask")
@with_client
def ask(
    client: "Client",
    model: Annotated[str, typer.Argument(help="An ft: model, a base model or an alias; see `tunery models list`.")],
    prompt: Annotated[str, typer.Argument(help="The message of the user; - reads it from standard input.")],
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Maximum number of tokens of the answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="Default: that of the engine.")] = None,
) -> None:
    """Ask a model one question and print its answer as it comes.

    An engine answers for a model that was delivered to it, else an idle worker, if the server has trial answers.

    Examples: `tunery ask ft:Qwen3-4B:tunery:support:7f3a "Where is my parcel?"`, `tunery ask Qwen3-4B - < prompt.txt`
    """
    text = sys.stdin.read() if prompt == STANDARD_INPUT else prompt
    if not text.strip():
        raise UsageError("The prompt is empty.")
    messages = [{"role": "system", "content": system}] if system is not None else []
    limits = {"max_tokens": max_tokens, "temperature": temperature}
    body: dict[str, Any] = {
        "model": model,
        "messages": [*messages, {"role": "user", "content": text}],
        "stream": True,
        **{name: value for name, value in limits.items() if value is not None},
    }
    reason = None
    for event in client.stream("chat/completions", body):
        for choice in event["choices"]:
            print((choice.get("delta") or {}).get("content") or "", end="", flush=True)
            reason = choice.get("finish_reason") or reason
    print(flush=True)
    if reason not in (None, "stop"):
        print_note(f"The answer ended with the reason {reason}.")
