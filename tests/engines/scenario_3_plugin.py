"""A second vLLM with the plugin `tunery-vllm` finds the adapter by its name, at first without a delivery."""

from __future__ import annotations

import json
import re
import shutil

import httpx2
import pytest

from tests.deadline import until
from tests.engines.world import BY_NAME, World

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


def test_a_delivery_without_a_shared_path_makes_it_fetch_the_adapter(world: World) -> None:
    unload(world, world.model)
    world.post("/v1/delivery_targets", {"name": BY_NAME, "destination": {"kind": "vllm", "urls": [world.by_name.url]}})
    delivery = world.deliver(BY_NAME)
    print(json.dumps(delivery))
    assert (delivery["status"], delivery["error"]) == ("delivered", None)
    assert delivery["check"]["verdict"] == "same", delivery["check"]
    assert world.by_name.answer(world.model) == world.facts["answer"]


def test_a_restarted_server_fetches_what_was_delivered_without_being_asked_by_a_client(world: World) -> None:
    world.by_name.restart()
    world.by_name.wait()
    lost = f"{BY_NAME} had lost"
    until(lambda: any(lost in each for each in world.messages()), "it is back", 400, interval_seconds=1.0)
    assert world.model in world.by_name.models()
    assert world.by_name.answer(world.model) == world.facts["answer"]


def test_two_servers_serve_one_name_whose_adapter_is_replaced(world: World) -> None:
    """By the checkpoint of the first epoch, which nothing is compared with; then by the result again."""
    destination = world.destination(world.vllm.url, world.by_name.url)
    world.post("/v1/delivery_targets", {"name": "both", "destination": destination, "served_model": "bot"})
    assert world.deliver("both")["check"]["verdict"] == "same"
    assert [each.answer("bot") for each in (world.vllm, world.by_name)] == [world.facts["answer"]] * 2
    checkpoints = world.get(f"{world.job}/checkpoints")["data"]
    first = min(checkpoints, key=lambda each: each["step_number"])
    replaced = world.deliver("both", checkpoint=first["id"])
    assert (replaced["status"], replaced["check"]["verdict"]) == ("delivered", "unchecked")
    (gap,) = [each for message in world.messages() for each in re.findall("replaced another one in (.*) s", message)]
    print(f"bot had no adapter for {gap} s")
    assert 0 < float(gap) < 1
    assert world.vllm.answer("bot") == world.by_name.answer("bot")
    assert world.deliver("both")["check"]["verdict"] == "same"
    assert [each.answer("bot") for each in (world.vllm, world.by_name)] == [world.facts["answer"]] * 2
    assert {"bot", world.model} <= set(world.vllm.models())


def test_a_replaced_adapter_is_not_read_from_disk_again(world: World) -> None:
    """Without its directory; after a load with `load_inplace` vLLM reads the files at each step that uses them."""
    versions = world.adapters / ".tunery" / "bot"
    away = versions.rename(world.adapters.parent / "away")
    try:
        answers = [world.vllm.answer("bot") for _ in range(10)]
    finally:
        away.rename(versions)
    assert answers == [world.facts["answer"]] * 10


def unload(world: World, model: str) -> None:
    assert httpx2.post(f"{world.by_name.url}/v1/unload_lora_adapter", json={"lora_name": model}).is_success
