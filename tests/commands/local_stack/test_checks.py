"""Each finding says what was seen, and every finding that is not ok says what to do."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from app.cli.local_stack import checks
from app.cli.local_stack.checks import machine_checks, preflight
from app.cli.local_stack.data_directory import Layout
from app.cli.local_stack.processes import exclusive_lock
from app.domain.operations.checks import Check
from app.storage import StorageError
from app.storage.s3 import S3Storage
from tests.s3 import S3Server


@pytest.fixture(autouse=True)
def no_servers_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.delenv("REDIS_URL", raising=False)


def find(found: Iterable[Check], subject: str) -> Check:
    return next(one for one in found if one.name == subject)


def test_the_machine_is_checked_with_a_remedy_for_all_that_is_not_ok_and_nothing_is_created(place: Path) -> None:
    found = [*machine_checks(place / "data", port=0)]
    assert {"python", "torch", "disk", "memory", "cpu", "gpu", "data directory", "port 0"} <= {
        one.name for one in found
    }
    assert all(one.remedy for one in found if one.level != "ok")
    assert os.listdir(place) == []


def test_a_taken_port_is_a_problem(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = find(machine_checks(place / "data", port=port), f"port {port}")
    assert (found.level, "another --port" in found.remedy) == ("problem", True)


def test_a_start_in_progress_is_reported(place: Path) -> None:
    with exclusive_lock(place / "up.lock", ""):
        assert "is starting" in find(machine_checks(place), "tunery up").observed


def test_a_lost_admin_key_is_named_with_the_command_that_makes_another(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "http_get", lambda *_: (200, "{}"))
    (place / "runtime.json").write_text('{"base_url": "http://127.0.0.1:1"}')
    with exclusive_lock(place / "up.lock", ""):
        found = find(machine_checks(place), "service")
    assert (found.level, "keys create --database" in found.remedy) == ("advice", True)


def test_a_bucket_is_tried_and_its_problem_named(
    place: Path, rclone: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in rclone.environment.items():
        monkeypatch.setenv(name, value)
    layout, bucket = Layout(place / "data"), "TUNERY_STORAGE_URL"
    assert find(machine_checks(layout.root), bucket).level == "ok"
    assert {one.level for one in preflight(layout, "127.0.0.1")} == {"ok"}
    monkeypatch.setenv("TUNERY_STORAGE_SECRET_ACCESS_KEY", "another")
    found = find(machine_checks(layout.root), bucket), find(preflight(layout, "127.0.0.1"), bucket)
    assert [(one.level, "SignatureDoesNotMatch" in one.remedy) for one in found] == [("problem", True)] * 2
    monkeypatch.setenv(bucket, "tunery")
    assert find(machine_checks(layout.root), "settings").level == "problem"
    assert os.listdir(place) == []


@pytest.mark.parametrize("operation", ["delete_unfinished", "_abort"])
def test_a_bucket_whose_uploads_cannot_be_listed_or_aborted_is_a_problem(
    place: Path, rclone: S3Server, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    def refuse(*_: object) -> int:
        raise StorageError(errno.EACCES, "AccessDenied")

    for name, value in rclone.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(S3Storage, operation, refuse)
    found = find(machine_checks(place / "data"), "TUNERY_STORAGE_URL")
    assert (found.level, found.remedy) == ("problem", "AccessDenied")


def test_an_invalid_setting_is_a_problem_before_anything_is_created(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNERY_LEASE_TTL_SECONDS", "soon")
    found = find(preflight(Layout(place / "data"), "127.0.0.1"), "settings")
    assert (found.level, "TUNERY_LEASE_TTL_SECONDS" in found.remedy) == ("problem", True)
    assert os.listdir(place) == []


@pytest.mark.parametrize(("behind_proxy", "level"), [("false", "problem"), ("true", "ok")])
def test_an_address_of_the_network_needs_a_proxy(
    place: Path, monkeypatch: pytest.MonkeyPatch, behind_proxy: str, level: str
) -> None:
    monkeypatch.setenv("TUNERY_BEHIND_PROXY", behind_proxy)
    assert find(preflight(Layout(place / "data"), "0.0.0.0"), "host").level == level


def test_servers_that_are_down_are_problems_that_do_not_show_their_passwords(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:secret@127.0.0.1:1/x")
    monkeypatch.setenv("REDIS_URL", "redis://:secret@127.0.0.1:1/0")
    found = [*machine_checks(place / "data")]
    assert find(found, "DATABASE_URL").level == find(found, "REDIS_URL").level == "problem"
    assert not any("secret" in result.observed + result.remedy for result in found)


def test_servers_that_answer_are_ok(
    place: Path, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("REDIS_URL", redis_url)
    found = [*machine_checks(place / "data")]
    assert find(found, "DATABASE_URL") == Check("DATABASE_URL", "ok", "PostgreSQL 18")
    assert find(found, "REDIS_URL").level == "ok"


@pytest.mark.parametrize(
    ("driver", "status", "cuda", "level", "text"),
    [
        ("NVIDIA H100, 81559 MiB, 580.95", 0, "'13.0'", "ok", "H100"),
        ("NVIDIA H100, 81559 MiB, 570.10", 0, "'13.0'", "problem", "CUDA 13.0"),
        ("NVIDIA H100, 81559 MiB, 570.10", 0, "'12.8'", "ok", "H100"),
        ("NVIDIA H100, 81559 MiB, 580.95", 0, "None", "problem", "CPUs only"),
        ("Driver/library version mismatch", 18, "'13.0'", "problem", "nvidia-smi fails"),
    ],
)
def test_the_driver_of_the_gpu_is_checked_against_the_cuda_of_torch(
    place: Path, monkeypatch: pytest.MonkeyPatch, driver: str, status: int, cuda: str, level: str, text: str
) -> None:
    torch = place / "torch" / "__init__.py"
    torch.parent.mkdir()
    torch.with_name("version.py").write_text(f"from typing import Optional\ncuda: Optional[str] = {cuda}\n")
    torch.touch()
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.syspath_prepend(place)
    program = place / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{driver}'\nexit {status}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(place), prepend=os.pathsep)
    found = find(machine_checks(place / "data"), "gpu")
    assert (found.level, text in found.observed) == (level, True)
