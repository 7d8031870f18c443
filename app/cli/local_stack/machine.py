"""This machine as `tunery up` uses it: its GPUs, ports, paths of sockets, and the account of PostgreSQL.

PostgreSQL rejects uid 0, so for root it runs as an existing unprivileged account: `nobody`. No account is created,
and no permission outside of the data directory is changed: a directory that the account cannot reach is an error
before anything is written. A socket outside of the data directory would not have its permissions, so a path that is
too long for one is an error. The GPUs are determined without torch, which the CLI never imports.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

NVIDIA_SMI_TIMEOUT_SECONDS = 20.0  # the first call takes several seconds
HTTP_TIMEOUT_SECONDS = 10.0
MAX_ANSWER_BYTES = 4 << 20
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
MAX_SOCKET_PATH_BYTES = 107 if os.uname().sysname == "Linux" else 103  # sun_path less its NUL
ACCOUNTS = ("nobody", "daemon")
SUGGESTIONS = (Path("/var/lib/tunery"), Path("/srv/tunery"), Path("/tmp/tunery"))


class CannotStart(Exception):
    """The message says what was seen, what is allowed and what to do."""


def gpus() -> list[str]:
    """Names of the NVIDIA GPUs; empty without a working driver."""
    return [line.split(",")[0] for line in (describe_gpus() or "").splitlines()]


def gpu_groups() -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each GPU worker, with TUNERY_GPUS_PER_JOB GPUs each; None for a worker without it.

    Each GPU has TUNERY_SLOTS_PER_GPU workers; several GPUs of one job have one.
    """
    devices, size = _training_devices(), _gpus_per_job()
    slots = max(1, int(os.environ.get("TUNERY_SLOTS_PER_GPU") or 1)) if devices and size == 1 else 1
    groups = len(devices) // size
    if groups < 2:
        return [None] * slots
    each = [",".join(devices[size * number : size * (number + 1)]) for number in range(groups)]
    return [group for group in each for _ in range(slots)]


def unused_gpus_text() -> str | None:
    """Which GPUs are left over when TUNERY_GPUS_PER_JOB does not divide their number; None if none are."""
    devices, size = _training_devices(), _gpus_per_job()
    unused = devices[len(devices) - len(devices) % size :]
    if not unused:
        return None
    return f"{', '.join(unused)} of {len(devices)} train no job, because TUNERY_GPUS_PER_JOB is {size}"


def _training_devices() -> list[str]:
    """The GPUs that workers may use, as CUDA_VISIBLE_DEVICES names them; empty without a GPU."""
    gpu_names = gpus() if os.environ.get("TUNERY_DEVICE", "auto") != "cpu" else []
    visible_devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not gpu_names or visible_devices is None:
        return [str(number) for number in range(len(gpu_names))]
    return [*filter(None, visible_devices.split(","))]


def _gpus_per_job() -> int:
    return max(1, int(os.environ.get("TUNERY_GPUS_PER_JOB") or 1))


def describe_gpus() -> str | None:
    """A line "NAME, MEMORY, DRIVER" for each GPU; None if nvidia-smi is not installed, empty if it fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_SECONDS)
        return done.stdout.strip() if done.returncode == 0 else ""
    return ""


def device_text() -> str:
    """The device that jobs run on, as text."""
    setting = os.environ.get("TUNERY_DEVICE", "auto")
    gpu_names = gpus() if setting != "cpu" else []
    if gpu_names:
        return gpu_names[0]
    reason = "no GPU found: " if setting != "cpu" else ""
    return f"the CPU ({reason}only suitable for tests)"


def free_port(host: str, port: int) -> int:
    """Check that a port is free and return it; 0 selects any. Raises CannotStart. Checked before anything starts."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except (OSError, OverflowError) as error:
        raise CannotStart(
            f"Cannot listen on {host} port {port}: {error}. Choose another --port (0 selects a free one) or --host."
        ) from None


def base_url(host: str, port: int) -> str:
    """The URL for clients on this machine."""
    reachable = ANY_ADDRESS.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def http_get(url: str, path: str, headers: Mapping[str, str] | None = None) -> tuple[int | None, str]:
    """(status, body) of a request without a proxy; (None, error text) if there is no response."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=HTTP_TIMEOUT_SECONDS)
    try:
        connection.request("GET", path, headers=dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read(MAX_ANSWER_BYTES).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return None, str(error) or type(error).__name__
    finally:
        connection.close()


def without_password(url: str) -> str:
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return url.replace(f":{parts.password}@", ":***@", 1)


def check_socket_length(socket: Path, directory: Path) -> None:
    excess = len(os.fsencode(socket)) - MAX_SOCKET_PATH_BYTES
    if excess > 0:
        raise CannotStart(
            f"The path {directory} is too long by {excess} bytes: it contains a Unix socket, whose path has at most "
            f"{MAX_SOCKET_PATH_BYTES} bytes. Choose a shorter --data-dir."
        )


def check_path_characters(directory: Path) -> None:
    separators = sorted(set(str(directory)) & set(",:"))
    if separators:
        raise CannotStart(
            f"The path {directory} contains {separators[0]!r}, which separates hosts in a PostgreSQL address. "
            "Choose a --data-dir without it."
        )


@dataclass(frozen=True)
class Account:
    name: str
    uid: int
    gid: int

    def reaches(self, directory: Path) -> bool:
        return self._shell('cd -- "$1"', directory)

    def executes(self, program: Path) -> bool:
        return self._shell('test -x "$1"', program)

    def _shell(self, test: str, path: Path) -> bool:
        """Run a test as this account. The kernel also considers ACLs and mount options, unlike a check of modes."""
        command = ["/bin/sh", "-c", test, "sh", str(path)]
        try:
            done = subprocess.run(
                command, user=self.uid, group=self.gid, extra_groups=[], cwd="/", stderr=subprocess.DEVNULL
            )
        except PermissionError as error:
            raise CannotStart(
                f"PostgreSQL does not run as root, and this root cannot switch to the account {self.name!r} ({error}). "
                "Start Tunery as a plain user, or set DATABASE_URL to a PostgreSQL of your own."
            ) from None
        return done.returncode == 0


def postgres_account() -> Account | None:
    """The unprivileged account for root; None for another user, who runs PostgreSQL directly."""
    if os.geteuid() != 0:
        return None
    for name in ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise CannotStart(
        f"PostgreSQL does not run as root, and this system has none of the accounts {', '.join(ACCOUNTS)}. "
        "Start Tunery as a plain user, or set DATABASE_URL to a PostgreSQL of your own."
    )


def local_postgres_account() -> Account | None:
    """The other account that the local PostgreSQL runs as; None if there is none, or with DATABASE_URL."""
    return None if os.environ.get("DATABASE_URL") else postgres_account()


def check_reachable(directory: Path, account: Account | None) -> None:
    """Raises CannotStart if the account cannot reach the directory, which need not exist yet. Changes nothing."""
    if account is None:
        return
    parent = _nearest_existing(directory.resolve().parent)
    if not account.reaches(parent):
        raise CannotStart(
            f"PostgreSQL does not run as root but as {account.name!r}, which cannot reach {directory}: "
            f"{_first_closed(parent, account)} is closed to it. Choose another --data-dir, such as "
            f"{suggest_data_dir(account)}, or start Tunery as a plain user."
        )


def suggest_data_dir(account: Account) -> Path:
    """A data directory that the account can reach, for error messages."""
    return next((one for one in SUGGESTIONS if account.reaches(_nearest_existing(one.parent))), SUGGESTIONS[-1])


def _nearest_existing(path: Path) -> Path:
    return next(one for one in (path, *path.parents) if one.is_dir())


def _first_closed(path: Path, account: Account) -> Path:
    return next(one for one in (*reversed(path.parents), path) if not account.reaches(one))
