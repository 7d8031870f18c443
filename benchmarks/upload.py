"""Uploads and downloads against plain scripts on the same machine: `make bench-upload`.

Eight clients upload 256 MB each at once; beside it the same bytes, written, hashed and flushed by a plain script with
eight threads, and the polling of a job with and without uploads. Then 1 GB is downloaded by curl, from Tunery and from
a plain static file server. What counts is the ratios: both sides of each were taken in one run, in turns.

On a machine with other work the script's eight threads get a larger share of the cores than one event loop does; the
CPU seconds, without those of polling, tell more then.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import http.server
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from app.settings import Settings
from app.system.host import cpu_name
from benchmarks.download import bench_downloads
from benchmarks.senders import Blocks, Json, same, send_content, send_multipart, send_parts
from benchmarks.served import BLOCK, HOST, Service, listed, serving

LINE = b'{"messages": [{"role": "user", "content": "%s"}, {"role": "assistant", "content": "%s"}]}\n'
POLLERS, POLLS_A_SECOND = 16, 10
MAX_FORM_BYTES = Settings.model_fields["max_file_bytes"].default


@dataclass(frozen=True)
class Taken:
    seconds: float
    cpu_seconds: float  # of the API and its children, polling taken off
    p99_ms: float  # of polls meanwhile
    extra_mb: float  # of memory, at the most


def main() -> None:
    options = parse()
    print(f"{cpu_name()}, {os.cpu_count()} logical CPUs, load {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="tunery-bench-", dir=options.dir) as name, ExitStack() as stack:
        directory = Path(name)
        service = stack.enter_context(serving(directory, options.artifact_mb << 20))
        if not options.only_download:
            bench_uploads(options, directory, service)
        if not options.only_upload:
            bench_downloads(options, directory, service)
    print(f"load {os.getloadavg()[0]:.1f} at the end")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-upload", description=__doc__)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--mb", type=int, default=256, help="size of each")
    parser.add_argument("--artifact-mb", type=int, default=1024)
    parser.add_argument("--ways", default="multipart,parts,content", help="how the files go up")
    parser.add_argument("--purpose", default="batch", choices=["batch", "fine-tune"], help="fine-tune: JSONL, checked")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nginx", default=shutil.which("nginx"), help="else Python's http.server is the other side")
    parser.add_argument("--dir", default=None, help="where the data goes; the disk is part of what is measured")
    parser.add_argument("--only-upload", action="store_true")
    parser.add_argument("--only-download", action="store_true")
    return parser.parse_args()


def bench_uploads(options: argparse.Namespace, directory: Path, service: Service) -> None:
    block = BLOCK if options.purpose == "batch" else json_block()
    total_mb = options.files * options.mb
    ways: dict[str, Callable[[Service, str, Blocks, int], Json]] = {
        "multipart": send_multipart, "parts": send_parts, "content": send_content,
    }  # fmt: skip
    quiet, polling_load = polling_alone(service, seconds=6)
    print(
        f"{options.files} files of {options.mb} MB at once, purpose {options.purpose}; "
        f"polling alone: p99 {quiet:.0f} ms"
    )
    plain: list[float] = []
    plain_cpu: list[float] = []
    taken: dict[str, list[Taken]] = {}
    chosen = options.ways.split(",")
    if options.mb << 20 > MAX_FORM_BYTES and "multipart" in chosen:
        print("multipart is left out: one request takes 512 MB")
        chosen.remove("multipart")
    for _ in range(options.rounds):
        busy = time.process_time()
        plain.append(total_mb / plain_script(directory, options.files, options.mb, block))
        plain_cpu.append(total_mb / (time.process_time() - busy))
        for way in chosen:
            taken.setdefault(way, []).append(upload_all(service, options, ways[way], block, polling_load))
    script, script_cpu = statistics.median(plain), statistics.median(plain_cpu)
    print(f"{'plain script':12} {script:5.0f} MB/s ({listed(plain)}), {script_cpu:.0f} MB per CPU second")
    for way, runs in taken.items():
        rates = [total_mb / each.seconds for each in runs]
        ratio = statistics.median(rate / base for rate, base in zip(rates, plain, strict=True))
        cpu = statistics.median(total_mb / each.cpu_seconds for each in runs)
        p99 = statistics.median(each.p99_ms for each in runs)
        print(
            f"{way:12} {statistics.median(rates):5.0f} MB/s ({listed(rates)}), {cpu:.0f} MB per CPU second: "
            f"{ratio:.2f} and {cpu / script_cpu:.2f} of the script; {max(each.extra_mb for each in runs):.0f} MB more "
            f"memory; polling p99 {p99:.0f} ms, {p99 / quiet:.1f} times alone",
            flush=True,
        )


def json_block() -> bytes:
    """A megabyte, exactly, of chat examples of some hundred bytes."""
    line = LINE % (b"How do I reset the password of my account? " * 4, b"Open settings and choose security. " * 8)
    lines = line * ((1 << 20) // len(line))
    return lines + b" " * ((1 << 20) - len(lines) - 1) + b"\n"


def plain_script(directory: Path, count: int, megabytes: int, block: bytes) -> float:
    """Seconds to write, hash and flush this many files from memory, with one thread per file."""

    def write(number: int) -> None:
        digest = hashlib.sha256()
        path = directory / f"plain-{number}"
        with path.open("wb", buffering=0) as file:
            for _ in range(megabytes):
                digest.update(block)
                file.write(block)
            os.fsync(file.fileno())

    began = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(write, range(count)))
    seconds = time.perf_counter() - began
    for path in directory.glob("plain-*"):
        path.unlink()
    return seconds


def upload_all(
    service: Service, options: argparse.Namespace, send: Callable[..., Json], block: bytes, polling_load: float
) -> Taken:
    before, busy = memory_bytes(service.process), cpu_seconds(service.process)
    with watching(service.process) as peak, polling(service) as latencies, ThreadPoolExecutor(options.files) as pool:
        began = time.perf_counter()
        list(pool.map(lambda _: send(service, options.purpose, same(block), options.mb), range(options.files)))
        seconds = time.perf_counter() - began
    busy = cpu_seconds(service.process) - busy - polling_load * seconds
    return Taken(seconds, busy, percentile(latencies), (peak[0] - before) / 1e6)


def polling_alone(service: Service, seconds: float) -> tuple[float, float]:
    """The p99 of polls in ms, and their CPU seconds per second."""
    busy = cpu_seconds(service.process)
    with polling(service) as latencies:
        time.sleep(seconds)
    return percentile(latencies), (cpu_seconds(service.process) - busy) / seconds


@contextmanager
def polling(service: Service) -> Iterator[list[float]]:
    latencies: list[float] = []
    over = threading.Event()
    pollers = [threading.Thread(target=poll, args=(service, latencies, over)) for _ in range(POLLERS)]
    for poller in pollers:
        poller.start()
    try:
        yield latencies
    finally:
        over.set()
        for poller in pollers:
            poller.join()


def poll(service: Service, latencies: list[float], over: threading.Event) -> None:
    connection = http.client.HTTPConnection(HOST, service.port, timeout=60)
    while not over.wait(1 / POLLS_A_SECOND):
        began = time.perf_counter()
        connection.request("GET", f"/v1/fine_tuning/jobs/{service.job_id}", headers=service.headers)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
        latencies.append(1000 * (time.perf_counter() - began))
    connection.close()


@contextmanager
def watching(process: psutil.Process) -> Iterator[list[int]]:
    """Track the peak memory while the block runs, as the single item of a list."""
    peak = [memory_bytes(process)]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            peak[0] = max(peak[0], memory_bytes(process))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


def memory_bytes(process: psutil.Process) -> int:
    """Resident anonymous memory of the API and its children."""
    total = 0
    for each in (process, *process.children(recursive=True)):
        try:
            info = each.memory_info()
            total += info.rss - info.shared
        except psutil.NoSuchProcess:
            continue
    return total


def cpu_seconds(process: psutil.Process) -> float:
    """CPU seconds of the API and its ended children."""
    times = process.cpu_times()
    return times.user + times.system + times.children_user + times.children_system


def percentile(latencies: list[float]) -> float:
    return sorted(latencies)[int(len(latencies) * 0.99)]


if __name__ == "__main__":
    main()
