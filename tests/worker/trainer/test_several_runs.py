from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from app.domain import artifacts
from app.domain.catalog import hash_directory
from app.domain.events import Command, Done, Message, Metric, Record, SnapshotSaved, Started
from app.domain.spec import RunSpec, TrainerSpec
from app.domain.states import ExitCode
from tests.worker.trainer.house import FLOAT32, Log, make_spec, run_here
from worker.trainer import facts, loop
from worker.trainer import run as program
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


class Killed(BaseException):
    """As good as SIGKILL within one process: nobody catches it, nothing is saved."""


class TestExactResume:
    """With dropout, a batch each and rows that are shared: bits depend on who shares them."""

    def spec(self, tiny: Path, examples: Path, interval_seconds: float = 0, **of_two: Any) -> TrainerSpec:
        def one_of(run_id: str, **knobs: Any) -> Any:
            resume_from = Path("runs") / run_id / "snapshots"
            return make_spec(tiny, examples, run_id=run_id, dropout=0.2, resume_from=resume_from, **knobs).runs[0]

        two = {"seed": 2, "n_epochs": 3, "batch_size": 3} | of_two
        runs = [one_of("one", seed=1), one_of("two", **two)]
        return make_spec(tiny, examples, runs=runs, snapshot_interval_seconds=interval_seconds)

    def results(self, log: Log, workdir: Path) -> dict[str, Any]:
        return {done.run_id: artifacts.verify(workdir / done.directory) for done in log.of(Done)}

    def killed(self, spec: TrainerSpec, workdir: Path, kind: type, run_id: str, step: int) -> Log:
        """While that run says that."""

        def kill(record: Record) -> None:
            if isinstance(record, kind) and (record.run_id, getattr(record, "step", None)) == (run_id, step):
                raise Killed

        log = Log(kill)
        with pytest.raises(Killed):
            run(spec, workdir, log, Stops(["one", "two"]))
        return log

    def starts(self, log: Log) -> dict[str, int]:
        return {started.run_id: started.start_step for started in log.of(Started)}

    def test_killed_between_their_snapshots_both_go_on_from_the_one_before(
        self, tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        spec = self.spec(tiny, examples)
        _, whole = run_here(spec, tmp_path / "whole")
        self.killed(spec, tmp_path / "killed", SnapshotSaved, "one", 3)
        _, log = run_here(spec, tmp_path / "killed")
        assert self.starts(log) == {"one": 2, "two": 2}
        assert [(each.run_id, each.message) for each in log.of(Message)] == [
            (
                "one",
                "Going on from the snapshot of step 2, not of step 3: two, which shares its rows, has none as late.",
            )
        ]
        assert self.results(log, tmp_path / "killed") == self.results(whole, tmp_path / "whole")

    def test_killed_after_one_has_ended_that_one_does_not_train_again(
        self, tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        spec = self.spec(tiny, examples)
        _, whole = run_here(spec, tmp_path / "whole")
        self.killed(spec, tmp_path / "killed", Metric, "two", 9)
        _, log = run_here(spec, tmp_path / "killed")
        assert self.starts(log) == {"one": 6, "two": 8}
        assert self.results(log, tmp_path / "killed") == self.results(whole, tmp_path / "whole")

    def test_killed_after_one_has_ended_in_the_others_last_step_they_make_it_together(
        self, tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        spec = self.spec(tiny, examples, n_epochs=2, batch_size=4)
        _, whole = run_here(spec, tmp_path / "whole")
        self.killed(spec, tmp_path / "killed", Done, "one", 6)
        _, log = run_here(spec, tmp_path / "killed")
        assert self.starts(log) == {"one": 5, "two": 5}
        assert self.results(log, tmp_path / "killed") == self.results(whole, tmp_path / "whole")

    def test_snapshots_are_due_for_all_at_once(
        self, tiny: Path, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One run was ready some seconds before the other, which must not give them snapshots of different steps."""
        runs: dict[str, Run] = {}
        prepare = program.prepare

        def remembered(spec: RunSpec, *arguments: Any) -> Run:
            runs[spec.run_id] = prepare(spec, *arguments)
            return runs[spec.run_id]

        def make_due(record: Record) -> None:
            if isinstance(record, Metric) and (record.run_id, record.step) == ("two", 3):
                runs["two"].snapshot_at -= 3600

        monkeypatch.setattr(program, "prepare", remembered)
        log = Log(make_due)
        assert run(self.spec(tiny, examples, interval_seconds=3600), tmp_path, log, Stops(["one", "two"])) == 0
        saved = [(each.run_id, each.step) for each in log.of(SnapshotSaved)]
        assert saved[:4] == [("one", 0), ("two", 0), ("one", 3), ("two", 3)]

    def test_where_one_cannot_go_back_to_the_other_both_hear_of_it(
        self, tiny: Path, examples: Path, tmp_path: Path
    ) -> None:
        spec = self.spec(tiny, examples)
        self.killed(spec, tmp_path, Metric, "two", 5)
        for snapshot in (tmp_path / "runs/two/snapshots").iterdir():
            (snapshot / "state.safetensors").unlink()
        code, log = run_here(spec, tmp_path)
        assert code == 0
        assert self.starts(log) == {"one": 4, "two": 0}
        warned = {each.run_id: each.message for each in log.of(Message) if "beside" in each.message}
        assert warned == {
            "one": "Going on beside two, which is not where it was then: equal within rounding, not to the bit.",
            "two": "Going on beside one, which is not where it was then: equal within rounding, not to the bit.",
        }
