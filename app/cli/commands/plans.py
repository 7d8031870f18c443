"""`tunery jobs plan`: what a job would need, before it is created."""

from typing import TYPE_CHECKING, Any

import typer

from app.cli.client.job_request import build_body, target_modules
from app.cli.client.training_files import uploaded
from app.cli.job_options import (
    BatchSize,
    Epochs,
    LoraRank,
    Model,
    NoQuantization,
    Seed,
    Settings,
    TargetModules,
    TrainingFile,
)
from app.cli.options import AsJson, with_client
from app.cli.output.console import (
    duration_text,
    print_fields,
    print_json,
    print_line,
    print_note,
    print_table,
    size_text,
)

if TYPE_CHECKING:
    from app.cli.client.http import Client


commands = typer.Typer()


@commands.command("plan")
@with_client
def plan(
    client: "Client",
    model: Model,
    training_file: TrainingFile,
    seed: Seed = None,
    n_epochs: Epochs = None,
    batch_size: BatchSize = None,
    lora_r: LoraRank = None,
    modules: TargetModules = None,
    no_quantization: NoQuantization = False,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Say what a job would need: tokens, steps, memory and time on each device. Exits with 1 where none has room."""
    asked = build_body(
        model=model,
        training_file=training_file,
        validation_file=None,
        suffix=None,
        seed=seed,
        hyperparameters={"n_epochs": n_epochs, "batch_size": batch_size},
        lora={"r": lora_r, "target_modules": target_modules(modules)},
        no_quantization=no_quantization,
        settings=settings or [],
        metadata=[],
    )
    with uploaded(client, asked) as body:
        planned = client.post("fine_tuning/jobs/plan", body)
    if body["training_file"] != training_file:
        print_note(f"{training_file} is {body['training_file']}.")
    if as_json:
        print_json(planned)
    else:
        _show(planned)
    if planned["verdict"] == "no_device_fits":
        raise typer.Exit(1)


def sentence(planned: dict[str, Any]) -> str | None:
    """Time and memory on the fastest device that has room, in a few words."""
    fitting = [device for device in planned["devices"] if device["fits"]]
    if not fitting:
        return None
    best = min(fitting, key=lambda device: device["seconds"])
    guess = ", a first guess" if best["basis"] == "formula" else ""
    return f"{duration_text(best['seconds'])} and {size_text(best['memory']['peak'])} on {best['name']}{guess}"


def _show(planned: dict[str, Any]) -> None:
    print_line(planned["message"])
    tokens = f"{planned['tokens_per_epoch']:,} an epoch, {planned['labelled_tokens_per_epoch']:,} of them learned"
    print_fields(
        [
            ("examples", f"{planned['examples']:,}"),
            ("tokens", f"{tokens}; {planned['trained_tokens']:,} in all"),
            ("steps", f"{planned['total_steps']:,}"),
            *((name, _lines(planned[name])) for name in ("cut", "empty", "masked")),
        ]
    )
    rows = [
        [device["name"], "yes" if device["fits"] else "no", size_text(device["memory"]["peak"]),
         size_text(device["memory_bytes"]), duration_text(device["seconds"]), device["basis"]]
        for device in planned["devices"]
    ]  # fmt: skip
    print_table(["device", "fits", "peak", "memory", "time", "from"], rows, "No training worker is running.")


def _lines(lines: dict[str, Any]) -> str:
    if not lines["count"]:
        return ""
    more = ", …" if lines["count"] > len(lines["first_lines"]) else ""
    return f"{lines['count']:,} (lines {', '.join(map(str, lines['first_lines']))}{more})"
