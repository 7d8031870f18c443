"""The health check of a process, as an operator gives it by hand."""

from __future__ import annotations

import os
import time

import pytest

from app.settings import Settings
from worker import health


def test_the_health_check_needs_only_the_data_directory_and_names_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TUNERY_DATA_DIR", str(settings.data_dir))
    assert health.main(["reconciler"]) == 1
    assert str(settings.data_dir.resolve()) in capsys.readouterr().err
    health.write_heartbeat(settings, "reconciler")
    assert health.main(["reconciler"]) == 0
    [path] = (settings.data_dir / "run").iterdir()
    too_early = time.monotonic() - 61
    os.utime(path, (too_early, too_early))
    assert health.main(["reconciler"]) == 1


@pytest.mark.parametrize("step_seconds", [3600.0, -3600.0])
def test_a_heartbeat_has_its_true_age_after_a_step_of_the_host_s_clock(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, step_seconds: float
) -> None:
    health.write_heartbeat(settings, "gpu")
    real_time = time.time
    monkeypatch.setattr(time, "time", lambda: real_time() + step_seconds)
    age_seconds = health.heartbeat_age_seconds(settings, "gpu")
    assert age_seconds is not None
    assert 0 <= age_seconds < 60


def test_a_heartbeat_of_an_earlier_boot_is_none(settings: Settings) -> None:
    health.write_heartbeat(settings, "gpu")
    [path] = (settings.data_dir / "run").iterdir()
    later_than_now = time.monotonic() + 3600
    os.utime(path, (later_than_now, later_than_now))
    assert health.heartbeat_age_seconds(settings, "gpu") is None
