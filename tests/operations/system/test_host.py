"""The CPU and the control groups of this machine."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from app.system import host
from app.system.host import control_groups, core_flops, cpu_flags, cpu_name, multiplies_fast, read_integer, usable_cores

AMD = {"vendor_id": "AuthenticAMD", "cpu family": "26", "model name": "AMD EPYC"}
INTEL = {"vendor_id": "GenuineIntel", "cpu family": "6", "model name": "Intel(R) Xeon(R)"}


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(host, "CPUINFO", tmp_path / "cpuinfo")
    return tmp_path / "cpuinfo"


def say(path: Path, facts: dict[str, str], *flags: str) -> None:
    block = "".join(f"{name}\t: {value}\n" for name, value in (facts | {"flags": " ".join(flags)}).items())
    path.write_text(f"processor\t: 0\n{block}\nprocessor\t: 1\nmodel name\t: another\n\n")


class TestCoreFlops:
    def test_the_estimate_follows_the_instructions_for_bfloat16_and_how_wide_they_are(self, cpuinfo: Path) -> None:
        """Measured: 2e11 on the older EPYC with avx512_bf16, 5e11 on family 26."""
        for facts, flags, expected in (
            (AMD, ("avx2", "avx512f", "avx512_bf16"), 5e11),
            (AMD | {"cpu family": "25"}, ("avx2", "avx512f", "avx512_bf16"), 2e11),
            (INTEL, ("avx2", "avx512f", "avx512_bf16", "amx_bf16"), 5e11),
            (INTEL, ("avx2", "avx512f", "avx512_bf16"), 2e11),
            (INTEL, ("avx2", "avx512f"), 1e11),
        ):
            say(cpuinfo, facts, *flags)
            assert core_flops() == expected, (facts, flags)
        say(cpuinfo, {"Features": "asimd bf16"})
        assert core_flops() == 2e11  # unknown: a guess in the middle


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        (("amx_bf16",), {"bfloat16"}),
        (("avx512f", "avx512_bf16"), {"bfloat16"}),
        (("avx512_fp16",), {"float16"}),
        (("avx2", "avx512f"), set()),
        ((), set()),
    ],
)
def test_a_processor_multiplies_fast_in_float32_and_where_it_has_instructions(
    cpuinfo: Path, flags: tuple[str, ...], fast: set[str]
) -> None:
    say(cpuinfo, INTEL, *flags)
    assert {dtype for dtype in ("bfloat16", "float16", "float32") if multiplies_fast(dtype)} == fast | {"float32"}


def test_name_and_flags_are_those_of_the_first_processor(cpuinfo: Path) -> None:
    say(cpuinfo, AMD, "avx2", "avx512_bf16")
    assert (cpu_name(), cpu_flags()) == ("AMD EPYC", {"avx2", "avx512_bf16"})


def test_without_a_name_it_is_its_architecture(cpuinfo: Path) -> None:
    assert (cpu_name(), cpu_flags()) == (platform.machine(), frozenset())


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What /proc/self/cgroup is taken to be."""
    monkeypatch.setattr(host, "CGROUP_ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(host, "OWN_GROUP_FILE", tmp_path / "own")
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
    assert control_groups() == [host.CGROUP_ROOT / group for group in groups]


@pytest.mark.parametrize(("quota", "cores"), [("200000 100000", 2), ("50000 100000", 1), ("max 100000", 7)])
def test_the_smallest_quota_of_the_groups_limits_the_cores(
    own: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr(host.os, "sched_getaffinity", lambda _: set(range(7)))
    own.write_text("0::/a/b\n")
    (host.CGROUP_ROOT / "a" / "b").mkdir(parents=True)
    (host.CGROUP_ROOT / "cpu.max").write_text("600000 100000" if quota[0] != "m" else quota)
    (host.CGROUP_ROOT / "a" / "cpu.max").write_text(quota)
    assert usable_cores() == cores


def test_without_control_groups_there_are_none(own: Path) -> None:
    assert control_groups() == []


@pytest.mark.parametrize(("content", "limit"), [("4096\n", 4096), ("max\n", None), (None, None)])
def test_a_limit_is_a_number_or_none(tmp_path: Path, content: str | None, limit: int | None) -> None:
    if content is not None:
        (tmp_path / "memory.max").write_text(content)
    assert read_integer(tmp_path, "memory.max") == limit
