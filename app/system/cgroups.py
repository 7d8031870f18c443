"""The control groups (v2) that this process is in, its own first: the limit of each of them holds. See cgroups(7)."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def control_groups() -> list[Path]:
    """Empty where there are none. A systemd unit is some levels down; a container mostly sees itself as the root."""
    try:
        lines = OWN.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    name = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    if name is None or ".." in name:  # ours lies outside of what is mounted here
        return [ROOT]
    own = ROOT / name.lstrip("/")
    return [own, *(parent for parent in own.parents if parent.is_relative_to(ROOT))]


def number(group: Path, name: str) -> int | None:
    """The number in one of its files. None where there is no such file, or in it the word "max"."""
    try:
        return int((group / name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
