"""A second vLLM with the plugin `tunery-vllm` gets no delivery: it finds the adapter by its name."""

from __future__ import annotations

import shutil

import httpx2
import pytest

from tests.engines.world import World

pytestmark = pytest.mark.timeout(900)  # on a busy machine


def test_the_plugin_finds_the_model_by_its_name(world: World) -> None:
    """As a new replica does, whose cache is empty."""
    (project,) = world.get("/v1/organization/projects")["data"]
    path = f"/v1/organization/projects/{project['id']}/api_keys"
    key = world.post(path, {"name": "vllm", "scopes": ["models:read", "jobs:read"]})
    world.facts["key"] = f"{path}/{key['id']}"
    world.by_name.restart(TUNERY_BASE_URL=world.service.url, TUNERY_API_KEY=key["value"])
    world.by_name.wait()
    assert world.model not in world.by_name.models()
    assert world.by_name.answer(world.model) == world.facts["answer"]
    digest = world.get(f"{world.job}/adapter")["archive"]["sha256"]
    assert (world.cache / "adapters" / digest).is_dir()
    assert world.by_name.ask("ft:unknown").status_code == 404


def test_the_plugin_of_a_restarted_server_finds_it_without_a_list(world: World) -> None:
    world.by_name.restart()
    world.by_name.wait()
    assert world.model not in world.by_name.models()
    assert world.by_name.answer(world.model) == world.facts["answer"]


def test_the_plugin_downloads_it_again_where_the_cache_is_lost(world: World) -> None:
    unload(world, world.model)
    shutil.rmtree(world.cache / "adapters")
    assert world.by_name.answer(world.model) == world.facts["answer"]


def unload(world: World, model: str) -> None:
    assert httpx2.post(f"{world.by_name.url}/v1/unload_lora_adapter", json={"lora_name": model}).is_success
