"""What several commands on jobs are told."""

from typing import Annotated

import typer

Model = Annotated[str, typer.Option(help="A base model; `tunery models list` has them.")]
TrainingFile = Annotated[str, typer.Option(help="A file's id, or a path to upload.")]
Seed = Annotated[int | None, typer.Option(help="The same seed repeats a run.")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the data, 1 to 50.")]
BatchSize = Annotated[int | None, typer.Option(help="Examples per optimizer step, 1 to 256.")]
LoraRank = Annotated[int | None, typer.Option(help="The adapter's rank (16).")]
TargetModules = Annotated[
    str | None, typer.Option("--target-modules", help="all-linear, or names such as q_proj,v_proj.")
]
NoQuantization = Annotated[bool, typer.Option("--no-quantization", help="16-bit LoRA instead of QLoRA in 4 bits.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other hyperparameter, or lora.… or quantization.…"),
]
Metadata = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A note on the job.")]
Priority = Annotated[
    int | None, typer.Option(min=-100, max=100, help="Among your project's waiting jobs: higher goes first (0).")
]
