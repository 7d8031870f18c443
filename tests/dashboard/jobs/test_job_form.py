"""The values of the form become the body of a create call; a repair changes what its error calls for."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from typing import Any

import pytest

from app.cli.job_options import job_body
from app.domain.jobs.create_job import parse_create
from app.domain.jobs.request_parameters import collect
from app.web.pages.jobs import job_form
from app.web.pages.jobs.job_form import FieldError
from tests.api_objects import FINISHED_JOB

VALUES = {
    "model": "tiny",
    "training_file": "file-1",
    "n_epochs": "2",
    "learning_rate": "2e-4",
    "lora.r": "8",
    "suffix": "",
    "lora.experts": "true",
}
BODY: dict[str, Any] = {
    "model": "tiny",
    "training_file": "file-1",
    "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "learning_rate": 2e-4}}},
    "lora": {"r": 8, "experts": True},
}
FAILED = FINISHED_JOB | {"status": "failed"}


def test_empty_fields_are_left_to_the_server() -> None:
    assert job_form.request_body(VALUES) == BODY


def test_more_hyperparameters_stand_among_the_hyperparameters_whatever_their_name() -> None:
    body = job_form.request_body(VALUES | {"more": '{"packing": false, "seed": 3, "lora": {"r": 4}}'})
    own = BODY["method"]["supervised"]["hyperparameters"] | {"packing": False, "seed": 3, "lora": {"r": 4}}
    assert body == BODY | {"method": {"type": "supervised", "supervised": {"hyperparameters": own}}}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"training_file": ""}, "training_file"),
        ({"n_epochs": "x"}, "n_epochs"),
        ({"more": "{"}, "more"),
        ({"more": "[1]"}, "more"),
        ({"more": '{"x": 1e999}'}, "more"),
        ({"more": '{"x": NaN}'}, "more"),
        ({"chat_template_kwargs": "true"}, "chat_template_kwargs"),
        ({"learning_rate": "nan"}, "learning_rate"),
        ({"learning_rate": "1e999"}, "learning_rate"),
        ({"lora.alpha": "inf"}, "lora.alpha"),
    ],
)
def test_an_unusable_value_names_its_field(change: dict[str, str], field: str) -> None:
    with pytest.raises(FieldError) as raised:
        job_form.request_body(VALUES | change)
    assert raised.value.args[0] == field


def test_a_clone_requests_what_its_original_resolved() -> None:
    prefilled = job_form.from_job(FINISHED_JOB)
    body = job_form.request_body(prefilled.values, prefilled.kept)
    method = FINISHED_JOB["method"]["type"]
    resolved = FINISHED_JOB["method"][method]["hyperparameters"]
    requested = body["method"][method]["hyperparameters"]
    assert requested == {
        name: value for name, value in resolved.items() if value is not None and name != "learning_rate_multiplier"
    }
    assert body["seed"] == FINISHED_JOB["seed"]


def test_a_clone_repeats_what_the_form_has_no_field_for() -> None:
    lora = {
        "use_dora": True,
        "experts": True,
        "rank_pattern": {"q_proj": 4},
        "modules_to_save": ["lm_head"],
        "alpha": 0.1234567,
    }
    job = FINISHED_JOB | {
        "lora": FINISHED_JOB["lora"] | lora,
        "quantization": {"bits": 8, "type": None, "double_quant": None, "compute_dtype": "float16"},
        "sample_prompts": ["one\ntwo"],
        "chat_template_kwargs": {"enable_thinking": False},
        "deliver_to": ["staging"],
        "worker_labels": ["h100"],
        "priority": 3,
        "urgent": True,
    }
    prefilled = job_form.from_job(job)
    body = job_form.request_body(prefilled.values, prefilled.kept)
    _, problems = parse_create(body)
    assert problems == []
    request = collect(body)
    assert request.problems == []
    given = {name: one.value for name, one in request.given.items()}
    for name, value in (FINISHED_JOB["lora"] | lora).items():
        assert value in (False, "none", "default", [], {}) or given[f"lora.{name}"] == value
    assert (given["quantization.bits"], given["quantization.compute_dtype"]) == (8, "float16")
    kept = ("chat_template_kwargs", "sample_prompts", "deliver_to", "worker_labels", "priority", "urgent", "metadata")
    assert {name: body[name] for name in kept} == {name: job[name] for name in kept}


@pytest.mark.parametrize(("choice", "quantization"), [("4", "absent"), ("16", None)])
def test_another_quantization_replaces_that_of_the_original(choice: str, quantization: object) -> None:
    prefilled = job_form.from_job(FINISHED_JOB | {"quantization": {"bits": 8}})
    body = job_form.request_body(prefilled.values | {"quantization": choice}, prefilled.kept)
    assert body.get("quantization", "absent") == quantization


@pytest.mark.parametrize(
    ("code", "name", "before", "after"),
    [
        ("out_of_memory", "context_length", "2048", "1024"),
        ("non_finite_loss", "learning_rate", "0.0003", "0.0001"),
        ("invalid_training_file", "training_file", "file-1", ""),
        ("invalid_validation_file", "validation_file", "file-2", ""),
    ],
)
def test_a_repair_changes_what_the_error_calls_for(
    monkeypatch: pytest.MonkeyPatch, code: str, name: str, before: str, after: str
) -> None:
    values = job_form.from_job(FINISHED_JOB).values | {name: before}
    monkeypatch.setattr(job_form, "from_job", lambda job: job_form.Prefilled(dict(values)))
    repaired = job_form.repaired(FAILED | {"error": {"code": code}})
    assert repaired.values == values | {name: after}
    assert len(repaired.changes) == 1


def test_a_repair_of_another_error_changes_nothing_and_says_what_to_change() -> None:
    error = {"code": "invalid_spec", "message": "lora.r is 999.", "param": "lora.r"}
    repaired = job_form.repaired(FAILED | {"error": error | {"remedy": "Change `param`."}})
    assert repaired == replace(job_form.from_job(FAILED), advice=f"{error['message']} Change param.")


def test_a_repair_of_an_evaluation_leaves_it_out() -> None:
    request = {"evaluation": {"file": "file-3", "graders": []}}
    repaired = job_form.repaired(FAILED | {"request": request, "error": {"code": "invalid_evaluation_file"}})
    assert "evaluation" not in repaired.kept
    assert len(repaired.changes) == 1


def test_the_command_line_makes_the_same_body() -> None:
    """Strings and numbers of the body have their option, other settings `--set`."""
    body = BODY | {
        "evaluation": {"file": "file-2"}, "sample_prompts": ["a 'b'"], "deliver_to": [], "worker_labels": ["h100"],
        "metadata": {"team": "a b"}, "urgent": True, "seed": 7, "suffix": "2026", "quantization": None,
        "chat_template_kwargs": {"enable_thinking": False},
    }  # fmt: skip
    _, _, _, *words = shlex.split(job_form.command(body, "http://api.test").replace("\\\n", ""))
    pairs = list(zip(words[2::2], words[3::2], strict=True))
    given: dict[str, Any] = {name[2:].replace("-", "_"): value for name, value in pairs if name != "--set"}
    sets = [value for name, value in pairs if name == "--set"]
    assert job_body(given | {"seed": int(given["seed"])}, sets) == body


def test_the_python_text_compiles_and_puts_extensions_into_extra_body() -> None:
    text = job_form.python(BODY, "http://api.test")
    compile(text, "snippet", "exec")
    assert "extra_body={'lora': {'r': 8, 'experts': True}}" in text


def test_hostile_names_stay_inside_the_quotes_of_curl() -> None:
    body = BODY | {"suffix": "'; rm -rf / #"}
    *_, option, text = shlex.split(job_form.curl(body, "http://api.test").replace("\\\n", ""))
    assert (option, json.loads(text)) == ("-d", body)


@pytest.mark.parametrize(
    ("changed", "body"),
    [
        ({}, {}),
        ({"lora.r": " 4 "}, {"lora": {"r": 4, "alpha": "auto"}}),
        ({"learning_rate": "1e-4", "n_epochs": ""}, {"hyperparameters": {"learning_rate": 1e-4, "n_epochs": "auto"}}),
        (
            {"model": "other"},
            {
                "model": "other",
                "lora": {"target_modules": "auto"},
                "hyperparameters": {"context_length": "auto"},
            },
        ),
    ],
)
def test_a_variant_states_what_differs_and_what_depends_on_it(changed: dict[str, str], body: dict[str, Any]) -> None:
    values = job_form.from_job(FINISHED_JOB).values
    texts = {name: values[name] for name in job_form.VARIED}
    assert job_form.variant(values, texts | changed) == body
    assert job_form.variant(values | {"lora.alpha": "7"}, {"lora.r": "4"}) == {"lora": {"r": 4}}


def test_a_wrong_value_of_a_variant_names_its_field() -> None:
    values = job_form.from_job(FINISHED_JOB).values
    with pytest.raises(FieldError) as caught:
        job_form.variant(values, {"n_epochs": "many"})
    assert caught.value.args[0] == "n_epochs"
