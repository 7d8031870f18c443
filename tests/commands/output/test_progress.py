from __future__ import annotations

import io
from typing import Any
from unittest.mock import patch

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.text import Text

from app.cli.output.console import print_note
from app.cli.output.progress import JobBar, JobLines, Losses, bytes_bar, curve, job_view, numbers_text, status_text

RUNNING: dict[str, Any] = {
    "id": "ftjob-1",
    "status": "running",
    "phase": "training",
    "progress": {"step": 12, "total_steps": 80, "epoch": 0.4, "tokens_per_second": 1512.4, "eta_seconds": 80.2},
}


def metrics(**data: float) -> dict[str, Any]:
    return {"type": "metrics", "level": "info", "message": "Step", "data": data}


def message(text: str, level: str = "info") -> dict[str, Any]:
    return {"type": "message", "level": level, "message": text, "data": {}}


class TestText:
    def test_numbers_are_step_epoch_losses_speed_and_time_left(self) -> None:
        parts = numbers_text(RUNNING, Losses(2.31, 2.4)).split(" · ")
        assert parts == ["step 12/80", "epoch 0.4", "loss 2.310", "validation 2.400", "1,512 tok/s", "1:20 left"]

    def test_what_is_not_known_yet_is_left_out(self) -> None:
        assert numbers_text({"status": "running"}, Losses()) == ""
        progress = {"step": 0, "total_steps": 5, "tokens_per_second": None}
        assert numbers_text({"status": "running", "progress": progress}, Losses()) == "step 0/5"

    @pytest.mark.parametrize("status", ["cancelled", "paused", "failed"])
    def test_the_remaining_time_is_shown_only_while_the_job_runs(self, status: str) -> None:
        assert numbers_text({**RUNNING, "status": status}, Losses()).split(" · ")[-1] == "1,512 tok/s"

    @pytest.mark.parametrize(
        ("job", "text"),
        [
            ({"status": "validating_files"}, "validating files"),
            ({"status": "queued", "queue_position": 3}, "queued (position 3)"),
            (
                {"status": "queued", "phase": "waiting_for_storage", "queue_position": 1},
                "queued (waiting for free disk space)",
            ),
            ({"status": "running", "phase": "loading"}, "running: loading"),
            (
                {"status": "running", "phase": "training", "pause_requested": True},
                "running (pauses at its next step)",
            ),
            ({"status": "succeeded", "phase": "publishing"}, "succeeded"),
        ],
    )
    def test_a_status_is_in_words(self, job: dict[str, Any], text: str) -> None:
        assert status_text(job) == text


class TestLosses:
    def test_a_validation_loss_stays_until_the_next(self) -> None:
        losses = Losses()
        losses.update(metrics(train_loss=2.0, full_valid_loss=0.0))
        losses.update(metrics(train_loss=1.5))
        assert losses == Losses(1.5, 0.0)


class TestJobBar:
    def test_messages_scroll_above_and_numbers_stand_in_the_bar(self) -> None:
        shown = io.StringIO()
        console = Console(file=shown, force_terminal=True, width=160)
        with Progress(TextColumn("{task.description} {task.fields[numbers]}"), console=console) as bar:
            view = JobBar(bar)
            view.event(message("a [warning]", "warn"))
            view.event(metrics(train_loss=2.31))
            view.job(RUNNING)
        assert "a [warning]" in shown.getvalue()
        assert f"running: training {numbers_text(RUNNING, Losses(2.31))}" in shown.getvalue()

    def test_it_is_one_line_with_a_curve_at_80_columns(self) -> None:
        shown = io.StringIO()
        console = Console(file=shown, force_terminal=True, width=80)
        with patch("app.cli.output.progress.Console", return_value=console), job_view(as_json=False) as view:
            for loss in (8.0, 4.0, 2.0, 1.0):
                view.event(metrics(train_loss=loss, full_valid_loss=1.5))
            view.job(RUNNING)
        last = Text.from_ansi(shown.getvalue()).plain.strip().splitlines()[-1]
        assert len(last) <= 80
        assert [
            part for part in ("running: training", "█▄▂▁", "step 12/80", "loss 1.000", "1:20 left") if part not in last
        ] == []


def test_a_curve_has_the_means_of_consecutive_values() -> None:
    assert curve([8, 8, 1, 1, 4.5, 4.5], 3) == "█▁▅"
    assert curve([1.0, 1.0, float("nan")], 8) == "▁▁"
    assert (curve([1.0], 8), curve([], 8)) == ("", "")


class TestJobLines:
    def test_numbers_come_at_most_every_ten_seconds(self, capsys: pytest.CaptureFixture[str]) -> None:
        view = JobLines()
        view.event(message("Job started"))
        for _ in range(5):
            view.event(metrics(train_loss=2.31))
            view.job(RUNNING)
        lines = capsys.readouterr().out.strip().split("\n")
        assert lines == ["Job started", f"running: training: {numbers_text(RUNNING, Losses(2.31))}"]

    def test_the_final_status_is_printed_although_the_numbers_are_equal(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        view = JobLines()
        view.job(RUNNING)
        view.job({**RUNNING, "status": "failed"})
        assert capsys.readouterr().out.strip().split("\n")[-1].startswith("failed: step")


def test_a_name_with_brackets_and_colons_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    name = "ft:base:acme:x:1 [/b]a[red].jsonl"
    print_note(name)
    assert capsys.readouterr().err == f"{name}\n"
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with patch("app.cli.output.progress.stderr_console", return_value=console), bytes_bar(f"uploading {name}", 10):
        pass
    assert f"uploading {name}" in console.file.getvalue()  # type: ignore[attr-defined]
