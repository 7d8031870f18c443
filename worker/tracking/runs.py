"""A run of an experiment tracker, by the client of Weights & Biases or of MLflow, which block and raise as they like.

A later attempt of a job continues the run of the earlier ones.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from app.domain.jobs.integrations import Integration, MlflowSettings, WandbSettings

JOB_TAG = "tunery.job_id"  # by which a run of MLflow is found again: its ids are the server's
MAX_PARAMETER_CHARACTERS = 500  # of MLflow's smallest back end


class RunRequest(BaseModel):
    """The first line that the child program reads."""

    job_id: str
    integration: Integration
    parameters: dict[str, Any]  # of the training, for the tracker's table of runs
    wandb_api_key: str | None = None
    wandb_offline_directory: Path | None = None  # of the runs that a person uploads later; None: online
    mlflow_tracking_uri: str | None = None

    @property
    def secrets(self) -> list[str]:
        return [secret for secret in (self.wandb_api_key, self.mlflow_tracking_uri) if secret]


class TrackedRun(Protocol):
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of a step."""

    def finish(self, has_failed: bool) -> None:
        """Wait until everything is recorded, and end the run; a later attempt may continue it."""


def open_run(request: RunRequest, directory: Path) -> TrackedRun:
    """The run of a job, new or continued. `directory` is for files of the client. Raises what the client raises."""
    wandb, mlflow = request.integration.wandb, request.integration.mlflow
    if wandb is not None:
        return WandbRun(request, wandb, directory)
    assert mlflow is not None, "an integration has one of them"
    return MlflowRun(request, mlflow)


class WandbRun:
    def __init__(self, request: RunRequest, asked: WandbSettings, directory: Path) -> None:
        import wandb

        offline = request.wandb_offline_directory
        if offline is not None:
            offline.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            mode="offline" if offline else "online",
            api_key=request.wandb_api_key,
            root_dir=str(offline or directory),
            console="off",
            silent=True,
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,  # the host's name, its paths and its hardware
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(
            id=request.job_id,
            resume="allow",
            project=asked.project,
            entity=asked.entity,
            name=asked.name or request.job_id,
            tags=asked.tags,
            config=request.parameters,
            settings=settings,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The client omits steps before the last one: those that an attempt repeats after its snapshot."""
        self._run.log(dict(values), step=step)

    def finish(self, has_failed: bool) -> None:
        self._run.finish(exit_code=int(has_failed))


class MlflowRun:
    def __init__(self, request: RunRequest, asked: MlflowSettings) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient(request.mlflow_tracking_uri)
        experiment = self._client.get_experiment_by_name(asked.experiment)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(asked.experiment)
        found = self._client.search_runs([experiment_id], f"tags.`{JOB_TAG}` = '{request.job_id}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        tags = {JOB_TAG: request.job_id}
        self._id = self._client.create_run(experiment_id, tags=tags, run_name=asked.name or request.job_id).info.run_id
        parameters = [Param(name, str(value)[:MAX_PARAMETER_CHARACTERS]) for name, value in request.parameters.items()]
        self._client.log_batch(self._id, params=parameters)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now_milliseconds = int(time.time() * 1000)
        metrics = [Metric(name, value, now_milliseconds, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def finish(self, has_failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if has_failed else "FINISHED")
