"""Engines that fail in the middle: one server of several, the check itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from app.db.deliveries import deliveries
from app.db.engine import transaction
from app.db.tables import Delivery
from app.domain.artifacts.engines import compatibility
from app.domain.deliveries.served_check import ServedPrompt, Verdict, judge
from app.domain.jobs.spec import LoraSpec
from tests.dripping import dripping
from tests.sentences import Reviewed
from tests.worker.deliveries.conftest import REFERENCE, DeliveryHarness
from tests.worker.deliveries.test_engines import SGLANG_TOO
from tests.worker.engine_stand_in import EngineStandIn, serving_engine
from worker.deliveries.engines import Served, delivered

OTHER_FORMS = ("{}", '{"data": null}', '{"data": [{"object": "model"}]}', "[]")


def fail_checks(server: EngineStandIn, status: int, body: Any) -> None:
    respond = server.respond
    server.respond = lambda method, path, sent, key: (  # type: ignore[method-assign]
        (status, body) if path in ("/v1/completions", "/generate") else respond(method, path, sent, key)
    )


class TestServers:
    @pytest.mark.parametrize("away", [0, 1])
    def test_a_restarted_server_gets_it_while_another_one_is_away(self, delivery: DeliveryHarness, away: int) -> None:
        engines = [EngineStandIn("vllm", REFERENCE), EngineStandIn("vllm", REFERENCE)]
        with serving_engine(engines[1 - away]) as restarted:
            with serving_engine(engines[away]):
                job = delivery.deliver(delivery.engine_destination(*engines), reference=REFERENCE)
            before = dict(restarted.loaded)
            restarted.restart()
            delivery.attempt_due(again=True)
            assert restarted.loaded == before
        row = delivery.delivery(job)
        assert (row.state, row.next_attempt_at is not None) == ("delivered", True)
        assert "1 of 2" in delivery.error(job)

    def test_a_server_that_is_away_is_named(self, delivery: DeliveryHarness, reviewed: Reviewed) -> None:
        with serving_engine(EngineStandIn("vllm")) as first:
            with serving_engine(EngineStandIn("vllm")) as second:
                job = delivery.deliver(delivery.engine_destination(first, second))
            first.calls.clear()
            delivery.attempt_due(again=True)
            assert first.calls == ["/v1/models"]
        reviewed(delivery.error(job))


@pytest.mark.parametrize("kind", SGLANG_TOO)
def test_two_targets_of_one_engine_serve_one_adapter_under_their_names(delivery: DeliveryHarness, kind: Any) -> None:
    with serving_engine(EngineStandIn(kind, REFERENCE)) as engine:
        delivery.target(delivery.engine_destination(engine))
        delivery.target(delivery.engine_destination(engine), "other", served_model="bot")
        job = delivery.finished_job("production", "other", reference=REFERENCE)
        delivery.attempt_due()
        name = job.fine_tuned_model or ""
        assert engine.loaded.keys() == {name, "bot"}
        assert f"/{name}/" in engine.loaded[name]
        with transaction(delivery.harness.sessions) as session:
            row = session.scalars(select(Delivery).where(Delivery.served_model == "bot")).one()
            deliveries.withdraw(session, row)
        delivery.attempt_due()
        assert list(engine.loaded) == [name]


def test_the_check_of_the_server_that_differs_is_shown() -> None:
    same = judge(REFERENCE, [ServedPrompt(each.base, each.adapter, each.top) for each in REFERENCE.prompts])
    unclear = same.model_copy(update={"verdict": Verdict.UNCLEAR, "tokens": 0})
    for first, second in ((same, unclear), (unclear, same)):
        found = delivered({}, [Served(first, 0.01), Served(second, 0.02)])
        assert (found.check, found.gap_seconds) == (unclear, 0.02)


class TestCheck:
    @pytest.mark.parametrize("kind", SGLANG_TOO)
    @pytest.mark.parametrize("status", [200, 500])
    @pytest.mark.parametrize("served_model", [None, "bot"])
    def test_an_adapter_that_cannot_be_checked_is_not_served(
        self, delivery: DeliveryHarness, kind: Any, status: int, served_model: str | None
    ) -> None:
        with serving_engine(EngineStandIn(kind, REFERENCE)) as server:
            fail_checks(server, status, {"choices": [{"text": "x", "logprobs": None}]})
            job = delivery.deliver(delivery.engine_destination(server), served_model=served_model, reference=REFERENCE)
            assert (delivery.delivery(job).state, server.loaded) == ("pending", {})

    def test_a_checked_adapter_stays_while_its_server_cannot_be_asked_again(self, delivery: DeliveryHarness) -> None:
        with (
            serving_engine(EngineStandIn("vllm", REFERENCE)) as slow,
            serving_engine(EngineStandIn("vllm", REFERENCE)) as restarted,
        ):
            delivery.deliver(delivery.engine_destination(slow, restarted), reference=REFERENCE)
            before = dict(slow.loaded)
            restarted.restart()
            fail_checks(slow, 500, {"error": {"message": "busy"}})
            delivery.attempt_due(again=True)
            assert slow.loaded == restarted.loaded == before


@pytest.mark.parametrize("known", [None, {}], ids=["directory", "plugin"])
def test_a_rank_limit_that_is_too_low_names_the_option(
    delivery: DeliveryHarness, known: dict[str, Path] | None, reviewed: Reviewed
) -> None:
    with serving_engine(EngineStandIn("vllm", REFERENCE, max_lora_rank=8, known=known)) as server:
        delivery.target(delivery.engine_destination(server))
        job = delivery.finished_job("production", reference=REFERENCE)
        lora = LoraSpec.model_validate(job.spec["lora"])
        delivery.record_compatibility(job, compatibility(lora, job.id).model_dump(mode="json"))
        delivery.attempt_due()
        reviewed(delivery.error(job))


def test_a_path_that_the_server_does_not_see_is_named(delivery: DeliveryHarness, reviewed: Reviewed) -> None:
    with serving_engine(EngineStandIn("vllm", REFERENCE)) as server:
        job = delivery.deliver(delivery.engine_destination(server, engine_path="/not-mounted"), reference=REFERENCE)
        reviewed(delivery.error(job))


class TestOtherAnswers:
    """`urls` lead to something else than the engine."""

    @pytest.mark.parametrize(
        "answer",
        [
            "<html>hello</html>",
            '{"data": ["x"]}',
            *(pytest.param(each, marks=pytest.mark.extended("another form")) for each in OTHER_FORMS),
        ],
    )
    def test_a_server_that_is_no_engine_is_named(self, delivery: DeliveryHarness, answer: str) -> None:
        with (
            serving_engine(EngineStandIn("vllm", REFERENCE)) as engine,
            serving_engine(EngineStandIn("vllm", fault=(200, {}, answer))) as other,
        ):
            job = delivery.deliver(delivery.engine_destination(other, engine), reference=REFERENCE)
            assert "something else" in delivery.error(job)
            assert list(engine.loaded) == [job.fine_tuned_model]

    def test_a_list_without_a_base_model_is_named(self, delivery: DeliveryHarness, reviewed: Reviewed) -> None:
        with serving_engine(EngineStandIn("vllm", fault=(200, {}, '{"data": []}'))) as empty:
            job = delivery.deliver(delivery.engine_destination(empty), reference=REFERENCE)
            reviewed(delivery.error(job))

    @pytest.mark.parametrize("entry", [{"9": {"logprob": -1.0, "rank": 2}}, []])
    def test_log_probabilities_of_another_form_are_not_used(self, delivery: DeliveryHarness, entry: Any) -> None:
        with serving_engine(EngineStandIn("vllm", REFERENCE)) as server:
            fail_checks(server, 200, {"choices": [{"text": "x", "prompt_logprobs": [None, entry, entry, entry]}]})
            job = delivery.deliver(delivery.engine_destination(server), reference=REFERENCE)
            assert "returns no log-probabilities" in delivery.error(job)


class TestSlowAnswers:
    @pytest.mark.parametrize("drips", ["headers", "body", "nothing"])
    def test_a_response_that_does_not_end_is_given_up(self, delivery: DeliveryHarness, drips: str) -> None:
        delivery.sender.settings = delivery.sender.settings.model_copy(update={"delivery_timeout_seconds": 0.3})
        with dripping(drips) as url:
            job = delivery.deliver({"kind": "vllm", "urls": [url], "shared_path": str(delivery.shared)})
        row = delivery.delivery(job)
        assert (row.state, row.next_attempt_at is not None) == ("pending", True)
        assert "TUNERY_DELIVERY_TIMEOUT_SECONDS" in delivery.error(job)

    @pytest.mark.parametrize("kind", ["s3", "huggingface"])
    def test_an_attempt_has_a_limit_of_its_own(self, delivery: DeliveryHarness, kind: str) -> None:
        """Each of its requests ends in time, or never would: the timeout of the library begins anew with every byte."""
        delivery.sender.settings = delivery.sender.settings.model_copy(update={"delivery_attempt_seconds": 0.5})
        with dripping("headers") as url:
            place = {"bucket": "adapters"} if kind == "s3" else {"repo_id": "me/adapters"}
            secrets = {"token": "x"} if kind != "s3" else {"access_key_id": "x", "secret_access_key": "x"}
            job = delivery.deliver({"kind": kind, "endpoint_url": url} | place, secrets=secrets)
        row = delivery.delivery(job)
        assert row.state == "pending"
        assert "TUNERY_DELIVERY_ATTEMPT_SECONDS" in delivery.error(job)
