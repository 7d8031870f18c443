"""What a trainer is told of the base model and of its machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.db.engine import transaction
from app.domain.catalog import stat_signature
from app.domain.spec import LINE_RULES, JobSpec, QuantizationSpec, TrainerSpec
from tests.worker.bench import Bench
from worker.prepare import CannotStart, check_base, load_inputs, trainer_spec


def spec_of(bench: Bench, body: dict[str, Any] | None = None) -> TrainerSpec:
    job = bench.queued(body=body)
    with transaction(bench.sessions) as session:
        inputs = load_inputs(session, job)
    settings = bench.resources.settings
    return trainer_spec(settings, job, inputs, check_base(inputs.base), Path("training.jsonl"), None, None)


def test_the_spec_says_which_files_were_hashed_so_that_nobody_hashes_them_twice(bench: Bench) -> None:
    spec = spec_of(bench)
    assert spec.base.signature == stat_signature(spec.base.directory)
    assert TrainerSpec.model_validate_json(spec.model_dump_json()) == spec


def test_files_that_are_not_those_of_the_registration_have_no_signature_to_trust(bench: Bench) -> None:
    weights = spec_of(bench).base.directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    with pytest.raises(CannotStart, match="altered since it was registered"):
        spec_of(bench)


def test_the_slots_number_of_gpus_is_the_number_of_processes(bench: Bench) -> None:
    assert spec_of(bench).world_size == 1
    bench.resources.settings.gpus_per_job = 4
    assert spec_of(bench).world_size == 4


def test_a_trainer_reads_lines_by_the_rules_of_its_job(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert spec_of(bench).runs[0].line_rules == LINE_RULES == 2
    monkeypatch.setattr("app.domain.resolve.LINE_RULES", 1)
    assert spec_of(bench).runs[0].line_rules == 1


def test_a_stored_job_that_names_no_rules_has_the_first(bench: Bench) -> None:
    stored = bench.created().spec
    assert JobSpec.model_validate(stored).line_rules == 2
    assert JobSpec.model_validate({key: value for key, value in stored.items() if key != "line_rules"}).line_rules == 1


def test_a_trainer_knows_whether_somebody_asked_for_the_numbers_it_computes_in(bench: Bench) -> None:
    assert spec_of(bench).dtype_is_free
    asked = spec_of(bench, {"quantization": {"compute_dtype": "bfloat16"}})
    assert (asked.dtype_is_free, asked.quantization) == (False, QuantizationSpec())
