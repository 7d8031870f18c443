from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from app.domain.catalog import hash_directory
from app.domain.events import Command, Done, Metric, Record
from app.domain.states import ExitCode
from tests.worker.trainer.house import FLOAT32, Log, make_spec, run_here
from worker.trainer import facts, loop
from worker.trainer.run import run
from worker.trainer.state import Run, Step
from worker.trainer.stop import Stops


class TestSeveralRuns:
    def specs(self, tiny: Path, examples: Path, **second: Any) -> Any:
        one = make_spec(tiny, examples, run_id="one", seed=1).runs[0]
        two = make_spec(tiny, examples, run_id="two", seed=2, n_epochs=3, **second).runs[0]
        return make_spec(tiny, examples, runs=[one, two])

    def kinds(self, log: Log, run_id: str) -> list[str]:
        return [record.kind for record in log.records if record.run_id == run_id]

    def test_each_has_its_records_its_directory_and_its_end(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        code, log = run_here(self.specs(tiny, examples), tmp_path)
        assert code == 0
        assert {done.run_id: done.step for done in log.of(Done)} == {"one": 6, "two": 9}
        assert self.kinds(log, "one").count("metric") == 6
        assert (tmp_path / "runs" / "two" / "checkpoints" / "step-000009").is_dir()

    def test_one_that_cannot_start_does_not_keep_the_other_from_it(
        self, tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        code, log = run_here(self.specs(tiny, examples, r=64), tmp_path)
        assert code == ExitCode.BAD_SPEC
        assert self.kinds(log, "two") == ["failed"]
        assert self.kinds(log, "one")[-1] == "done"

    def test_one_that_cannot_go_on_hears_nothing_of_the_processor(
        self, tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its last record is its last."""
        monkeypatch.setattr(facts, "times_float32", lambda *_: 3.0)
        (tmp_path / "step-000002").mkdir()
        code, log = run_here(self.specs(tiny, examples, resume_from=tmp_path / "step-000002"), tmp_path)
        assert code == ExitCode.INTERNAL
        assert self.kinds(log, "two") == ["failed"]
        assert self.kinds(log, "one")[-1] == "done"

    def test_one_that_is_cancelled_leaves_the_other_alone(self, tiny: Path, examples: Path, tmp_path: Path) -> None:
        alone = make_spec(tiny, examples, run_id="one", seed=1, quantization=FLOAT32)
        spec = self.specs(tiny, examples).model_copy(update={"quantization": FLOAT32})
        assert spec.base.manifest_sha256 == hash_directory(tiny)[1]
        stops = Stops(["one", "two"])
        stops.ask("two", Command.CANCEL)
        log = Log()
        assert run(spec, tmp_path, log, stops) == ExitCode.CANCELLED
        _, solo = run_here(alone, tmp_path / "alone")
        assert [m.train_loss for m in log.of(Metric)] == pytest.approx(solo.losses, rel=1e-5)

    def test_one_that_has_ended_leaves_its_moments_to_the_other(
        self, tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: dict[str, Run] = {}
        moments: list[tuple[int, int]] = []  # of run one, after each step of run two
        step = loop.optimizer_step

        def watched(base: Any, runs: Sequence[Run], *arguments: Any, **more: Any) -> list[Step]:
            seen.update({run.id: run for run in runs})
            return step(base, runs, *arguments, **more)

        def look(record: Record) -> None:
            if isinstance(record, Metric) and record.run_id == "two":
                moments.append((record.step, len(seen["one"].optimizer.state)))

        monkeypatch.setattr(loop, "optimizer_step", watched)
        assert run(self.specs(tiny, examples), tmp_path, Log(look), Stops(["one", "two"])) == 0
        trained = len(seen["one"].parameters)
        assert moments == [(step, trained if step <= 6 else 0) for step in range(1, 10)]
