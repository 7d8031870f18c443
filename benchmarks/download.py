"""A download by curl, alternately from Tunery and from a static file server."""

from __future__ import annotations

import argparse
import http.server
import os
import statistics
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.served import HOST, Service, free_port, listed, stop, wait_for

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
    user = "user root; " if os.geteuid() == 0 else ""  # only the owner may read the data directory
    (home / "conf").write_text(NGINX.format(user=user, directory=home, host=HOST, port=port, root=root))
    process = subprocess.Popen([nginx, "-p", str(home), "-c", str(home / "conf"), "-e", str(home / "error.log")])
    try:
        wait_for(port)
        yield "nginx", port
    finally:
        stop(process)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...
