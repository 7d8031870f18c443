from __future__ import annotations

from pathlib import Path

import pytest

from app.system.artifact_directory import MANIFEST, ManifestMismatch
from app.system.snapshot_directories import newest_valid, snapshot_directories, step_directories


def open_one(name: str) -> str:
    if name.startswith("bad"):
        raise ManifestMismatch(f"{name} is cut")
    if name == "away":
        raise OSError("the storage is away")
    return name.upper()


class TestNewestValid:
    def test_is_the_newest_that_opens_with_what_is_wrong_with_the_newer_ones(self) -> None:
        assert newest_valid(["bad4", "bad3", "good2", "good1"], open_one) == ("GOOD2", ["bad4 is cut", "bad3 is cut"])

    def test_may_be_none(self) -> None:
        assert newest_valid(["bad"], open_one) == (None, ["bad is cut"])
        assert newest_valid([], open_one) == (None, [])

    def test_an_error_that_is_no_verdict_is_raised(self) -> None:
        with pytest.raises(OSError, match="away"):
            newest_valid(["bad", "away", "good"], open_one)


class TestCandidates:
    def test_are_in_the_order_of_their_numbers(self, tmp_path: Path) -> None:
        for name in ("step-000009", "step-1000000", "step-000010", ".step-000011.staged"):
            (tmp_path / name).mkdir()
        assert [path.name for path in step_directories(tmp_path)] == ["step-000009", "step-000010", "step-1000000"]
        assert [path.name for path in snapshot_directories(tmp_path) or []] == [
            "step-1000000",
            "step-000010",
            "step-000009",
        ]

    def test_a_snapshot_is_none_of_several_even_without_its_manifest(self, tmp_path: Path) -> None:
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / MANIFEST).touch()
        assert snapshot_directories(tmp_path / "one") is None
        assert snapshot_directories(tmp_path / "step-000003") is None

    def test_a_directory_that_is_not_there_yet_has_none(self, tmp_path: Path) -> None:
        assert snapshot_directories(tmp_path / "snapshots") == []
