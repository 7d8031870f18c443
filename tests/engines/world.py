"""One service and one vLLM that all scenarios use, in their order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from tests.deadline import until
from tests.engines.vllm_server import EXAMPLE, VllmServer
from tests.stack import open_directory
from tests.up import Service

MODEL = "SmolLM2-135M-Instruct"
JOBS = "/v1/fine_tuning/jobs"
TARGET = "vllm"
BY_NAME = "by-name"  # a target without a shared path


@dataclass
class World:
    service: Service
    vllm: VllmServer
    by_name: VllmServer  # with the plugin
    http: httpx2.Client
    adapters: Path
    facts: dict[str, Any] = field(default_factory=dict)  # what a scenario leaves for those after it

    @property
    def model(self) -> str:
        return str(self.facts["model"])

    @property
    def job(self) -> str:
        return f"{JOBS}/{self.facts['job']}"

    @property
    def cache(self) -> Path:
        """The plugin's."""
        return self.adapters.parent / "cache"

    def get(self, path: str) -> Any:
        response = self.http.get(path)
        response.raise_for_status()
        return response.json()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        response = self.http.post(path, json=body)
        assert response.is_success, response.text
        return response.json()

    def upload(self, name: str, lines: int) -> str:
        content = b"".join((EXAMPLE / name).read_bytes().splitlines(keepends=True)[:lines])
        files = {"file": (name, content)}
        return str(self.http.post("/v1/files", data={"purpose": "fine-tune"}, files=files).json()["id"])

    def destination(self, *urls: str) -> dict[str, Any]:
        return {"kind": "vllm", "urls": urls, "shared_path": str(self.adapters)}

    def deliver_through(self, url: str) -> Any:
        """Deliver again, to the same vLLM under another address."""
        path = f"/v1/delivery_targets/{TARGET}"
        self.post(path, {"destination": self.destination(url)})
        try:
            return self.deliver()
        finally:
            self.post(path, {"destination": self.destination(self.vllm.url)})

    def deliver(self, target: str = TARGET, **checkpoint: str) -> Any:
        self.post(f"{self.job}/deliveries", {"target": target} | checkpoint)
        return self.until_delivery("delivered", "failed", target=target)

    def until_delivery(self, *statuses: str, target: str = TARGET) -> Any:
        """The latest delivery to the target, in one of the states."""
        what = f"the delivery to {target} is {statuses}"
        until(lambda: self._delivery(target)["status"] in statuses, what, 600, interval_seconds=1.0)
        return self._delivery(target)

    def messages(self) -> list[str]:
        return [each["message"] for each in self.get(f"{self.job}/events")["data"]]

    def _delivery(self, target: str) -> Any:
        return [each for each in self.get(self.job)["deliveries"] if each["target"] == target][-1]


@contextmanager
def open_world() -> Iterator[World]:
    with open_directory() as directory:
        adapters = directory / "adapters"
        adapters.mkdir()
        service = Service(
            directory,
            {
                "TUNERY_DELIVERY_ALLOW_HTTP": "true",
                "TUNERY_DELIVERY_ALLOWED_NETWORKS": "127.0.0.0/8",
                "TUNERY_DELIVERY_DIRECTORIES": str(adapters),
                "TUNERY_DELIVERY_RECHECK_SECONDS": "2",
                "TUNERY_SPARE_TRAINER": "false",
            },
        )
        plugin = {"VLLM_PLUGINS": "tunery_lora_resolver", "TUNERY_ADAPTER_CACHE": str(directory / "cache")}
        model = service.data / "models" / MODEL
        vllm = VllmServer(model, directory / "vllm.log")
        by_name = VllmServer(model, directory / "by-name.log", plugin)
        try:
            service.start()
            vllm.start()
            headers = {"Authorization": f"Bearer {service.key}"}
            with httpx2.Client(base_url=service.url, headers=headers, timeout=60) as http:
                yield World(service, vllm, by_name, http, adapters)
        finally:
            for server in (vllm, by_name):
                server.stop()
            service.stop()
