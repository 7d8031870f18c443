"""A path that vLLM does not see and an adapter without an effect are named, and a deleted one is served nowhere."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import openai
import pytest
from safetensors.numpy import load_file, save_file

from app.db.engine import make_engine, make_sessions, transaction
from app.db.tables import File
from tests.deadline import until
from tests.engines.gateway import gateway
from tests.engines.vllm_server import question
from tests.engines.world import World

pytestmark = pytest.mark.timeout(900)  # on a busy machine


def test_a_path_that_vllm_does_not_see_is_named(world: World) -> None:
    shared = world.adapters / "unseen"
    shared.mkdir()
    paths = {"shared_path": str(shared), "engine_path": "/not-mounted"}
    destination = world.destination(world.vllm.url) | paths
    # A name of its own: vLLM serves that of the model from the path of another target.
    world.post("/v1/delivery_targets", {"name": "unseen", "destination": destination, "served_model": "unseen"})
    delivery = world.post(f"{world.job}/deliveries", {"target": "unseen"})
    path = f"{world.job}/deliveries/{delivery['id']}"
    until(lambda: world.get(path)["error"], "an attempt", 60, interval_seconds=1.0)
    error = world.get(path)["error"]
    assert "No adapter found for /not-mounted/" in error
    assert "the server does not see the files" in error


def test_an_adapter_whose_names_match_nothing_is_caught(world: World, tmp_path: Path) -> None:
    """vLLM loads it and answers 200. The archive consists of the stored files, so it is damaged from here on."""
    replace_stored_weights(world, tmp_path)
    delivery = world.deliver()
    print(json.dumps(delivery))
    assert delivery["status"] == "failed"
    assert delivery["check"]["verdict"] == "no_effect"
    assert "match no module" in delivery["error"]
    assert world.model not in world.vllm.models()


def test_it_is_caught_by_answers_too(world: World) -> None:
    with gateway(world.vllm.url) as url:
        delivery = world.deliver_through(url)
    print(json.dumps(delivery))
    assert delivery["status"] == "failed"
    assert (delivery["check"]["method"], delivery["check"]["verdict"]) == ("answer", "no_effect")


def test_a_deleted_model_is_unknown_to_vllm(world: World) -> None:
    assert world.http.delete(f"/v1/models/{world.model}").is_success
    for target in {each["target"] for each in world.get(world.job)["deliveries"]}:
        world.until_delivery("withdrawn", target=target)
    assert world.vllm.models() == ["base"]
    assert world.vllm.ask(world.model).status_code == 404
    assert world.vllm.ask("base").is_success


def test_a_deleted_model_is_not_answered(world: World) -> None:
    client = openai.OpenAI(base_url=f"{world.service.url}/v1", api_key=world.service.key, max_retries=0)
    with pytest.raises(openai.NotFoundError, match="does not exist") as raised:
        client.chat.completions.create(model=world.model, messages=question())
    assert (raised.value.param, raised.value.code) == ("model", "model_not_found")


def test_a_deleted_model_is_unknown_to_the_plugin(world: World) -> None:
    """vLLM asks the plugin again, as the withdrawal has unloaded it."""
    assert world.by_name.models() == ["base"]
    assert world.by_name.ask(world.model).status_code == 404


def test_the_plugin_with_a_deleted_key_finds_nothing_and_logs_why(world: World) -> None:
    assert world.http.delete(world.facts["key"]).is_success
    assert world.by_name.ask("ft:another").status_code == 404
    assert "Tunery refuses the key" in world.by_name.log.read_text()
    assert world.by_name.environment["TUNERY_API_KEY"] not in world.by_name.log.read_text()


def replace_stored_weights(world: World, directory: Path) -> None:
    """Rename the tensors of the stored file and correct its digest, as no job makes such an adapter."""
    files = world.get(f"{world.job}/adapter")["files"]
    (weights_id,) = [each["id"] for each in files if each["filename"].endswith(".safetensors")]
    engine = make_engine(json.loads(world.service.runtime.read_text())["database_url"])
    with transaction(make_sessions(engine)) as session:
        row = session.get_one(File, weights_id)
        stored = world.service.data / "storage" / "objects" / row.storage_key
        tensors = load_file(stored).items()
        renamed = {name.replace("self_attn", "attn").replace("mlp", "ffn"): each for name, each in tensors}
        save_file(renamed, directory / "renamed")
        stored.chmod(0o600)
        stored.write_bytes((directory / "renamed").read_bytes())
        row.sha256, row.bytes = hashlib.sha256(stored.read_bytes()).hexdigest(), stored.stat().st_size
    engine.dispose()
