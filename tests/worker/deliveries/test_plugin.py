"""Deliveries to vLLM with the plugin: no shared directory, each server fetches the adapter when it is asked for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.db.engine import transaction
from app.db.tables import Checkpoint, Job
from app.domain.artifacts.engines import compatibility
from app.domain.jobs.spec import LoraSpec
from tests.sentences import Reviewed
from tests.worker.deliveries.conftest import REFERENCE, DeliveryHarness
from tests.worker.engine_stand_in import EngineStandIn, serving_engine


@pytest.fixture
def served() -> Iterator[EngineStandIn]:
    with serving_engine(EngineStandIn("vllm", REFERENCE, known={})) as served:
        yield served


def finished_job(
    delivery: DeliveryHarness, tmp_path: Path, *engines: EngineStandIn, deliver_to: str = "production"
) -> Job:
    """A job whose adapter the plugins of the engines find; each has a cache of its own."""
    job = delivery.finished_job(deliver_to, reference=REFERENCE)
    name = job.fine_tuned_model or ""
    for number, served in enumerate(engines):
        directory = tmp_path / f"cache-{number}" / "adapters" / f"digest-of-{job.id}"
        directory.mkdir(parents=True)
        (directory / "adapter_config.json").write_text(json.dumps({"r": 16}))
        assert served.known is not None
        served.known[name] = directory
    return job


def test_each_server_fetches_it_and_is_checke(delivery: DeliveryHarness, served: EngineStandIn, tmp_path: Path) -> None:
    with serving_engine(EngineStandIn("vllm", REFERENCE, known={})) as second:
        delivery.target({"kind": "vllm", "urls": [served.url, second.url]})
        job = finished_job(delivery, tmp_path, served, second)
        delivery.attempt_due()
        row, name = delivery.delivery(job), job.fine_tuned_model or ""
        assert (row.state, row.error, (row.served_check or {})["verdict"]) == ("delivered", None, "same")
        assert (row.location or {})["paths"] == {each.url: each.loaded[name] for each in (served, second)}
        assert not any("load_lora_adapter" in path for path in served.calls)
    assert list(delivery.shared.iterdir()) == []


def test_a_restarted_server_fetches_it_again(delivery: DeliveryHarness, served: EngineStandIn, tmp_path: Path) -> None:
    delivery.target({"kind": "vllm", "urls": [served.url]})
    job = finished_job(delivery, tmp_path, served)
    delivery.attempt_due()
    before = dict(served.loaded)
    served.restart()
    delivery.attempt_due(again=True)
    assert served.loaded == before
    assert delivery.harness.messages(job)[-1].startswith("production had lost ")
    served.calls.clear()
    delivery.attempt_due(again=True)
    assert served.calls == ["/v1/models"]


def test_an_adapter_of_a_deleted_model_goes(delivery: DeliveryHarness, served: EngineStandIn, tmp_path: Path) -> None:
    delivery.target({"kind": "vllm", "urls": [served.url]})
    job = finished_job(delivery, tmp_path, served)
    delivery.attempt_due()
    delivery.withdraw(job)
    assert (delivery.delivery(job).state, served.loaded) == ("withdrawn", {})


def test_a_replaced_name_survives_a_restart(delivery: DeliveryHarness, served: EngineStandIn, tmp_path: Path) -> None:
    delivery.target({"kind": "vllm", "urls": [served.url]}, served_model="bot")
    for _ in range(2):
        job = finished_job(delivery, tmp_path, served)
        delivery.attempt_due()
        assert served.known is not None
        expected = {"bot": str(served.known[job.fine_tuned_model or ""])}
        assert served.loaded == expected
    served.restart()
    delivery.attempt_due(again=True)
    assert served.loaded == expected
    delivery.withdraw(job)
    assert (delivery.delivery(job).state, served.loaded) == ("withdrawn", {})


def test_a_name_served_from_elsewhere_is_kept(delivery: DeliveryHarness, served: EngineStandIn, tmp_path: Path) -> None:
    served.loaded["bot"] = "/elsewhere/bot"
    delivery.target({"kind": "vllm", "urls": [served.url]}, served_model="bot")
    job = finished_job(delivery, tmp_path, served)
    delivery.attempt_due()
    assert "/elsewhere/bot" in delivery.error(job)
    assert served.loaded["bot"] == "/elsewhere/bot"


def test_two_targets_do_not_share_a_name(delivery: DeliveryHarness, served: EngineStandIn, tmp_path: Path) -> None:
    for name in ("production", "staging"):
        delivery.target({"kind": "vllm", "urls": [served.url]}, name, served_model="bot")
    first = finished_job(delivery, tmp_path, served)
    delivery.attempt_due()
    loaded = dict(served.loaded)
    second = finished_job(delivery, tmp_path, served, deliver_to="staging")
    for _ in range(2):
        delivery.attempt_due(again=True)
    assert (delivery.delivery(first).state, served.loaded["bot"]) == ("delivered", loaded["bot"])
    assert loaded["bot"] in delivery.error(second)
    assert not any("had lost" in each for each in delivery.harness.messages(first))


def test_an_unrecorded_adapter_is_replaced(delivery: DeliveryHarness, served: EngineStandIn, tmp_path: Path) -> None:
    delivery.target({"kind": "vllm", "urls": [served.url, "http://127.0.0.1:9"]}, served_model="bot")
    finished_job(delivery, tmp_path, served)
    delivery.attempt_due()  # one server is away, so nothing is recorded
    second = finished_job(delivery, tmp_path, served)
    delivery.attempt_due()
    assert served.known is not None
    assert served.loaded["bot"] == str(served.known[second.fine_tuned_model or ""])


def test_a_half_delivered_adapter_is_unloaded(delivery: DeliveryHarness, served: EngineStandIn, tmp_path: Path) -> None:
    with serving_engine(EngineStandIn("vllm", REFERENCE, known={})) as second:
        pass
    delivery.target({"kind": "vllm", "urls": [served.url, second.url]}, served_model="bot")
    job = finished_job(delivery, tmp_path, served)
    delivery.attempt_due()
    assert list(served.loaded) == ["bot"]
    delivery.delete_model(job)
    with serving_engine(second):
        delivery.attempt_due()
    assert (delivery.delivery(job).state, served.loaded) == ("withdrawn", {})


def test_an_adapter_without_effect_fails(delivery: DeliveryHarness, served: EngineStandIn, tmp_path: Path) -> None:
    served.has_no_effect = True
    delivery.target({"kind": "vllm", "urls": [served.url]})
    job = finished_job(delivery, tmp_path, served)
    delivery.attempt_due()
    row = delivery.delivery(job)
    assert (row.state, (row.served_check or {})["verdict"], served.loaded) == ("failed", "no_effect", {})
    merged = 'POST /v1/fine_tuning/jobs/JOB/exports {"type": "merged"}'
    assert merged in delivery.error(job)


@pytest.mark.parametrize("known", [None, {}], ids=["no plugin", "not found"])
def test_a_server_that_does_not_find_it_is_named_with_the_plugin(
    delivery: DeliveryHarness, served: EngineStandIn, known: dict[str, Path] | None, reviewed: Reviewed
) -> None:
    served.known = known
    job = delivery.deliver({"kind": "vllm", "urls": [served.url]}, reference=REFERENCE)
    row = delivery.delivery(job)
    assert row.state == "pending"
    assert "responded with 404" in delivery.error(job)
    reviewed(delivery.error(job))
    assert "TUNERY_API_KEY" in delivery.error(job)


def test_a_server_that_cannot_load_it_is_named_with_the_options(
    delivery: DeliveryHarness, served: EngineStandIn, tmp_path: Path, reviewed: Reviewed
) -> None:
    served.max_lora_rank = 8
    delivery.target({"kind": "vllm", "urls": [served.url]})
    job = finished_job(delivery, tmp_path, served)
    with transaction(delivery.harness.sessions) as session:
        checkpoint = session.get_one(Checkpoint, delivery.delivery(job).checkpoint_id)
        entry = compatibility(LoraSpec.model_validate(job.spec["lora"]), job.id).model_dump(mode="json")
        checkpoint.manifest = checkpoint.manifest | {"compatibility": entry}
    delivery.attempt_due()
    row = delivery.delivery(job)
    assert row.state == "pending"
    reviewed(delivery.error(job))
    reviewed(delivery.error(job))
