"""The control groups (v2) of this process. The limits of its own group and of all parents apply. See cgroups(7)."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN_GROUP_FILE = Path("/proc/self/cgroup")


def control_groups() -> list[Path]:
    """The process's own group and its parents; empty without cgroups v2. Containers usually see theirs as the root."""
    try:
        lines = OWN_GROUP_FILE.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    name = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    if name is None or ".." in name:  # the own group is outside of the mounted hierarchy
        return [ROOT]
    own = ROOT / name.lstrip("/")
    return [own, *(parent for parent in own.parents if parent.is_relative_to(ROOT))]


def read_integer(group: Path, name: str) -> int | None:
    """The number in a file of the group; None if there is no such file or if it contains "max"."""
    try:
        return int((group / name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
