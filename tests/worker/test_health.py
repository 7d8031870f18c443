"""The health check of a process, as an operator gives it by hand."""

from __future__ import annotations

import pytest

from app.settings import Settings
from worker import health


def test_it_needs_no_setting_but_the_data_directory_and_names_that(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TUNERY_DATA_DIR", str(settings.data_dir))
    assert health.main(["reconciler"]) == 1
    assert f"has no heartbeat in {settings.data_dir.resolve()} (TUNERY_DATA_DIR)" in capsys.readouterr().err
    health.write_heartbeat(settings, "reconciler")
    assert health.main(["reconciler"]) == 0
