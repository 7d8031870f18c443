from __future__ import annotations

from typing import Any

import pytest

from app.cli.client.job_request import build_job_body, target_modules
from app.cli.errors import UsageError


def body(**given: Any) -> dict[str, Any]:
    nothing: dict[str, Any] = {
        "model": "m", "training_file": "file-1", "validation_file": None, "suffix": None, "seed": None,
        "hyperparameters": {}, "lora": {}, "no_quantization": False, "settings": (), "metadata": (),
    }  # fmt: skip
    return build_job_body(**nothing | given)


def test_what_is_not_given_is_absent_so_that_the_server_decides() -> None:
    assert body(lora={"r": None}, hyperparameters={"n_epochs": None}) == {"model": "m", "training_file": "file-1"}


def test_hyperparameters_go_where_openai_has_them() -> None:
    asked = body(hyperparameters={"n_epochs": 2}, settings=["warmup_ratio=0.1", "packing=false"])
    hyperparameters = {"n_epochs": 2, "warmup_ratio": 0.1, "packing": False}
    assert asked["method"] == {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


def test_a_dotted_name_sets_a_key_of_lora_or_quantization() -> None:
    asked = body(lora={"r": 8}, settings=["lora.use_rslora=true", "quantization.type=fp4"])
    assert asked["lora"] == {"r": 8, "use_rslora": True}
    assert asked["quantization"] == {"type": "fp4"}


def test_no_quantization_is_an_explicit_null() -> None:
    asked = body(no_quantization=True)
    assert "quantization" in asked
    assert asked["quantization"] is None


def test_metadata_stays_text() -> None:
    assert body(metadata=["team=support", "ticket=42", "note=a=b"])["metadata"] == {
        "team": "support",
        "ticket": "42",
        "note": "a=b",
    }


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"settings": ["warmup_ratio"]}, "not of the form"),
        ({"metadata": ["=x"]}, "not of the form"),
        ({"settings": ["n_epochs=3"], "hyperparameters": {"n_epochs": 2}}, "contradicts 2"),
        ({"no_quantization": True, "settings": ["quantization.type=fp4"]}, "contradict each other"),
    ],
)
def test_a_contradiction_is_refused_here(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        body(**given)


@pytest.mark.parametrize(
    ("text", "meant"), [(None, None), ("all-linear", "all-linear"), ("q_proj, v_proj", ["q_proj", "v_proj"])]
)
def test_target_modules_are_a_word_or_names(text: str | None, meant: object) -> None:
    assert target_modules(text) == meant


def test_another_method_has_the_hyperparameters() -> None:
    asked = body(method="dpo", hyperparameters={"n_epochs": 2}, settings=["beta=0.2"])
    assert asked["method"] == {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 2, "beta": 0.2}}}
    assert body(method="dpo")["method"] == {"type": "dpo", "dpo": {"hyperparameters": {}}}
