"""The settings as a request asked for them, by the names of the resolved ones."""

from __future__ import annotations

from typing import Any

import pytest

from app.web.pages.jobs.panels.configuration import asked_values
from tests.api_objects import NEW_JOB


@pytest.mark.parametrize(
    ("request_body", "asked"),
    [
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": "auto"}}}}, {"method": "dpo", "beta": "auto"}),
        ({"hyperparameters": {"n_epochs": 2}, "seed": 0}, {"n_epochs": 2, "seed": 0}),
        ({"hyperparameters": {"lora_r": 8}}, {"lora.r": 8}),
        ({"lora": {"rank": 8}, "quantization": None}, {"lora.r": 8, "quantization": "none"}),
        ({}, {}),
        (None, {}),
    ],
)
def test_values_have_the_names_of_the_resolved_settings(request_body: Any, asked: dict[str, Any]) -> None:
    assert asked_values(NEW_JOB | {"request": request_body}) == asked
