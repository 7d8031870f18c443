"""Deliveries to inference engines: load, check, replace, find again after a restart, withdraw; and what goes wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import pytest
from cryptography.fernet import Fernet

from app.db.deliveries import deliveries
from app.db.engine import transaction
from app.db.jobs import checkpoints
from app.domain.datasets.template_arguments import ChatTemplateArguments
from app.domain.deliveries import targets
from app.domain.deliveries.served_check import ReferencePrompt, ServedReference, Verdict
from tests.sentences import Reviewed
from tests.worker.deliveries.conftest import REFERENCE, DeliveryHarness
from tests.worker.engine_stand_in import BASE, BASE_ROOT, EngineStandIn, serving_engine
from worker.deliveries.outbound import guard_connections

OTHER_KEY = Fernet.generate_key().decode()
KINDS = ("vllm", "sglang")


@pytest.fixture(params=KINDS)
def each_kind(request: pytest.FixtureRequest) -> Iterator[EngineStandIn]:
    with serving_engine(EngineStandIn(request.param, REFERENCE)) as server:
        yield server


SGLANG_TOO = ["vllm", pytest.param("sglang", marks=pytest.mark.extended("the same through SGLang's own calls"))]


@pytest.fixture(params=SGLANG_TOO)
def server(request: pytest.FixtureRequest) -> Iterator[EngineStandIn]:
    with serving_engine(EngineStandIn(request.param, REFERENCE)) as server:
        yield server


@pytest.fixture(params=[*SGLANG_TOO, "plugin"])
def any_server(request: pytest.FixtureRequest) -> Iterator[EngineStandIn]:
    """As `server`, and one that fetches adapters by its plugin, without a shared directory."""
    engine = EngineStandIn("vllm", REFERENCE, known={})
    with serving_engine(engine if request.param == "plugin" else EngineStandIn(request.param, REFERENCE)) as server:
        yield server


@pytest.fixture
def vllm() -> Iterator[EngineStandIn]:
    with serving_engine(EngineStandIn("vllm", REFERENCE)) as server:
        yield server


class TestDelivery:
    def test_an_engine_serves_it_and_is_checked(self, delivery: DeliveryHarness, each_kind: EngineStandIn) -> None:
        job = delivery.deliver(delivery.engine_destination(each_kind), reference=REFERENCE)
        row, name = delivery.delivery(job), job.fine_tuned_model or ""
        assert (row.state, row.error) == ("delivered", None)
        assert each_kind.loaded == {name: (row.location or {})["path"]}
        assert each_kind.configs[name]["base_model_name_or_path"] == (BASE_ROOT if each_kind.kind == "vllm" else BASE)
        check = row.served_check or {}
        assert (check["verdict"], check["difference"], check["tokens"]) == ("same", 0.0, 3)
        assert delivery.harness.messages(job)[-1].endswith(f"{name} (check: same)")

    def test_a_job_without_a_reference_is_unchecked(self, delivery: DeliveryHarness, server: EngineStandIn) -> None:
        job = delivery.deliver(delivery.engine_destination(server))
        check = delivery.delivery(job).served_check or {}
        assert (delivery.delivery(job).state, check["verdict"]) == ("delivered", "unchecked")
        assert "recorded no log-probabilities" in check["reason"]
        assert delivery.harness.messages(job)[-1].endswith("(check: unchecked)")

    def test_a_checkpoint_before_the_result_is_unchecked(
        self, delivery: DeliveryHarness, server: EngineStandIn
    ) -> None:
        target = delivery.target(delivery.engine_destination(server))
        job = delivery.finished_job()
        with transaction(delivery.harness.sessions) as session:
            (result,) = checkpoints.kept(session, job.id)
            result.name = f"{job.fine_tuned_model}:ckpt-step-1"
            deliveries.create(session, job, result, target)
        delivery.attempt_due()
        check = delivery.delivery(job).served_check or {}
        assert (check["verdict"], "earlier checkpoint" in check["reason"]) == ("unchecked", True)

    def test_an_engine_gets_it_again_after_a_restart_only(
        self, delivery: DeliveryHarness, any_server: EngineStandIn
    ) -> None:
        job = delivery.deliver(delivery.engine_destination(any_server), reference=REFERENCE)
        before = dict(any_server.loaded)
        any_server.restart()
        delivery.attempt_due(again=True)
        assert any_server.loaded == before
        assert delivery.harness.messages(job)[-1].startswith("production had lost ")
        any_server.calls.clear()
        delivery.attempt_due(again=True)
        assert any_server.calls == ["/v1/models"]
        assert delivery.delivery(job).next_attempt_at is not None

    def test_an_adapter_of_a_deleted_model_is_gone(self, delivery: DeliveryHarness, any_server: EngineStandIn) -> None:
        job = delivery.deliver(delivery.engine_destination(any_server))
        delivery.withdraw(job)
        assert (delivery.delivery(job).state, any_server.loaded) == ("withdrawn", {})

    def test_a_served_name_is_replaced_after_a_check(self, delivery: DeliveryHarness, each_kind: EngineStandIn) -> None:
        """vLLM's `load_inplace` leaves no gap, but then reads the adapter from disk at each step."""
        delivery.deliver(delivery.engine_destination(each_kind), served_model="bot", reference=REFERENCE)
        first, respond, steps = each_kind.loaded["bot"], each_kind.respond, []

        def record(method: str, path: str, body: dict[str, Any], key: str | None) -> tuple[int, Any]:
            doing = next((each for each in ("unload", "load") if f"/{each}_lora" in path), "check")
            names = {body.get(key) for key in ("lora_name", "lora_path", "model")} & {"bot", job.fine_tuned_model}
            steps.extend((doing, name) for name in names)
            assert "load_inplace" not in body
            return respond(method, path, body, key)

        each_kind.respond = record  # type: ignore[method-assign]
        job = delivery.finished_job("production", reference=REFERENCE)
        delivery.attempt_due()
        assert list(each_kind.loaded) == ["bot"]
        assert each_kind.loaded["bot"] == (delivery.delivery(job).location or {})["path"] != first
        name = job.fine_tuned_model
        assert [step for step, _ in groupby(steps)] == [
            ("load", name), ("check", name), ("unload", "bot"), ("load", "bot"), ("check", "bot"), ("unload", name),
        ]  # fmt: skip
        gap = re.fullmatch(
            r"Delivered to production as bot \(check: same\); it replaced another one in (\d\.\d{3}) s",
            delivery.harness.messages(job)[-1],
        )
        assert gap is not None
        assert 0 < float(gap[1]) < 1

    def test_the_engine_path_replaces_the_shared_path(self, delivery: DeliveryHarness, vllm: EngineStandIn) -> None:
        (delivery.shared / "alias").symlink_to(".")
        delivery.deliver(delivery.engine_destination(vllm, engine_path=str(delivery.shared / "alias")))
        assert all(path.startswith(f"{delivery.shared}/alias/") for path in vllm.loaded.values())


class TestCheck:
    def test_an_engine_that_serves_the_base_model_fails_the_delivery(
        self, delivery: DeliveryHarness, any_server: EngineStandIn
    ) -> None:
        any_server.has_no_effect = True
        job = delivery.deliver(delivery.engine_destination(any_server), reference=REFERENCE)
        row = delivery.delivery(job)
        assert (row.state, (row.served_check or {})["verdict"]) == ("failed", Verdict.NO_EFFECT)
        assert "answers for" in delivery.error(job)
        assert 'POST /v1/fine_tuning/jobs/JOB/exports {"type": "merged"}' in delivery.error(job)
        assert any_server.loaded == {}

    @pytest.mark.parametrize(("fails", "state"), [("load", "pending"), ("check", "pending"), ("verdict", "failed")])
    def test_a_failure_under_the_served_name_alone_brings_the_adapter_before_back(
        self, delivery: DeliveryHarness, server: EngineStandIn, fails: str, state: str
    ) -> None:
        delivery.deliver(delivery.engine_destination(server), served_model="bot", reference=REFERENCE)
        served, respond, refused = dict(server.loaded), server.respond, []

        def fail(method: str, path: str, body: dict[str, Any], key: str | None) -> tuple[int, Any]:
            is_load = "/load_lora" in path and (body["lora_name"], body["lora_path"]) != ("bot", served["bot"])
            is_check = "lora" not in path and "bot" in (body.get("model"), body.get("lora_path"))
            server.difference = 0.1 if fails == "verdict" and is_check else 0.0
            if (fails == "load" and is_load and body["lora_name"] == "bot") or (fails == "check" and is_check):
                refused.append(dict(server.loaded))
                return 500, {"error": {"message": "busy"}}
            return respond(method, path, body, key)

        server.respond = fail  # type: ignore[method-assign]
        job = delivery.deliver_next(REFERENCE)
        assert (delivery.delivery(job).state, server.loaded) == (state, served)
        assert all(each.get("bot") != served["bot"] for each in refused)  # it was replaced, or at least unloaded

    def test_an_adapter_that_the_engine_scales_wrongly_is_not_delivered(
        self, delivery: DeliveryHarness, each_kind: EngineStandIn, reviewed: Reviewed
    ) -> None:
        delivery.target(delivery.engine_destination(each_kind))
        job = delivery.finished_job("production")
        entry = {
            "ok": False,
            "reasons": ["Wrong answers without an error: its scale (read)"],
            "instead": {"path": "/v1/fine_tuning/jobs/x/exports", "body": {"type": "merged"}},
        }
        delivery.record_compatibility(job, {each_kind.kind: entry})
        delivery.attempt_due()
        row = delivery.delivery(job)
        assert row.state == "failed"
        reviewed(delivery.error(job))
        assert each_kind.calls == []


class TestCheckByAnswers:
    """An engine without log-probabilities of prompts is asked for answers, up to where they differ."""

    LONG = ServedReference(
        dtype="bfloat16",
        source="validation_file",
        noise=0.002,
        top1_agreement=1.0,
        prompts=[
            ReferencePrompt(
                tokens=[number, 1, *range(10, 22), 2, 5],
                positions=[*range(2, 14), 15],
                base=[-0.3, -4.0, *[-3.0] * 11],
                adapter=[-0.1] * 13,
                top=[*range(10, 22), 5],
                messages=[{"role": "user", "content": str(number)}],
                chat_template_kwargs=ChatTemplateArguments(enable_thinking=False) if number else None,
                answer=[f"<{token}>" for token in range(10, 22)],
            )
            for number in range(3)
        ],
    )

    def check(self, delivery: DeliveryHarness, server: EngineStandIn, **changes: Any) -> tuple[str, dict[str, Any]]:
        """(state of the delivery, its check)."""
        reference = changes.pop("reference", self.LONG)
        server.has_prompt_logprobs, server.reference = False, reference
        for name, value in changes.items():
            setattr(server, name, value)
        delivery.target(delivery.engine_destination(server))
        job = delivery.finished_job("production", reference=reference)
        delivery.attempt_due()
        row = delivery.delivery(job)
        return row.state, row.served_check or {}

    @pytest.mark.parametrize("method", ["answer", "chat"])
    def test_the_first_answer_is_compared(
        self, delivery: DeliveryHarness, each_kind: EngineStandIn, method: str
    ) -> None:
        """A chat is asked where nothing else is answered."""
        state, check = self.check(delivery, each_kind, is_chat_only=method == "chat")
        assert (state, check["verdict"], check["method"], check["difference"]) == ("delivered", "same", method, 0)
        assert check["tokens"] == 3 * 12  # without the second answer of the conversation
        assert check["engine_effect"] == pytest.approx(check["trainer_effect"])  # where the base is known: two tokens

    @pytest.mark.parametrize("is_chat_only", [False, True])
    @pytest.mark.parametrize(
        ("fault", "verdict"), [({"has_no_effect": True}, Verdict.NO_EFFECT), ({"difference": 0.1}, Verdict.DIFFERS)]
    )
    def test_answers_tell_a_wrong_adapter(
        self, delivery: DeliveryHarness, server: EngineStandIn, fault: Any, verdict: Verdict, is_chat_only: bool
    ) -> None:
        state, check = self.check(delivery, server, is_chat_only=is_chat_only, **fault)
        assert (state, check["verdict"], server.loaded) == ("failed", verdict, {})

    def test_answers_of_other_tokens_decide_nothing(self, delivery: DeliveryHarness, server: EngineStandIn) -> None:
        prompts = [each.model_copy(update={"top": [8, *each.top[1:]]}) for each in self.LONG.prompts]
        state, check = self.check(delivery, server, reference=self.LONG.model_copy(update={"prompts": prompts}))
        assert (state, check["verdict"], check["tokens"]) == ("delivered", Verdict.UNCLEAR, 0)

    @pytest.mark.parametrize(("without_messages", "state", "tokens"), [(1, "delivered", 2 * 12), (3, "pending", None)])
    def test_a_chat_skips_prompts_without_messages(
        self, delivery: DeliveryHarness, server: EngineStandIn, without_messages: int, state: str, tokens: int | None
    ) -> None:
        unknown = [each.model_copy(update={"messages": None}) for each in self.LONG.prompts[:without_messages]]
        prompts = [*unknown, *self.LONG.prompts[without_messages:]]
        reference = self.LONG.model_copy(update={"prompts": prompts})
        found, check = self.check(delivery, server, is_chat_only=True, reference=reference)
        assert (found, check.get("tokens"), len(server.loaded)) == (state, tokens, state == "delivered")


class TestFaults:
    def failed_attempt(self, delivery: DeliveryHarness, server: EngineStandIn, **changes: Any) -> str:
        """Deliver to a faulty server; the delivery stays pending. Returns its error."""
        job = delivery.deliver(delivery.engine_destination(server, **changes), reference=REFERENCE)
        row = delivery.delivery(job)
        assert row.state == "pending"
        assert row.next_attempt_at is not None
        assert row.error is not None
        assert row.error in delivery.harness.messages(job)[-1]
        return delivery.error(job)

    def test_an_engine_that_is_away_for_a_day_gets_it_when_it_is_back(self, delivery: DeliveryHarness) -> None:
        """Time passes by making the next attempt due: the sum of the delays is the time that has passed."""
        with serving_engine(EngineStandIn("vllm", REFERENCE)) as server:
            pass
        delivery.target(delivery.engine_destination(server))
        job = delivery.finished_job("production", reference=REFERENCE)
        passed_seconds = 0.0
        while passed_seconds < 86_400:
            delivery.attempt_due()
            row = delivery.delivery(job)
            assert (row.state, row.error is not None) == ("pending", True)
            passed_seconds += targets.retry_delay_seconds(row.tries, 0.0) or 0.0
            delivery.make_due()
        messages = [each for each in delivery.harness.messages(job) if "is not reachable" in each]
        assert len(messages) == 1  # the same reason is one event, not one for each attempt
        with serving_engine(server):
            delivery.attempt_due()
        assert (delivery.delivery(job).state, len(server.loaded)) == ("delivered", 1)

    @pytest.mark.parametrize("files", ["one directory", "two directories", "plugin"])
    def test_two_targets_do_not_take_a_name_from_each_other(self, delivery: DeliveryHarness, files: str) -> None:
        """They may be of two servers of Tunery; here both are in one database."""
        with serving_engine(EngineStandIn("vllm", REFERENCE, known={} if files == "plugin" else None)) as engine:
            ours = theirs = delivery.engine_destination(engine)
            if files == "two directories":
                (delivery.shared / "others").mkdir()
                theirs = ours | {"shared_path": str(delivery.shared / "others")}
            delivery.target(theirs, "theirs", served_model="bot")
            first = delivery.deliver(ours, served_model="bot", reference=REFERENCE)
            served = engine.loaded["bot"]
            other = delivery.finished_job("theirs", reference=REFERENCE)
            for _ in range(2):
                delivery.attempt_due(again=True)
            assert (delivery.delivery(first).state, engine.loaded["bot"]) == ("delivered", served)
        assert (delivery.delivery(other).state, "choose another" in delivery.error(other)) == ("pending", True)
        assert not any("had lost" in each for each in delivery.harness.messages(first))

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"api_key": "right"}, "credentials.api_key"),
            ({"fault": (307, {"location": "http://169.254.169.254/latest/meta-data"}, "")}, "is a redirect"),
        ],
        ids=["key", "redirect"],
    )
    def test_a_refused_key_and_a_redirect_are_named(
        self, delivery: DeliveryHarness, server: EngineStandIn, changes: dict[str, Any], text: str
    ) -> None:
        vars(server).update(changes)
        assert text in self.failed_attempt(delivery, server)

    def test_a_private_address_must_be_allowed(self, delivery: DeliveryHarness, server: EngineStandIn) -> None:
        with guard_connections(()):
            assert "TUNERY_DELIVERY_ALLOWED_NETWORKS" in self.failed_attempt(delivery, server)
        assert server.calls == []

    def test_vllm_without_runtime_updating_is_named(self, delivery: DeliveryHarness, vllm: EngineStandIn) -> None:
        respond = vllm.respond
        vllm.respond = lambda method, path, body, key: (  # type: ignore[method-assign]
            (404, {"detail": "Not Found"}) if "lora" in path else respond(method, path, body, key)
        )
        assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True" in self.failed_attempt(delivery, vllm)

    def test_a_name_served_from_elsewhere_is_kept(self, delivery: DeliveryHarness, any_server: EngineStandIn) -> None:
        any_server.loaded["bot"] = "/elsewhere/bot"
        job = delivery.deliver(delivery.engine_destination(any_server), served_model="bot")
        assert "/elsewhere/bot" in delivery.error(job)
        assert any_server.loaded["bot"] == "/elsewhere/bot"

    def test_a_version_that_failed_its_check_is_withdrawn(self, delivery: DeliveryHarness, vllm: EngineStandIn) -> None:
        job = delivery.deliver(delivery.engine_destination(vllm))
        model = job.fine_tuned_model or ""
        vllm.loaded[model] = f"{delivery.shared}/.tunery/{model}/0123456789abcdef"
        delivery.withdraw(job)
        assert (delivery.delivery(job).state, vllm.loaded) == ("withdrawn", {})

    def test_an_engine_that_is_away_keeps_the_withdrawal_waiting(self, delivery: DeliveryHarness) -> None:
        with serving_engine(EngineStandIn("vllm")) as server:
            job = delivery.deliver(delivery.engine_destination(server))
        delivery.withdraw(job)
        row = delivery.delivery(job)
        assert (row.state, row.error is not None) == ("withdrawing", True)
        with serving_engine(server):
            delivery.attempt_due(again=True)
        assert (delivery.delivery(job).state, server.loaded) == ("withdrawn", {})

    @pytest.mark.parametrize("keys", ["", OTHER_KEY], ids=["no-key", "another-key"])
    def test_lost_credentials_use_up_no_try(self, delivery: DeliveryHarness, vllm: EngineStandIn, keys: str) -> None:
        delivery.target(delivery.engine_destination(vllm), secrets={"api_key": "x"})
        job, sender = delivery.finished_job("production"), delivery.sender
        right = sender.settings
        sender.settings = right.model_copy(update={"secret_keys": type(right.secret_keys)(keys)})
        for _ in range(len(targets.RETRY_SECONDS) + 2):
            delivery.attempt_due(again=True)
        row = delivery.delivery(job)
        assert (row.state, row.tries, vllm.loaded) == ("pending", 0, {})
        assert "TUNERY_SECRET_KEYS" in delivery.error(job)
        assert sum("TUNERY_SECRET_KEYS" in message for message in delivery.harness.messages(job)) == 1
        sender.settings = right
        delivery.attempt_due(again=True)
        row = delivery.delivery(job)
        assert (row.state, row.error) == ("delivered", None)

    def test_the_last_attempt_fails(self, delivery: DeliveryHarness, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(targets, "RETRY_SECONDS", (0.0,))
        with serving_engine(EngineStandIn("vllm")) as server:
            pass
        job = delivery.deliver(delivery.engine_destination(server))
        row = delivery.delivery(job)
        assert (row.state, row.attempt) == ("failed", 2)
        assert row.next_attempt_at is None


def test_a_target_has_one_attempt_at_a_time(delivery: DeliveryHarness, vllm: EngineStandIn) -> None:
    delivery.target(delivery.engine_destination(vllm))
    delivery.finished_job("production")
    delivery.finished_job("production")
    assert len(delivery.sender.claim(10)) == 1
    assert delivery.sender.claim(10) == []
