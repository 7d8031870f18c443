"""A trained adapter is delivered to a real vLLM, checked there, and found again after a restart."""

from __future__ import annotations

import json

import pytest

from tests.deadline import until
from tests.engines.gateway import gateway
from tests.engines.world import JOBS, MODEL, TARGET, World

pytestmark = pytest.mark.timeout(900)  # on a busy machine


def test_a_finished_job_is_delivered_and_the_check_finds_what_was_trained(world: World) -> None:
    world.post("/v1/delivery_targets", {"name": TARGET, "destination": world.destination(world.vllm.url)})
    job = world.post(
        JOBS,
        {
            "model": MODEL,
            "training_file": world.upload("train.jsonl", 32),
            "validation_file": world.upload("valid.jsonl", 16),
            "suffix": "served",
            "seed": 7,
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 8}}},
            "lora": {"r": 8, "alpha": 16},
            "deliver_to": [TARGET],
        },
    )
    world.facts["job"] = job["id"]
    world.vllm.wait()
    until(lambda: world.get(world.job)["finished_at"], "the job has ended", 600, interval_seconds=1.0)
    ended = world.get(world.job)
    assert ended["status"] == "succeeded", ended["error"]
    world.facts["model"] = ended["fine_tuned_model"]
    delivery = world.until_delivery("delivered", "failed")
    print(json.dumps(delivery))
    assert delivery["status"] == "delivered", delivery["error"]
    assert delivery["check"]["verdict"] == "same", delivery["check"]


def test_vllm_answers_under_the_name_of_the_model_and_not_as_the_base_model(world: World) -> None:
    base, tuned = (world.vllm.answer(model) for model in ("base", world.model))
    print([base, tuned])
    assert base != tuned
    world.facts["answer"] = tuned


def test_a_gateway_without_logprobs_of_prompts_is_checked_by_answers(world: World) -> None:
    with gateway(world.vllm.url) as url:
        delivery = world.deliver_through(url)
    print(json.dumps(delivery))
    assert delivery["status"] == "delivered", delivery["error"]
    assert delivery["check"]["method"] == "answer"
    assert delivery["check"]["verdict"] == "same", delivery["check"]


def test_a_gateway_that_only_chats_is_checked_by_chats(world: World) -> None:
    with gateway(world.vllm.url, is_chat_only=True) as url:
        delivery = world.deliver_through(url)
    print(json.dumps(delivery))
    assert delivery["status"] == "delivered", delivery["error"]
    assert delivery["check"]["method"] == "chat"
    assert delivery["check"]["verdict"] == "same", delivery["check"]


def test_a_restarted_vllm_gets_it_again(world: World) -> None:
    world.vllm.restart()
    world.vllm.wait()
    # The answer is asked for after the check: vLLM for CPUs ends if both are computed in one batch.
    until(lambda: any("had lost" in message for message in world.messages()), "it is back", 400, interval_seconds=1.0)
    assert world.model in world.vllm.models()
    assert world.vllm.answer(world.model) == world.facts["answer"]
    assert world.until_delivery("delivered")["check"]["verdict"] == "same"
