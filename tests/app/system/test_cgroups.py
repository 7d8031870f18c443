from __future__ import annotations

from pathlib import Path

import pytest

from app.system import cgroups
from app.system.cgroups import control_groups, read_integer


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What /proc/self/cgroup is taken to be."""
    monkeypatch.setattr(cgroups, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(cgroups, "OWN_GROUP_FILE", tmp_path / "own")
    return tmp_path / "own"


@pytest.mark.parametrize(
    ("lines", "groups"),
    [
        ("0::/\n", [""]),
        ("0::/system.slice/tunery.service\n", ["system.slice/tunery.service", "system.slice", ""]),
        ("4:memory:/old\n0::/new\n", ["new", ""]),
        ("0::/../sibling\n", [""]),
        ("4:memory:/old\n", [""]),
    ],
)
def test_a_process_is_in_its_own_group_and_all_above(own: Path, lines: str, groups: list[str]) -> None:
    own.write_text(lines)
    assert control_groups() == [cgroups.ROOT / group for group in groups]


def test_without_control_groups_there_are_none(own: Path) -> None:
    assert control_groups() == []


@pytest.mark.parametrize(("content", "limit"), [("4096\n", 4096), ("max\n", None), (None, None)])
def test_a_limit_is_a_number_or_none(tmp_path: Path, content: str | None, limit: int | None) -> None:
    if content is not None:
        (tmp_path / "memory.max").write_text(content)
    assert read_integer(tmp_path, "memory.max") == limit
