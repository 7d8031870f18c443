"""Options that several commands on jobs share."""

from typing import Annotated

import typer

Model = Annotated[str, typer.Option(help="Base model; see `tunery models list`.")]
TrainingFile = Annotated[str, typer.Option(help="File id, or path of a file to upload.")]
ValidationFile = Annotated[str | None, typer.Option(help="File id, or path of a file to upload.")]
Seed = Annotated[int | None, typer.Option(help="Random seed; the same seed repeats a run.")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training file, 1 to 50. Default: auto.")]
BatchSize = Annotated[int | None, typer.Option(help="Examples per optimizer step, 1 to 256. Default: auto.")]
LoraRank = Annotated[int | None, typer.Option(help="LoRA rank. Default: 16.")]
TargetModules = Annotated[
    str | None, typer.Option("--target-modules", help="all-linear, or names such as q_proj,v_proj.")
]
NoQuantization = Annotated[bool, typer.Option("--no-quantization", help="Train 16-bit LoRA instead of 4-bit QLoRA.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Another hyperparameter, or lora.KEY=VALUE or quantization.KEY=VALUE; repeatable.",
    ),
]
Metadata = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Metadata of the job; repeatable.")]
Priority = Annotated[
    int | None,
    typer.Option(
        min=-100, max=100, help="Order among the queued jobs of the project: higher starts first. Default: 0."
    ),
]
