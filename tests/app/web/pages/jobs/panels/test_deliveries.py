"""The check of what a target serves, as the page of a job shows it."""

from __future__ import annotations

import pytest

from app.domain.deliveries.served_check import Verdict
from app.web.pages.jobs.panels.deliveries import VERDICTS, delivery_row
from tests.api_objects import DELIVERY


@pytest.mark.parametrize("verdict", Verdict)
def test_every_verdict_has_a_text(verdict: Verdict) -> None:
    assert verdict in VERDICTS


def test_an_unchecked_one_has_its_reason_in_place_of_numbers() -> None:
    check = DELIVERY["check"] | {"verdict": "unchecked", "tokens": 0, "reason": "the trainer recorded nothing"}
    shown = delivery_row(DELIVERY | {"check": check})["check"]
    assert shown == {"text": "nothing to compare with", "tone": "warn", "sub": "the trainer recorded nothing"}
    assert "difference 0.0017" in delivery_row(DELIVERY)["check"]["sub"]


@pytest.mark.parametrize(("status", "buttons"), [("delivered", 1), ("failed", 1), ("pending", 1), ("withdrawing", 0)])
def test_what_is_not_withdrawn_can_be(status: str, buttons: int) -> None:
    assert len(delivery_row(DELIVERY | {"status": status})["target"]["buttons"]) == buttons
