from __future__ import annotations

from app.db.engine import Sessions, transaction
from app.db.jobs import claims
from app.db.jobs.leases import lease_of
from app.db.scheduling import measurements
from app.db.tables import Job, MeasurementRow
from app.domain.jobs.events import Measured, Planned, Probed
from app.domain.jobs.spec import JobSpec, QuantizationSpec
from app.domain.jobs.states import Reason
from app.domain.planning.execution_plan import ExecutionPlan

MODE = ExecutionPlan(row_tokens=2048)
PLANNED = Planned(
    run_id="r", device_kind="cpu", device="cpu", memory_bytes=8_000, mode=MODE, largest_row_tokens=100, components={},
    loaded_bytes=1_000, working_bytes=500, peak_bytes=1_500, step_flop=3e9, seconds=9.0, basis="formula",
)  # fmt: skip
PROBED = Probed(run_id="r", row_tokens=100, seconds=1.0, loaded_bytes=1_100, peak_bytes=1_700)


def found(sessions: Sessions, job: Job, device: str = "EPYC", gpus: int = 1) -> list[dict[str, object]]:
    spec = JobSpec.model_validate(job.spec)
    with transaction(sessions) as session:
        rows = measurements.similar(session, device, gpus, "sha", spec.quantization, "supervised")
        return [row.model_dump() for row in rows]


DONE = Measured(
    run_id="r", mode=MODE, peak_bytes=1_900, seconds=30.0, step_seconds=20.0, step_tokens=4_000, validation_seconds=4.0,
)  # fmt: skip


def test_a_job_counts_when_it_is_done(sessions: Sessions, running: Job) -> None:
    """On a CPU the probe's word alone would lower the next plan: it takes 0.77 of the formula, the whole run 0.98."""
    with transaction(sessions) as session:
        measurements.add(session, running, "cpu", "EPYC", "sha", PLANNED, PROBED)
    assert found(sessions, running) == []
    with transaction(sessions) as session:
        measurements.finish(session, running, DONE)
    (row,) = found(sessions, running)
    assert (row["loaded_ratio"], row["working_ratio"]) == (1.1, 1.6)
    assert (row["working_bytes"], row["tokens"]) == (500, 4_000)
    assert (row["flops"], row["other_seconds"]) == (200 * 3e9, 5.0)


def test_a_peak_of_the_probe_stays_where_the_steps_took_less(sessions: Sessions, running: Job) -> None:
    with transaction(sessions) as session:
        measurements.add(session, running, "cpu", "EPYC", "sha", PLANNED, PROBED)
        measurements.finish(session, running, DONE.model_copy(update={"peak_bytes": 1_500}))
    (row,) = found(sessions, running)
    assert row["working_ratio"] == 1.2


def test_another_device_or_quantization_is_another_kind(sessions: Sessions, running: Job) -> None:
    with transaction(sessions) as session:
        measurements.add(session, running, "cpu", "EPYC", "sha", PLANNED, PROBED)
        measurements.add(session, running, "cpu", "EPYC", "sha", PLANNED, PROBED)  # twice is once
        measurements.finish(session, running, DONE)
        other = QuantizationSpec(type="fp4")
        assert measurements.similar(session, "EPYC", 1, "sha", other, "supervised") == []
    assert found(sessions, running, device="Xeon") == found(sessions, running, gpus=2) == []
    assert len(found(sessions, running)) == 1


def test_a_run_in_another_mode_than_planned_is_not_used(sessions: Sessions, running: Job) -> None:
    repaired = ExecutionPlan(row_tokens=1024, recompute="everything")
    done = DONE.model_copy(update={"mode": repaired})
    with transaction(sessions) as session:
        measurements.add(session, running, "cpu", "EPYC", "sha", PLANNED, PROBED)
        measurements.finish(session, running, done)
    assert found(sessions, running) == []


def test_attempts_that_the_kernel_killed_for_memory_are_counted(sessions: Sessions, running: Job) -> None:
    with transaction(sessions) as session:
        assert measurements.count_memory_kills(session, running.id) == 0
        claims.finish_held_attempt(session, lease_of(running), Reason.KILLED_FOR_MEMORY, "killed", "warn")
        assert measurements.count_memory_kills(session, running.id) == 1


def test_a_row_without_speed_columns_is_used_for_memory_only(sessions: Sessions, running: Job) -> None:
    with transaction(sessions) as session:
        measurements.add(session, running, "cpu", "EPYC", "sha", PLANNED, PROBED)
        measurements.finish(session, running, DONE)
        row = session.get_one(MeasurementRow, (running.id, running.attempt))
        row.step_flop = row.probe_seconds = row.validation_seconds = None
    (old,) = found(sessions, running)
    assert (old["working_ratio"], old["flops"], old["other_seconds"]) == (1.6, None, None)
