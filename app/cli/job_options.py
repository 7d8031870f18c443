"""Options of the commands that make or change jobs, from the definitions of the settings of a create body."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from app.cli.client.job_request import job_body
from app.domain.jobs.create_job import SETTINGS
from app.domain.scheduling.fair_share import HIGHEST_PRIORITY, LOWEST_PRIORITY

REQUIRED = ("model", "training_file")
Model = Annotated[str, typer.Option(help=SETTINGS["model"].description)]
Priority = Annotated[
    int | None, typer.Option(min=LOWEST_PRIORITY, max=HIGHEST_PRIORITY, help=SETTINGS["priority"].description)
]
Metadata = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help=SETTINGS["metadata"].description)]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Another setting by its name in the API, such as warmup_ratio=0.1 or lora.use_dora=true; repeatable.",
    ),
]
NoQuantization = Annotated[bool, typer.Option("--no-quantization", help="Train 16-bit LoRA instead of 4-bit QLoRA.")]


def with_job_body(*names: str, is_clone: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add an option for each setting, `--set` and `--no-quantization`; pass the body that follows from them as `body`.

    A clone has what its original has: no option is required, and it may be `--not-urgent`.
    """
    options = {name: _option(name, is_clone) for name in names}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command, assigned=("__module__", "__name__", "__doc__"))
        def run(
            client: Any, *, assignments: Assignments = None, no_quantization: NoQuantization = False, **values: Any
        ) -> None:
            given = {name: values.pop(option.name) for name, option in options.items()}
            command(client, body=job_body(given, assignments or (), no_quantization, is_clone), **values)

        client, *own = [each for each in inspect.signature(command).parameters.values() if each.name != "body"]
        more = list(inspect.signature(run, follow_wrapped=False).parameters.values())[1:-1]
        rest = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
        run.__signature__ = inspect.Signature([client, *options.values(), *more, *rest])  # type: ignore[attr-defined]
        return run

    return decorate


def _option(name: str, is_clone: bool) -> inspect.Parameter:
    """The option of a setting, such as `--lora-r` for "lora.r", as a parameter of a command."""
    _, text, kind, minimum, maximum = SETTINGS[name]
    is_required = name in REQUIRED and not is_clone
    is_listed = kind in (dict, list) and "." not in name  # a list of a parameter is one text with commas
    flag = f"--{name.replace('lora.target', 'target').replace('.', '-').replace('_', '-')}"
    if name.endswith("_file"):
        text += " Give its id, or the path of a file to upload."
    if is_listed:
        flag, text = flag.removesuffix("s"), f"{text} Repeatable."
    option = typer.Option(
        f"{flag}/--not-urgent" if is_clone and name == "urgent" else flag,
        help=text,
        metavar="KEY=VALUE" if kind is dict else None,
        min=minimum,
        max=maximum,
    )
    value: Any = list[str] if is_listed else str if kind is list else kind
    return inspect.Parameter(
        name.replace(".", "_"),
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[value if is_required else value | None, option],
        default=inspect.Parameter.empty if is_required else None,
    )
