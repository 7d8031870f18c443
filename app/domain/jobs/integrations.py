"""Experiment trackers that get the metrics of a job: Weights & Biases, in OpenAI's shape, and MLflow.

A request names a project or an experiment, never an address or a key: these are settings of the worker.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from app.domain.evaluations.graders import Shape

MAX_INTEGRATIONS = 5
# The client refuses a project with one of these characters.
WandbName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^/\\#?%:]+$")]
WandbTag = Annotated[str, Field(min_length=1, max_length=64)]
RunName = Annotated[str | None, Field(min_length=1, max_length=128)]


class WandbSettings(Shape):
    project: WandbName
    """The project of the run."""
    name: RunName = None
    """The name of the run. Default: the id of the job."""
    entity: WandbName | None = None
    """The team or user of the run. Default: that of the operator's key."""
    tags: Annotated[list[WandbTag] | None, Field(max_length=32)] = None
    """Tags of the run."""


class MlflowSettings(Shape):
    experiment: Annotated[str, Field(min_length=1, max_length=128)]
    """The experiment of the run, which is created if there is none of this name."""
    name: RunName = None
    """The name of the run. Default: the id of the job."""


class Integration(Shape):
    type: Literal["wandb", "mlflow"]
    """Weights & Biases or MLflow; the object of the same name says where the run is."""
    wandb: WandbSettings | None = None
    """For `type` wandb."""
    mlflow: MlflowSettings | None = None
    """For `type` mlflow."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [name for name, value in (("wandb", self.wandb), ("mlflow", self.mlflow)) if value is not None]
        if given != [self.type]:
            raise ValueError(f"must have the object {self.type}, and no object of another type")
        return self
