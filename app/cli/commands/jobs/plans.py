"""`tunery jobs plan`: estimate the requirements of a job without creating it."""

from typing import TYPE_CHECKING, Any

import typer

from app.cli.client.transfers import uploaded_files
from app.cli.commands.files import lines_text, print_warnings
from app.cli.job_options import (
    with_job_body,
)
from app.cli.options import AsJson, with_client
from app.cli.output.console import (
    duration_text,
    print_fields,
    print_json,
    print_line,
    print_table,
    size_text,
)

if TYPE_CHECKING:
    from app.cli.client.http import Client


commands = typer.Typer()


@commands.command("plan")
@with_client
@with_job_body(
    "model",
    "training_file",
    "validation_file",
    "seed",
    "n_epochs",
    "batch_size",
    "lora.r",
    "lora.target_modules",
)
def plan(client: "Client", body: dict[str, Any], as_json: AsJson = False) -> None:
    """Estimate a job: tokens, steps, memory and time on each device. Exits with 1 if no device has enough memory."""
    with uploaded_files(client, body, keep=False) as sent:
        estimate = client.post("fine_tuning/jobs/plan", sent)
    if as_json:
        print_json(estimate)
    else:
        _print_estimate(estimate)
    if estimate["verdict"] == "no_device_fits":
        raise typer.Exit(1)


def estimate_text(estimate: dict[str, Any]) -> str | None:
    """Time and memory on the fastest device with enough memory; None if there is none."""
    fitting = [device for device in estimate["devices"] if device["fits"]]
    if not fitting:
        return None
    best = min(fitting, key=lambda device: device["seconds"])
    note = " (rough estimate)" if best["basis"] == "formula" else ""
    return f"{duration_text(best['seconds'])} and {size_text(best['memory']['peak'])} on {best['name']}{note}"


def _print_estimate(estimate: dict[str, Any]) -> None:
    print_line(estimate["message"])
    if estimate.get("model_alias"):
        print_line(f"{estimate['model_alias']} is an alias: the job trains {estimate['model']}.")
    print_warnings(estimate.get("warnings", []))
    tokens = f"{estimate['tokens_per_epoch']:,} per epoch, {estimate['labelled_tokens_per_epoch']:,} of them trained"
    print_fields(
        [
            ("examples", f"{estimate['examples']:,}"),
            ("tokens", f"{tokens}; {estimate['trained_tokens']:,} in total"),
            ("steps", f"{estimate['total_steps']:,}"),
            *((name, lines_text(estimate[name])) for name in ("cut", "empty", "masked")),
        ]
    )
    rows = [
        [
            device["name"],
            "yes" if device["fits"] else "no",
            size_text(device["memory"]["peak"]),
            size_text(device["memory_bytes"]),
            duration_text(device["seconds"]),
            device["basis"],
        ]
        for device in estimate["devices"]
    ]
    print_table(["device", "fits", "peak", "memory", "time", "basis"], rows, "No training worker is running.")
