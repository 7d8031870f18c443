"""A trained adapter in a real vLLM: delivered, asked, found again after a restart, caught if wrong, withdrawn.

Two further servers have the plugin `tunery-vllm` and get no delivery: they find the adapter by its name.

The tests run in their order, each on what the one before has left: `python -m tests.engines`.
"""

from __future__ import annotations

import json
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
from tests.engines.vllm_server import EXAMPLE, VllmServer
from tests.stack import open_directory
from tests.up import Service

pytestmark = pytest.mark.timeout(900)  # on a busy machine

MODEL = "SmolLM2-135M-Instruct"
JOBS = "/v1/fine_tuning/jobs"


@dataclass
class World:
    service: Service
    vllm: VllmServer
    by_name: VllmServer  # with the plugin; so is `replica`
    replica: VllmServer
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
        until(lambda: self.delivery()["status"] in statuses, f"the delivery is {statuses}", 400, interval_seconds=1.0)
        return self.delivery()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
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
        by_name, replica = (VllmServer(model, directory / f"{name}.log", plugin) for name in ("by-name", "replica"))
        try:
            service.start()
            vllm.start()
            headers = {"Authorization": f"Bearer {service.key}"}
            with httpx2.Client(base_url=service.url, headers=headers, timeout=60) as http:
                yield World(service, vllm, by_name, replica, http, adapters)
        finally:
            for server in (vllm, by_name, replica):
                server.stop()
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
    until(lambda: world.get(path)["finished_at"], "the job has ended", 600, interval_seconds=1.0)
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
    contents = [answer_of(each) for each in (base, tuned)]
    print(contents)
    assert contents[0] != contents[1]
    world.facts["answer"] = contents[1]


def test_a_restarted_vllm_gets_it_again(world: World) -> None:
    world.vllm.stop()
    world.vllm.start()
    world.vllm.wait()
    # The answer is asked for after the check: vLLM for CPUs ends if both are computed in one batch.
    until(lambda: any("had lost" in message for message in world.messages()), "it is back", 400, interval_seconds=1.0)
    assert world.facts["model"] in world.vllm.models()
    assert world.vllm.ask(world.facts["model"]).is_success
    assert world.until_delivery("delivered")["check"]["verdict"] == "same"


def test_the_plugin_with_a_refused_key_finds_nothing_and_logs_why(world: World) -> None:
    world.by_name.restart(TUNERY_BASE_URL=world.service.url, TUNERY_API_KEY="tnry_wrong")
    world.by_name.wait()
    assert world.by_name.ask(world.facts["model"]).status_code == 404
    assert "Tunery refuses the key" in world.by_name.log.read_text()
    assert "tnry_wrong" not in world.by_name.log.read_text()


def test_the_plugin_finds_the_model_by_its_name(world: World) -> None:
    (project,) = world.get("/v1/organization/projects")["data"]
    path = f"/v1/organization/projects/{project['id']}/api_keys"
    world.facts["key"] = world.post(path, {"name": "vllm", "scopes": ["models:read", "jobs:read"]})["value"]
    world.by_name.restart(TUNERY_API_KEY=world.facts["key"])
    world.by_name.wait()
    assert answer_of(world.by_name.ask(world.facts["model"])) == world.facts["answer"]
    digest = world.get(f"{JOBS}/{world.facts['job']}/adapter")["archive"]["sha256"]
    assert (world.adapters.parent / "cache" / "adapters" / digest).is_dir()
    assert world.by_name.ask("ft:unknown").status_code == 404


def test_the_plugins_of_a_restarted_server_and_of_a_new_replica_find_it_without_a_list(world: World) -> None:
    cache = str(world.adapters.parent / "cache-of-the-replica")
    world.by_name.restart()
    world.replica.restart(
        TUNERY_BASE_URL=world.service.url, TUNERY_API_KEY=world.facts["key"], TUNERY_ADAPTER_CACHE=cache
    )
    for server in (world.by_name, world.replica):
        server.wait()
        assert world.facts["model"] not in server.models()
        assert answer_of(server.ask(world.facts["model"])) == world.facts["answer"]


def test_an_adapter_whose_names_match_nothing_is_caught(world: World, tmp_path: Path) -> None:
    """vLLM loads it and answers 200. The stored file is replaced, with its digest, as no job makes such an adapter.

    The archive consists of the stored files, so it is damaged from here on, and no plugin can fetch it any more.
    """
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
    model = world.facts["model"]
    assert world.http.delete(f"/v1/models/{model}").is_success
    world.until_delivery("withdrawn")
    assert world.vllm.ask(model).status_code == 404
    assert world.vllm.ask("base").is_success


def test_a_deleted_model_is_unknown_to_the_plugin(world: World) -> None:
    """Without a delivery nothing unloads it: vLLM asks the plugin again once it is unloaded."""
    model = world.facts["model"]
    assert httpx2.post(f"{world.by_name.url}/v1/unload_lora_adapter", json={"lora_name": model}).is_success
    assert world.by_name.ask(model).status_code == 404


def answer_of(response: httpx2.Response) -> str:
    assert response.is_success, response.text
    return str(response.json()["choices"][0]["message"]["content"])
