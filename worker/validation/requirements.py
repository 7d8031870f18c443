"""Estimate a job's requirements once its files have been read, as columns of its row, for claims and the forecast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.db.scheduling import workers
from app.db.tables import Job
from app.domain.datasets.report import DatasetReport
from app.domain.jobs.layer_patterns import match_spec
from app.domain.jobs.spec import JobSpec
from app.domain.planning.requirements import estimate_requirements
from app.domain.planning.workload import Workload
from app.log import get_logger
from worker.jobs.lease import LeaseKeeper
from worker.jobs.prepare import Inputs

log = get_logger(__name__)


def requirement_columns(
    keeper: LeaseKeeper, job: Job, inputs: Inputs, reports: Mapping[str, DatasetReport]
) -> dict[str, Any]:
    """The columns with the estimated requirements; empty if they cannot be estimated.

    Any worker may claim a job without an estimate, and its trainer plans the job again. Raises FencedError.
    """
    spec = JobSpec.model_validate(job.spec)
    entry = inputs.base.catalog_entry
    if not entry.decoder_layers:  # registered before entries had the fields of a plan
        return {}
    need, sha256 = job.requirements, inputs.base.manifest_sha256
    devices = keeper.transact(lambda session: workers.candidate_devices(session, spec, sha256, need))
    try:
        spec = match_spec(spec, entry.layers)  # a job that was stored before patterns were matched at creation
        training, validation = reports["training"], reports.get("validation")
        validation_tokens = validation.tokens if validation else 0
        work = Workload.of(spec, training.lengths, training.labelled_tokens, validation_tokens)
        estimate = estimate_requirements(entry, spec, work, devices or ())
    except Exception:  # a failed estimate must not fail the job
        log.exception("the job's requirements could not be estimated")
        return {}
    return {
        "needed_cpu_bytes": estimate.cpu_bytes,
        "needed_cuda_bytes": estimate.cuda_bytes,
        "planned_seconds": estimate.seconds,
    }
