"""A trained adapter in a real vLLM: delivered, asked, found again after a restart, caught if wrong, withdrawn.

The tests run in their order, each on what the one before has left: `python -m tests.engines`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from safetensors.numpy import load_file, save_file

from app.db.engine import make_engine, make_sessions, transaction
from app.db.tables import File
from tests.deadline import until
from tests.stack import open_directory
from tests.up import ROOT, Service

pytestmark = pytest.mark.timeout(480)

EXAMPLE = ROOT / "examples" / "support-tickets"
MODEL = "SmolLM2-135M-Instruct"
JOBS = "/v1/fine_tuning/jobs"
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}


@dataclass
class VllmServer:
    model: Path
    log: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [os.environ["TUNERY_VLLM_PYTHON"], "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", str(self.model), "--served-model-name", "base", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--dtype", "bfloat16", "--max-model-len", "1024"]
        command += ["--enable-lora", "--max-lora-rank", "8", "--max-loras", "4", "--max-cpu-loras", "8"]
        command += ["--enforce-eager"]  # compiling takes a minute, and saves less in these few requests
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **ENVIRONMENT}, start_new_session=True
            )

    def wait(self) -> None:
        until(self._is_healthy, "vLLM is healthy", 240, interval_seconds=1.0)

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)  # its own process group: the engine and its workers
            self.process.wait()
            self.process = None

    def models(self) -> list[str]:
        return [each["id"] for each in httpx2.get(f"{self.url}/v1/models").json()["data"]]

    def ask(self, model: str) -> httpx2.Response:
        question = json.loads((EXAMPLE / "heldout.jsonl").read_text().splitlines()[0])["messages"][:-1]
        body = {"model": model, "messages": question, "temperature": 0, "max_tokens": 24}
        return httpx2.post(f"{self.url}/v1/chat/completions", json=body, timeout=120)

    def _is_healthy(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        try:
            return httpx2.get(f"{self.url}/health", timeout=5).is_success
        except httpx2.HTTPError:
            return False


@dataclass
class World:
    service: Service
    vllm: VllmServer
    http: httpx2.Client
    adapters: Path
    facts: dict[str, Any] = field(default_factory=dict)

    def get(self, path: str) -> Any:
        response = self.http.get(path)
        response.raise_for_status()
        return response.json()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        response = self.http.post(path, json=body)
        assert response.is_success, response.text
        return response.json()

    def delivery(self) -> Any:
        return self.get(f"{JOBS}/{self.facts['job']}")["deliveries"][0]

    def messages(self) -> list[str]:
        return [each["message"] for each in self.get(f"{JOBS}/{self.facts['job']}/events")["data"]]

    def until_delivery(self, *statuses: str) -> Any:
        until(lambda: self.delivery()["status"] in statuses, f"the delivery is {statuses}", 180, interval_seconds=1.0)
        return self.delivery()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with open_directory() as directory, socket.socket() as free:
        adapters = directory / "adapters"
        adapters.mkdir()
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
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
        vllm = VllmServer(service.data / "models" / MODEL, directory / "vllm.log", port)
        try:
            service.start()
            vllm.start()
            headers = {"Authorization": f"Bearer {service.key}"}
            with httpx2.Client(base_url=service.url, headers=headers, timeout=60) as http:
                yield World(service, vllm, http, adapters)
        finally:
            vllm.stop()
            service.stop()


def upload(world: World, name: str, lines: int) -> str:
    content = b"".join((EXAMPLE / name).read_bytes().splitlines(keepends=True)[:lines])
    files = {"file": (name, content)}
    return str(world.http.post("/v1/files", data={"purpose": "fine-tune"}, files=files).json()["id"])


def test_a_finished_job_is_delivered_and_the_check_finds_what_was_trained(world: World) -> None:
    destination = {"kind": "vllm", "urls": [world.vllm.url], "shared_path": str(world.adapters)}
    world.post("/v1/delivery_targets", {"name": "vllm", "destination": destination})
    job = world.post(
        JOBS,
        {
            "model": MODEL,
            "training_file": upload(world, "train.jsonl", 32),
            "validation_file": upload(world, "valid.jsonl", 16),
            "suffix": "served",
            "seed": 7,
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 8}}},
            "lora": {"r": 8, "alpha": 16},
            "deliver_to": ["vllm"],
        },
    )
    world.facts["job"] = job["id"]
    world.vllm.wait()
    path = f"{JOBS}/{job['id']}"
    until(lambda: world.get(path)["finished_at"], "the job has ended", 300, interval_seconds=1.0)
    ended = world.get(path)
    assert ended["status"] == "succeeded", ended["error"]
    world.facts["model"] = ended["fine_tuned_model"]
    delivery = world.until_delivery("delivered", "failed")
    print(json.dumps(delivery))
    assert delivery["status"] == "delivered", delivery["error"]
    assert delivery["check"]["verdict"] == "same", delivery["check"]


def test_vllm_answers_under_the_name_of_the_model_and_not_as_the_base_model(world: World) -> None:
    base, tuned = world.vllm.ask("base"), world.vllm.ask(world.facts["model"])
    assert base.is_success
    assert tuned.is_success
    contents = [each.json()["choices"][0]["message"]["content"] for each in (base, tuned)]
    print(contents)
    assert contents[0] != contents[1]


def test_a_restarted_vllm_gets_it_again(world: World) -> None:
    world.vllm.stop()
    world.vllm.start()
    world.vllm.wait()
    # The answer is asked for after the check: vLLM for CPUs ends if both are computed in one batch.
    until(lambda: any("had lost" in message for message in world.messages()), "it is back", 180, interval_seconds=1.0)
    assert world.facts["model"] in world.vllm.models()
    assert world.vllm.ask(world.facts["model"]).is_success
    assert world.until_delivery("delivered")["check"]["verdict"] == "same"


def test_an_adapter_whose_names_match_nothing_is_caught(world: World, tmp_path: Path) -> None:
    """vLLM loads it and answers 200. The stored file is replaced, with its digest, as no job makes such an adapter."""
    job = world.get(f"{JOBS}/{world.facts['job']}")
    (weights_id,) = [
        each["id"]
        for each in world.get(f"{JOBS}/{job['id']}/adapter")["files"]
        if each["filename"].endswith(".safetensors")
    ]
    runtime = json.loads(world.service.runtime.read_text())
    engine = make_engine(runtime["database_url"])
    with transaction(make_sessions(engine)) as session:
        row = session.get_one(File, weights_id)
        stored = world.service.data / "storage" / "objects" / row.storage_key
        renamed = {
            name.replace("self_attn", "attn").replace("mlp", "ffn"): each for name, each in load_file(stored).items()
        }
        save_file(renamed, tmp_path / "renamed")
        stored.chmod(0o600)
        stored.write_bytes((tmp_path / "renamed").read_bytes())
        digest = subprocess.run(["sha256sum", stored], capture_output=True, text=True, check=True).stdout.split()[0]
        row.sha256, row.bytes = digest, stored.stat().st_size
    engine.dispose()
    world.post(f"{JOBS}/{job['id']}/deliveries", {"target": "vllm"})
    delivery = world.until_delivery("failed")
    print(json.dumps(delivery))
    assert delivery["check"]["verdict"] == "no_effect"
    assert "match no module" in delivery["error"]
    assert world.facts["model"] not in world.vllm.models()


def test_a_deleted_model_is_unknown_to_vllm(world: World) -> None:
    assert world.http.delete(f"/v1/models/{world.facts['model']}").is_success
    world.until_delivery("withdrawn")
    assert world.vllm.ask(world.facts["model"]).status_code == 404
    assert world.vllm.ask("base").is_success
