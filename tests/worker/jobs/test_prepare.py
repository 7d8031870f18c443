"""The trainer's spec: base model, machine, line rules, patterns."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from app.db.engine import transaction
from app.db.tables import BaseModelRow, Job
from app.domain.base_models.catalog import CatalogEntry
from app.domain.datasets.template_arguments import ChatTemplateArguments
from app.domain.jobs.spec import LINE_RULES, JobSpec, QuantizationSpec, TrainerSpec
from app.system.host import boottime_seconds
from app.system.model_files import stat_signature
from tests.worker.fake_trainer import TrainerPlan
from tests.worker.worker_harness import WorkerHarness
from worker.jobs.base_and_adapter import verify_base
from worker.jobs.lease import JobAttempt
from worker.jobs.prepare import failure_outcome, load_inputs, trainer_spec
from worker.validation import Validator


def spec_of(harness: WorkerHarness, body: dict[str, Any] | None = None) -> TrainerSpec:
    job = harness.create_queued_job(body=body)
    with transaction(harness.sessions) as session:
        inputs = load_inputs(session, job)
    settings = harness.resources.settings
    return trainer_spec(settings, job, inputs, verify_base(inputs.base), Path("training.jsonl"), None, None)


def test_the_spec_has_the_signature_of_the_hashed_files(harness: WorkerHarness) -> None:
    spec = spec_of(harness)
    assert spec.base.signature == stat_signature(spec.base.directory)
    assert TrainerSpec.model_validate_json(spec.model_dump_json()) == spec


def test_a_trainer_reads_lines_by_the_rules_of_its_job(harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    assert spec_of(harness).run.line_rules == LINE_RULES == 2
    monkeypatch.setattr("app.domain.jobs.resolve.LINE_RULES", 1)
    assert spec_of(harness).run.line_rules == 1


def test_a_stored_job_without_line_rules_has_version_1(harness: WorkerHarness) -> None:
    stored = harness.create_job().spec
    assert JobSpec.model_validate(stored).line_rules == 2
    assert JobSpec.model_validate({key: value for key, value in stored.items() if key != "line_rules"}).line_rules == 1


def test_the_spec_has_the_gpus_of_the_slot_and_the_dtype_and_method_of_the_request(harness: WorkerHarness) -> None:
    supervised = spec_of(harness)
    assert (supervised.world_size, supervised.dtype_is_free) == (1, True)
    assert (supervised.run.method, supervised.run.hyperparameters.beta) == ("supervised", None)
    harness.resources.settings.gpus_per_job = 4
    method = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.3}}}
    arguments = ChatTemplateArguments(enable_thinking=False)
    body = {"method": method, "quantization": {"compute_dtype": "bfloat16"}}
    dpo = spec_of(harness, body | {"chat_template_kwargs": arguments.model_dump()})
    assert (supervised.run.chat_template_kwargs, dpo.run.chat_template_kwargs) == (None, arguments)
    assert "chat_template_kwargs" not in supervised.model_dump_json()  # which an earlier release would refuse
    assert (dpo.world_size, dpo.dtype_is_free, dpo.quantization) == (4, False, QuantizationSpec())
    assert (dpo.run.method, dpo.run.hyperparameters.beta) == ("dpo", 0.3)


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), OSError("gone")], ids=["bug", "storage"])
def test_the_log_has_the_details_of_an_error(harness: WorkerHarness, error: Exception) -> None:
    harness.create_queued_job()
    attempt = JobAttempt(harness.resources, harness.claim(), boottime_seconds())
    with capture_logs() as lines:
        failure_outcome(attempt, error)
    assert [line["exc_info"] for line in lines] == [error]


MATCHED = {
    "rank_pattern": {r"model\.layers\.1\.self_attn\.q_proj": 2},
    "alpha_pattern": {rf"model\.layers\.{number}\.self_attn\.v_proj": 3 for number in (0, 1)},
}
PATTERNS = {"rank_pattern": {r"layers\.1\..*q_proj": 2}, "alpha_pattern": {"v_proj": 3}}


def stored(harness: WorkerHarness, job: Job, **lora: Any) -> Job:
    """Store the job as an older version did, which did not match patterns at creation."""
    with transaction(harness.sessions) as session:
        session.execute(
            text("SET LOCAL session_replication_role = replica")
        )  # otherwise a trigger refuses a changed spec
        row = session.get_one(Job, job.id)
        row.spec = {key: value for key, value in row.spec.items() if key != "layer_patterns"}
        row.spec = row.spec | {"lora": row.spec["lora"] | lora}
        return row


def trained_lora(harness: WorkerHarness, job: Job) -> Any:
    with transaction(harness.sessions) as session:
        inputs = load_inputs(session, job)
    spec = trainer_spec(
        harness.resources.settings, job, inputs, verify_base(inputs.base), Path("training.jsonl"), None, None
    )
    return spec.run.lora


class TestPatterns:
    def test_patterns_are_resolved_to_layers_in_the_spec_and_kept_in_the_job(self, harness: WorkerHarness) -> None:
        job = harness.create_queued_job(body={"lora": PATTERNS})
        assert job.spec["lora"] | PATTERNS == job.spec["lora"]
        assert job.spec["layer_patterns"] == MATCHED
        lora = trained_lora(harness, job).model_dump()
        assert lora | MATCHED == lora

    def test_patterns_are_matched_with_the_files_if_the_catalog_entry_has_no_layers(
        self, harness: WorkerHarness
    ) -> None:
        with transaction(harness.sessions) as session:
            (row,) = session.query(BaseModelRow)
            row.entry = CatalogEntry.model_validate(row.entry).model_copy(update={"layers": {}}).model_dump(mode="json")
        job = harness.create_queued_job(body={"lora": PATTERNS})
        assert job.spec["layer_patterns"] is None
        lora = trained_lora(harness, job).model_dump()
        assert lora | MATCHED == lora

    @pytest.mark.parametrize(
        ("key", "why"), [(r"(q)_proj\1", "RE2"), (r"(\w|.|[^!])" * 20 + "!", "fits no target module")]
    )
    def test_patterns_of_an_older_job_that_match_nothing_fail_it(
        self, harness: WorkerHarness, key: str, why: str
    ) -> None:
        job = stored(harness, harness.create_queued_job(), rank_pattern={key: 2})
        assert harness.run_next_job(TrainerPlan())
        job = harness.job(job)
        assert (job.state, job.error_param) == ("failed", "lora.rank_pattern")
        assert why in str(job.error_message)
        assert re.match(r'lora\.rank_pattern: "', str(job.error_message))

    def test_patterns_of_an_older_job_do_not_block_its_validation(self, harness: WorkerHarness) -> None:
        for patterns in (PATTERNS, {"rank_pattern": {r"(q)\1": 2}}):
            job = stored(harness, harness.create_job(), **patterns)
            assert Validator(harness.resources, "cpu0@test#1").run_next()
            assert harness.job(job).state == "queued"
