"""Options of the commands that make or change jobs, from the definitions of the settings of a create body, and the
request bodies that follow from them. The server resolves what is not given."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.client.references import FILE, MODEL, completion
from app.cli.errors import UsageError
from app.cli.options import given, option_parameter, parse_pairs, with_body, with_parameters
from app.domain.jobs.create_job import SETTINGS, create_body, merged
from app.domain.scheduling.fair_share import HIGHEST_PRIORITY, LOWEST_PRIORITY

Json = dict[str, Any]
CREATED = (  # the settings that `create`, `clone` and `plan` have options for, in the order of their help
    "model",
    "training_file",
    "validation_file",
    "suffix",
    "seed",
    "method",
    "n_epochs",
    "batch_size",
    "learning_rate",
    "optimizer",
    "lora.r",
    "lora.alpha",
    "lora.dropout",
    "lora.target_modules",
    "lora.experts",
    "metadata",
    "priority",
    "urgent",
    "worker_labels",
    "deliver_to",
)
REQUIRED = ("model", "training_file")  # but by a clone
COMPLETIONS = {"model": completion(MODEL), "training_file": completion(FILE), "validation_file": completion(FILE)}
Model = Annotated[str, typer.Option(help=SETTINGS["model"].description, autocompletion=COMPLETIONS["model"])]
Priority = Annotated[
    int | None, typer.Option(min=LOWEST_PRIORITY, max=HIGHEST_PRIORITY, help=SETTINGS["priority"].description)
]
Suffix = Annotated[str | None, typer.Option(help=SETTINGS["suffix"].description)]
Metadata = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help=SETTINGS["metadata"].description)]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Another setting by its name in the API, such as warmup_ratio=0.1 or lora.use_dora=true; repeatable.",
    ),
]
JobFile = Annotated[
    Path | None,
    typer.Option(
        "--file", help="YAML or JSON file with the body of a create call, and paths as the options take them."
    ),
]
NoMetadata = Annotated[bool, typer.Option("--no-metadata", help="Remove all metadata.")]
NoQuantization = Annotated[bool, typer.Option("--no-quantization", help="Train 16-bit LoRA instead of 4-bit QLoRA.")]


def with_job_body(is_clone: bool = False) -> Callable[..., Any]:
    """Add an option for each setting of CREATED, `--set`, `--no-quantization` and `--file`; pass the body that follows
    from them as `body`. A clone has what its original has: it requires none.
    """

    def make(assignments: Assignments, no_quantization: NoQuantization, file: JobFile, **values: Any) -> Json:
        from app.cli.job_file import read_job_file  # slow import, which `--help` does not need

        options = dict(zip(CREATED, values.values(), strict=True))
        read = read_job_file(file) if file else {}
        body = job_body(options, assignments or (), no_quantization, is_clone, read)
        if missing := [_flag(name) for name in REQUIRED if name not in body and not is_clone]:
            raise UsageError(f"Missing: {' and '.join(missing)}. See `tunery models list` and `tunery files list`.")
        return body

    more = (
        option_parameter("assignments", Assignments),
        option_parameter("no_quantization", NoQuantization, False),
        option_parameter("file", JobFile),
    )
    return with_body(with_parameters(make, [*map(_option, CREATED), *more]))


def job_body(
    options: Mapping[str, Any],
    assignments: Sequence[str] = (),
    no_quantization: bool = False,
    is_clone: bool = False,
    file: Mapping[str, Any] | None = None,
) -> Json:
    """The create body of {setting: value}, of `--set` and of `--no-quantization`, or the changes of a clone.

    Settings without a value are left out; the others override those of `file`, where it has its hyperparameters.
    Raises UsageError for a contradiction.
    """
    settings = {name: value for name, value in options.items() if value not in (None, [])}
    if "metadata" in settings:
        settings["metadata"] = parse_pairs("--metadata", settings["metadata"])
    for assignment in assignments:
        ((name, text),) = parse_pairs("--set", [assignment]).items()
        value = _parse_value(text)
        if settings.setdefault(name, value) != value:
            raise UsageError(f"--set {assignment} contradicts {settings[name]!r}, which was also given for {name}.")
    if no_quantization:
        if any(name.startswith("quantization") for name in settings):
            raise UsageError("--no-quantization and --set quantization.… contradict each other; give one of them.")
        settings["quantization"] = None
    file = file or {}
    method = file.get("method")
    named = str(method.get("type") or "supervised") if isinstance(method, dict) else "supervised"
    return merged(file, create_body(settings, None if is_clone or "hyperparameters" in file else named))


def update_body(
    priority: Priority = None, suffix: Suffix = None, metadata: Metadata = None, no_metadata: NoMetadata = False
) -> Json:
    """The changes to an existing job. Raises UsageError if there are none."""
    if metadata and no_metadata:
        raise UsageError("--metadata and --no-metadata contradict each other; give one of them.")
    body = given(priority=priority, suffix=suffix)
    if metadata or no_metadata:
        body["metadata"] = parse_pairs("--metadata", metadata) or None
    if not body:
        raise UsageError("Nothing to change: give --priority, --suffix, --metadata or --no-metadata.")
    return body


def _option(name: str) -> inspect.Parameter:
    """The option of a setting, such as `--lora-r` for "lora.r", as a parameter of a command."""
    _, text, kind, minimum, maximum = SETTINGS[name]
    is_listed = kind in (dict, list) and "." not in name  # a list of a parameter is one text with commas
    flag = _flag(name)
    if name.endswith("_file"):
        text += " Give its id or name, or the path of a file to upload."
    if is_listed:
        flag, text = flag.removesuffix("s"), f"{text} Repeatable."
    option = typer.Option(
        f"{flag}/--not-urgent" if name == "urgent" else flag,
        help=text,
        metavar="KEY=VALUE" if kind is dict else None,
        min=minimum,
        max=maximum,
        autocompletion=COMPLETIONS.get(name),
    )
    value: Any = list[str] if is_listed else str if kind is list else kind
    return option_parameter(name.replace(".", "_"), Annotated[value | None, option])


def _flag(name: str) -> str:
    return f"--{name.replace('lora.target', 'target').replace('.', '-').replace('_', '-')}"


def _parse_value(text: str) -> Any:
    """Parse a JSON value such as a number, true, null or a list; any other text is a string."""
    try:
        return json.loads(text)
    except ValueError:
        return text
