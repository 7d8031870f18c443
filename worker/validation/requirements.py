"""What a job will need, as columns of its row: reckoned when its files have been read, for claim and forecast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.db.scheduling import workers
from app.db.tables import Job
from app.domain.base_models.catalog import CatalogEntry
from app.domain.datasets.report import Report
from app.domain.jobs.layer_patterns import match_spec
from app.domain.jobs.spec import JobSpec
from app.domain.planning.requirements import reckon
from app.domain.planning.workload import Work
from app.domain.scheduling.worker_capacity import Need
from app.log import get_logger
from worker.jobs.lease import LeaseKeeper
from worker.jobs.prepare import Inputs

log = get_logger(__name__)


def reckon_needs(keeper: LeaseKeeper, job: Job, inputs: Inputs, reports: Mapping[str, Report]) -> dict[str, Any]:
    """Nothing where it cannot be reckoned: such a job is tried by any worker, whose trainer plans it again.

    Raises FencedError.
    """
    spec = JobSpec.model_validate(job.spec)
    entry = CatalogEntry.model_validate(inputs.base.entry)
    if not entry.decoder_layers:  # registered before there were plans
        return {}
    need, sha256 = Need(spec.base_model, frozenset(job.worker_labels)), inputs.base.manifest_sha256
    places = keeper.transact(lambda session: workers.candidate_devices(session, spec, sha256, need))
    try:
        spec = match_spec(spec, entry.layers)  # of a job that was stored before patterns were matched at creation
        needed = reckon(entry, spec, _work(spec, reports), places or ())
    except Exception:  # a plan is worth less than the job
        log.exception("the job's needs could not be reckoned")
        return {}
    return {
        "needed_cpu_bytes": needed.cpu_bytes,
        "needed_cuda_bytes": needed.cuda_bytes,
        "planned_seconds": needed.seconds,
    }


def _work(spec: JobSpec, reports: Mapping[str, Report]) -> Work:
    training, validation = reports["training"], reports.get("validation")
    return Work.of(spec, training.lengths, training.labelled_tokens, validation.tokens if validation else 0)
