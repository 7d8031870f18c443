"""Uploads and downloads against plain scripts on the same machine: `make bench-upload`.

Eight clients upload 256 MB each at once; beside it the same bytes, written, hashed and flushed by a plain script with
eight threads, and the polling of a job with and without uploads. Then 1 GB is downloaded by curl, from Tunery and from
a plain static file server. What counts is the ratios: both sides of each were taken in one run, in turns.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import http.server
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from app.db import files, migrate
from app.db.engine import make_engine, make_sessions, transaction
from app.domain.uploads import MAX_PART_BYTES
from app.settings import Settings
from app.storage import LocalStorage
from tests.factories import make_base_model, make_file, make_job, make_key, make_project
from tests.stack import start_postgres, start_valkey
from worker.device import cpu_name

ROOT = Path(__file__).resolve().parents[1]
HOST = "127.0.0.1"
BLOCK = os.urandom(1 << 20)
LINE = b'{"messages": [{"role": "user", "content": "%s"}, {"role": "assistant", "content": "%s"}]}\n'
POLLERS, POLLS_A_SECOND = 16, 10
NGINX = """
{user}daemon off; worker_processes 1; pid {directory}/pid; error_log {directory}/error.log;
events {{ }}
http {{
  access_log off; sendfile on;
  client_body_temp_path {directory}/a; proxy_temp_path {directory}/b; fastcgi_temp_path {directory}/c;
  uwsgi_temp_path {directory}/d; scgi_temp_path {directory}/e;
  server {{ listen {host}:{port}; root {root}; }}
}}
"""


@dataclass(frozen=True)
class Service:
    port: int
    key: str
    process: psutil.Process
    job_id: str
    artifact_id: str
    artifact: Path

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


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


@contextmanager
def serving(directory: Path, artifact_bytes: int) -> Iterator[Service]:
    """One API process, as `tunery up` starts it, on servers of its own."""
    with ExitStack() as stack:
        database_url, stop_postgres = start_postgres()
        stack.callback(stop_postgres)
        redis_url, stop_valkey = start_valkey()
        stack.callback(stop_valkey)
        settings = Settings(database_url=database_url, redis_url=redis_url, data_dir=directory / "data")
        key, job_id, artifact_id, artifact = prepare(settings, directory, artifact_bytes)
        port = free_port()
        command = [sys.executable, "-m", "uvicorn", "--factory", "app.main:app_from_environment"]
        environment = os.environ | {
            "DATABASE_URL": database_url, "REDIS_URL": redis_url, "TUNERY_DATA_DIR": str(settings.data_dir),
        }  # fmt: skip
        with (directory / "api.log").open("wb") as log:
            api = subprocess.Popen(
                [*command, "--host", HOST, "--port", str(port), "--no-access-log"],
                cwd=ROOT, env=environment, stdout=log, stderr=log,
            )  # fmt: skip
        stack.callback(stop, api)
        wait_for(port)
        yield Service(port, key, psutil.Process(api.pid), job_id, artifact_id, artifact)


def prepare(settings: Settings, directory: Path, artifact_bytes: int) -> tuple[str, str, str, Path]:
    """A key, a job to poll, and an artifact to download."""
    engine = make_engine(settings.database_url)
    migrate.upgrade(engine)
    storage = LocalStorage(settings.storage_dir)
    with transaction(make_sessions(engine)) as session:
        project = make_project(session)
        key = make_key(session, project)
        make_base_model(session, directory / "model")
        job = make_job(session, project, make_file(session, storage, project))
        staged = storage.staging / "artifact"
        with staged.open("wb") as file:
            for _ in range(artifact_bytes >> 20):
                file.write(BLOCK)
        storage.put("files/artifact", staged)
        row = files.insert(session, project.id, "user_data", "artifact.bin", artifact_bytes, "0" * 64, "files/artifact")
    engine.dispose()
    return key, job.id, row.id, storage.objects / "files" / "artifact"


def bench_uploads(options: argparse.Namespace, directory: Path, service: Service) -> None:
    block = BLOCK if options.purpose == "batch" else json_block()
    total_mb = options.files * options.mb
    ways: dict[str, Callable[[Service, str, bytes, int], None]] = {
        "multipart": send_multipart, "parts": send_parts, "content": send_content,
    }  # fmt: skip
    quiet = polling_p99(service, seconds=6)
    print(
        f"{options.files} files of {options.mb} MB at once, purpose {options.purpose}; "
        f"polling alone: p99 {quiet:.0f} ms"
    )
    plain: list[float] = []
    taken: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(options.rounds):
        plain.append(total_mb / plain_script(directory, options.files, options.mb, block))
        for way in options.ways.split(","):
            seconds, p99, extra_mb = upload_all(service, options, ways[way], block)
            taken.setdefault(way, []).append((total_mb / seconds, p99, extra_mb))
    script = statistics.median(plain)
    print(f"{'plain script':14} {script:6.0f} MB/s  ({listed(plain)})")
    for way, found in taken.items():
        rates = [rate for rate, _, _ in found]
        ratio = statistics.median(rate / base for rate, base in zip(rates, plain, strict=True))
        p99 = statistics.median(p99 for _, p99, _ in found)
        extra_mb = max(extra for _, _, extra in found)
        print(
            f"{way:14} {statistics.median(rates):6.0f} MB/s  ({listed(rates)})  {ratio:.2f} of the script; "
            f"{extra_mb:.0f} MB more memory; polling p99 {p99:.0f} ms, {p99 / quiet:.1f} times alone",
            flush=True,
        )


def json_block() -> bytes:
    """A megabyte, exactly, of chat examples of some hundred bytes."""
    line = LINE % (b"How do I reset the password of my account? " * 4, b"Open settings and choose security. " * 8)
    lines = line * ((1 << 20) // len(line))
    return lines + b" " * ((1 << 20) - len(lines) - 1) + b"\n"


def plain_script(directory: Path, count: int, megabytes: int, block: bytes) -> float:
    """Seconds to write, hash and flush so many files from memory, a thread each, and nothing else."""

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
    service: Service, options: argparse.Namespace, send: Callable[..., None], block: bytes
) -> tuple[float, float, float]:
    """Seconds, p99 of polling meanwhile in ms, and how much more memory the API and its children took, in MB."""
    before = memory_bytes(service.process)
    latencies: list[float] = []
    peak = [before]
    over = threading.Event()
    watchers = [threading.Thread(target=poll, args=(service, latencies, over)) for _ in range(POLLERS)]
    watchers.append(threading.Thread(target=watch_memory, args=(service.process, peak, over)))
    for watcher in watchers:
        watcher.start()
    began = time.perf_counter()
    with ThreadPoolExecutor(options.files) as pool:
        list(pool.map(lambda _: send(service, options.purpose, block, options.mb), range(options.files)))
    seconds = time.perf_counter() - began
    over.set()
    for watcher in watchers:
        watcher.join()
    return seconds, percentile(latencies), (peak[0] - before) / 1e6


def polling_p99(service: Service, seconds: float) -> float:
    latencies: list[float] = []
    over = threading.Event()
    pollers = [threading.Thread(target=poll, args=(service, latencies, over)) for _ in range(POLLERS)]
    for poller in pollers:
        poller.start()
    over.wait(seconds)
    over.set()
    for poller in pollers:
        poller.join()
    return percentile(latencies)


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


def watch_memory(process: psutil.Process, peak: list[int], over: threading.Event) -> None:
    while not over.wait(0.05):
        peak[0] = max(peak[0], memory_bytes(process))


def memory_bytes(process: psutil.Process) -> int:
    """Resident and not shared with files, of the API and its children."""
    total = 0
    for each in (process, *process.children(recursive=True)):
        try:
            info = each.memory_info()
            total += info.rss - info.shared
        except psutil.NoSuchProcess:
            continue
    return total


def percentile(latencies: list[float]) -> float:
    return sorted(latencies)[int(len(latencies) * 0.99)]


def send_multipart(service: Service, purpose: str, block: bytes, megabytes: int) -> None:
    fields = f'--XX\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
    send_form(service, "/v1/files", fields, "file", block, megabytes)


def send_parts(service: Service, purpose: str, block: bytes, megabytes: int) -> None:
    upload_id = begin(service, purpose, megabytes)
    step = MAX_PART_BYTES >> 20
    sizes = [min(step, megabytes - start) for start in range(0, megabytes, step)]
    path = f"/v1/uploads/{upload_id}"
    ids = [send_form(service, f"{path}/parts", "", "data", block, size)["id"] for size in sizes]
    done = ask(service, "POST", f"{path}/complete", json.dumps({"part_ids": ids}).encode())
    assert done["status"] == "completed", done


def send_content(service: Service, purpose: str, block: bytes, megabytes: int) -> None:
    path = f"/v1/uploads/{begin(service, purpose, megabytes)}/content"
    done = stream(service, "PUT", path, {}, b"", block, megabytes, b"")
    assert done["status"] == "completed", done


def begin(service: Service, purpose: str, megabytes: int) -> str:
    body = {"filename": "a.jsonl", "purpose": purpose, "bytes": megabytes << 20, "mime_type": "text/plain"}
    return str(ask(service, "POST", "/v1/uploads", json.dumps(body).encode())["id"])


def send_form(service: Service, path: str, fields: str, name: str, block: bytes, megabytes: int) -> dict[str, str]:
    head = f'{fields}--XX\r\nContent-Disposition: form-data; name="{name}"; filename="a.jsonl"\r\n\r\n'.encode()
    headers = {"Content-Type": "multipart/form-data; boundary=XX"}
    return stream(service, "POST", path, headers, head, block, megabytes, b"\r\n--XX--\r\n")


def stream(
    service: Service, method: str, path: str, headers: dict[str, str], head: bytes, block: bytes, megabytes: int,
    tail: bytes,
) -> dict[str, str]:  # fmt: skip
    connection = http.client.HTTPConnection(HOST, service.port, timeout=600)
    connection.putrequest(method, path)
    length = len(head) + megabytes * len(block) + len(tail)
    for name, value in (service.headers | headers | {"Content-Length": str(length)}).items():
        connection.putheader(name, value)
    connection.endheaders(head)
    for _ in range(megabytes):
        connection.send(block)
    connection.send(tail)
    return answer_of(connection)


def ask(service: Service, method: str, path: str, body: bytes) -> dict[str, str]:
    connection = http.client.HTTPConnection(HOST, service.port, timeout=600)
    connection.request(method, path, body, service.headers | {"Content-Type": "application/json"})
    return answer_of(connection)


def answer_of(connection: http.client.HTTPConnection) -> dict[str, str]:
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert answer.status == 200, text
    return dict(json.loads(text))


def bench_downloads(options: argparse.Namespace, directory: Path, service: Service) -> None:
    ours = f"http://{HOST}:{service.port}/v1/files/{service.artifact_id}/content"
    rates: dict[str, list[float]] = {"tunery": [], "other": []}
    with static_server(options.nginx, directory, service.artifact.parent) as (name, port):
        other = f"http://{HOST}:{port}/{service.artifact.name}"
        for _ in range(options.rounds + 2):
            rates["other"].append(curl(other))
            rates["tunery"].append(curl(ours, "--header", f"Authorization: Bearer {service.key}"))
    ratio = statistics.median(a / b for a, b in zip(rates["tunery"], rates["other"], strict=True))
    print(f"download of {options.artifact_mb} MB by curl")
    print(f"{name:14} {statistics.median(rates['other']):6.0f} MB/s  ({listed(rates['other'])})")
    print(
        f"{'tunery':14} {statistics.median(rates['tunery']):6.0f} MB/s  ({listed(rates['tunery'])})  {ratio:.2f} of it"
    )


def curl(url: str, *more: str) -> float:
    """MB a second."""
    command = [
        "curl",
        "--silent",
        "--fail",
        "--noproxy",
        "*",
        "--output",
        "/dev/null",
        "--write-out",
        "%{speed_download}",
    ]
    return float(subprocess.run([*command, *more, url], check=True, capture_output=True, text=True).stdout) / 1e6


@contextmanager
def static_server(nginx: str | None, directory: Path, root: Path) -> Iterator[tuple[str, int]]:
    port = free_port()
    if nginx is None:
        handler = partial(QuietHandler, directory=str(root))
        with http.server.ThreadingHTTPServer((HOST, port), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield "http.server", port
            server.shutdown()
        return
    home = directory / "nginx"
    home.mkdir()
    user = "user root; " if os.geteuid() == 0 else ""  # nobody else may look into the data directory
    (home / "conf").write_text(NGINX.format(user=user, directory=home, host=HOST, port=port, root=root))
    process = subprocess.Popen([nginx, "-p", str(home), "-c", str(home / "conf"), "-e", str(home / "error.log")])
    try:
        wait_for(port)
        yield "nginx", port
    finally:
        stop(process)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


def listed(numbers: list[float]) -> str:
    return ", ".join(f"{number:.0f}" for number in numbers)


def free_port() -> int:
    with http.server.HTTPServer((HOST, 0), http.server.BaseHTTPRequestHandler) as server:
        return int(server.server_port)


def wait_for(port: int, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            connection = http.client.HTTPConnection(HOST, port, timeout=5)
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(20)


if __name__ == "__main__":
    main()
