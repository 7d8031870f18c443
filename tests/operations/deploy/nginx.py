"""A real nginx with a configuration of the examples, its addresses replaced by those of a test."""

from __future__ import annotations

import re
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx2

from tests.deadline import until
from tests.operations.deploy.containers import free_port

EXAMPLES = Path(__file__).parents[3] / "examples"
HOSTS = ("tunery-api.example.com", "tunery.example.com")


@dataclass
class NginxProxy:
    port: int
    client: httpx2.Client

    @contextmanager
    def send(
        self, method: str, host: str, path: str, headers: Mapping[str, str] | None = None, **options: Any
    ) -> Iterator[httpx2.Response]:
        """Send a request to the proxy as a client sends it to `host`; the response is open until the block ends."""
        url = f"https://127.0.0.1:{self.port}{path}"
        request = self.client.build_request(method, url, headers={"Host": host, **(headers or {})}, **options)
        request.extensions["sni_hostname"] = host
        with closing(self.client.send(request, stream=True)) as response:
            yield response


@contextmanager
def upstream(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """Serve in a thread what the proxy forwards to; the port."""
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@contextmanager
def run_nginx(
    configuration: str, directory: Path, hosts: Sequence[str], replacements: Mapping[str, str]
) -> Iterator[NginxProxy]:
    """Run nginx with a certificate for `hosts`; `replacements` are made in the `configuration`."""
    port, certificate, key = free_port(), directory / "fullchain.pem", directory / "privkey.pem"
    names = ",".join(f"DNS:{host}" for host in hosts)
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=tunery"]
    subprocess.run(
        [*request, "-addext", f"subjectAltName={names}", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    paths = "\n".join(
        f"  {kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    own = {"/etc/ssl/tunery": str(directory), "listen 443": f"listen 127.0.0.1:{port}", "http {": f"http {{\n{paths}"}
    news = {**own, **replacements}
    assert [old for old in news if old not in configuration] == []
    # at once: a port may contain one
    text = re.sub("|".join(map(re.escape, news)), lambda found: news[found[0]], configuration)
    (directory / "nginx.conf").write_text(text)
    command = ["nginx", "-p", directory, "-c", directory / "nginx.conf", "-e", directory / "error.log"]
    with subprocess.Popen([*command, "-g", f"daemon off; pid {directory}/nginx.pid;"], stderr=subprocess.PIPE) as nginx:
        context = ssl.create_default_context(cafile=str(certificate))
        with httpx2.Client(verify=context, trust_env=False, timeout=20) as client:
            found = NginxProxy(port, client)
            try:
                until(lambda: _is_up(found, nginx, hosts[0]), "nginx listens", 20)
                yield found
            finally:
                nginx.terminate()
                nginx.wait()


@contextmanager
def run_example(
    directory: Path, api_port: int, web_port: int, plain_port: int, limits: Mapping[str, str] | None = None
) -> Iterator[NginxProxy]:
    """Run examples/tls-proxy with TLS; the API is also at `plain_port`, without. `limits`: other values of the file."""
    example = EXAMPLES / "tls-proxy"
    configuration, tls = ((example / name).read_text(encoding="utf-8") for name in ("nginx.conf", "tls.conf"))
    addresses = {"api:8000": f"127.0.0.1:{api_port}", "web:8001": f"127.0.0.1:{web_port}"}
    listen = {"listen 8000": f"listen 127.0.0.1:{plain_port}", "listen 8001": f"listen 127.0.0.1:{free_port()}"}
    configuration = configuration.replace("include /etc/nginx/tls/*.conf;", tls)
    with run_nginx(configuration, directory, HOSTS, {**addresses, **listen, **(limits or {})}) as proxy:
        yield proxy


def _is_up(proxy: NginxProxy, nginx: subprocess.Popen[bytes], host: str) -> bool:
    assert nginx.poll() is None, nginx.stderr and nginx.stderr.read()
    try:
        with proxy.send("GET", host, "/healthz") as answer:
            return answer.status_code == 200
    except httpx2.TransportError:
        return False
