"""Deliveries to vLLM with the plugin: no shared directory, each server fetches the adapter when it is asked for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from app.db.engine import transaction
from app.db.jobs import leases
from app.db.tables import Delivery
from tests.sentences import Reviewed
from tests.worker.deliveries.conftest import REFERENCE, DeliveryHarness
from tests.worker.engine_stand_in import EngineStandIn, serving_engine


@pytest.fixture
def served() -> Iterator[EngineStandIn]:
    with serving_engine(EngineStandIn("vllm", REFERENCE, known={})) as served:
        yield served


def test_each_server_fetches_it_and_is_checked(delivery: DeliveryHarness, served: EngineStandIn) -> None:
    with serving_engine(EngineStandIn("vllm", REFERENCE, known={})) as second:
        job = delivery.deliver(delivery.engine_destination(served, second), reference=REFERENCE)
        row, name = delivery.delivery(job), job.fine_tuned_model or ""
        assert (row.state, row.error, (row.served_check or {})["verdict"]) == ("delivered", None, "same")
        assert (row.location or {})["paths"] == {each.url: each.loaded[name] for each in (served, second)}
        assert not any("load_lora_adapter" in path for path in served.calls)
    assert list(delivery.shared.iterdir()) == []


def test_a_replaced_name_survives_a_restart(delivery: DeliveryHarness, served: EngineStandIn) -> None:
    delivery.target(delivery.engine_destination(served), served_model="bot")
    for _ in range(2):
        job = delivery.deliver_next(REFERENCE)
        expected = {"bot": str((served.known or {})[job.fine_tuned_model or ""])}
        assert served.loaded == expected
    served.restart()
    delivery.attempt_due(again=True)
    assert served.loaded == expected
    delivery.withdraw(job)
    assert (delivery.delivery(job).state, served.loaded) == ("withdrawn", {})


def test_an_unrecorded_adapter_is_replaced(delivery: DeliveryHarness, served: EngineStandIn) -> None:
    destination = delivery.engine_destination(served)
    destination["urls"].append("http://127.0.0.1:9")
    delivery.deliver(destination, served_model="bot")  # one server is away, so nothing is recorded
    with transaction(delivery.harness.sessions) as session:  # its next attempt, after 5 s, is not part of this
        session.execute(update(Delivery).values(next_attempt_at=leases.expiry(3600.0)))
    second = delivery.deliver_next()
    assert served.loaded["bot"] == str((served.known or {})[second.fine_tuned_model or ""])


def test_a_half_delivered_adapter_is_unloaded(delivery: DeliveryHarness, served: EngineStandIn) -> None:
    with serving_engine(EngineStandIn("vllm", REFERENCE, known={})) as second:
        pass
    job = delivery.deliver(delivery.engine_destination(served, second), served_model="bot", reference=REFERENCE)
    assert list(served.loaded) == ["bot"]
    delivery.delete_model(job)
    with serving_engine(second):
        delivery.attempt_due()
    assert (delivery.delivery(job).state, served.loaded) == ("withdrawn", {})


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
