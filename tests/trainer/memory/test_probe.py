from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.domain.jobs.events import Planned, Probed
from app.domain.jobs.states import ExitCode
from tests.trainer.helpers import float32_spec, load_tiny_base, make_spec, prepare, run_trainer
from worker.trainer.distributed import parallel
from worker.trainer.memory.probe import probe
from worker.trainer.training import run as program
from worker.trainer.training.run import make_objective


def test_it_runs_the_largest_planned_batch_and_changes_nothing(
    tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = float32_spec(tiny, examples, dropout=0.2, n_epochs=1)
    code, log = run_trainer(spec, tmp_path / "probed")
    assert code == ExitCode.DONE
    (probed,), (planned,) = log.of(Probed), log.of(Planned)
    assert probed.row_tokens == planned.largest_row_tokens
    assert probed.peak_bytes >= probed.loaded_bytes * 0.9

    monkeypatch.setattr(program, "_probe", lambda *_: None)
    _, plain = run_trainer(spec, tmp_path / "plain")
    mine, theirs = log.adapter(), plain.adapter()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_process_without_an_example_of_the_largest_step_runs_nothing(
    tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_tiny_base(tiny)
    run = prepare(make_spec(tiny, examples, batch_size=1), base, tmp_path)
    objective = make_objective(base, run)
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    assert isinstance(probe(objective, run, 512), Probed)
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    assert probe(objective, run, 512) is None
