"""Upload a file of many GB by every supported method, and download it: `python -m benchmarks.large --mb 6144`.

Every megabyte of it is another one. Printed are MB/s, how much memory the API had more than before at the most, and
whether the SHA-256 of what came down is that of what went up. The disk has to hold the file once for each way.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from app.system.host import cpu_name
from benchmarks.senders import MB, Blocks, Json, numbered, send_content, send_parts
from benchmarks.served import BLOCK, HOST, Service, serving
from benchmarks.upload import cpu_seconds, memory_bytes, watching

WAYS: dict[str, Callable[[Service, str, Blocks, int], Json]] = {"parts": send_parts, "content": send_content}


def main() -> None:
    options = parse()
    print(f"{cpu_name()}, {os.cpu_count()} logical CPUs, load {os.getloadavg()[0]:.1f}; {options.mb} MB", flush=True)
    blocks = numbered(BLOCK)
    expected = hashlib.sha256()
    for piece in blocks(0, options.mb):
        expected.update(piece)
    with tempfile.TemporaryDirectory(prefix="tunery-bench-", dir=options.dir) as name, ExitStack() as stack:
        service = stack.enter_context(serving(Path(name), MB))
        for way in options.ways.split(","):
            there_and_back(service, way, blocks, options.mb, expected.hexdigest())
    print(f"load {os.getloadavg()[0]:.1f} at the end")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large", description=__doc__)
    parser.add_argument("--mb", type=int, default=6144)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--dir", default=None, help="where the data goes")
    return parser.parse_args()


def there_and_back(service: Service, way: str, blocks: Blocks, megabytes: int, expected: str) -> None:
    before, busy = memory_bytes(service.process), cpu_seconds(service.process)
    with watching(service.process) as peak:
        began = time.perf_counter()
        file = WAYS[way](service, "batch", blocks, megabytes)
        up_seconds, busy = time.perf_counter() - began, cpu_seconds(service.process) - busy
        began = time.perf_counter()
        digest, size_bytes = download(service, file["id"])
        down_seconds = time.perf_counter() - began
    is_same = file["sha256"] == digest == expected and size_bytes == file["bytes"] == megabytes * MB
    up, down, per_cpu = megabytes / up_seconds, megabytes / down_seconds, megabytes / busy
    print(
        f"{way:8} up {up:.0f} MB/s, {per_cpu:.0f} MB per CPU second; down and hashed {down:.0f} MB/s; "
        f"{(peak[0] - before) / 1e6:.0f} MB more memory; {'the same' if is_same else 'NOT THE SAME'}: {digest}",
        flush=True,
    )


def download(service: Service, file_id: str) -> tuple[str, int]:
    connection = http.client.HTTPConnection(HOST, service.port, timeout=600)
    connection.request("GET", f"/v1/files/{file_id}/content", headers=service.headers)
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    digest, size_bytes = hashlib.sha256(), 0
    while chunk := answer.read(MB):
        digest.update(chunk)
        size_bytes += len(chunk)
    connection.close()
    return digest.hexdigest(), size_bytes


if __name__ == "__main__":
    main()
