from __future__ import annotations

from pathlib import Path

import pytest

from app.domain.jobs.snapshots import by_step, candidates, first_whole, going_on
from app.system.artifact_directory import MANIFEST, ManifestMismatch


def open_one(name: str) -> str:
    if name.startswith("bad"):
        raise ManifestMismatch(f"{name} is cut")
    if name == "away":
        raise OSError("the storage is away")
    return name.upper()


class TestFirstWhole:
    def test_is_the_newest_that_opens_with_what_is_wrong_with_the_newer_ones(self) -> None:
        assert first_whole(["bad4", "bad3", "good2", "good1"], open_one) == ("GOOD2", ["bad4 is cut", "bad3 is cut"])

    def test_may_be_none(self) -> None:
        assert first_whole(["bad"], open_one) == (None, ["bad is cut"])
        assert first_whole([], open_one) == (None, [])

    def test_an_error_that_is_no_verdict_is_raised(self) -> None:
        with pytest.raises(OSError, match="away"):
            first_whole(["bad", "away", "good"], open_one)


class TestCandidates:
    def test_are_in_the_order_of_their_numbers(self, tmp_path: Path) -> None:
        for name in ("step-000009", "step-1000000", "step-000010", ".step-000011.staged"):
            (tmp_path / name).mkdir()
        assert [path.name for path in by_step(tmp_path)] == ["step-000009", "step-000010", "step-1000000"]
        assert [path.name for path in candidates(tmp_path) or []] == ["step-1000000", "step-000010", "step-000009"]

    def test_a_snapshot_is_none_of_several_even_when_its_manifest_is_gone(self, tmp_path: Path) -> None:
        (tmp_path / "one").mkdir()
        (tmp_path / "one" / MANIFEST).touch()
        assert candidates(tmp_path / "one") is None
        assert candidates(tmp_path / "step-000003") is None

    def test_a_directory_that_is_not_there_yet_has_none(self, tmp_path: Path) -> None:
        assert candidates(tmp_path / "snapshots") == []


class TestGoingOn:
    def test_says_where_and_warns_of_what_was_passed_over(self) -> None:
        assert going_on(3, []) == ("info", "Going on from the snapshot of step 3")
        assert going_on(3, ["a", "b"]) == ("warn", "Going on from the snapshot of step 3; not usable: a; b")
        assert going_on(None, ["a"])[0] == "warn"
        assert going_on(None, [])[1] == "Starting again from step 0, as there is no snapshot to go on from"
