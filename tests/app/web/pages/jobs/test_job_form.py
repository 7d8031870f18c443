"""The values of the form become the body of a create call; a repair changes what its error calls for."""

from __future__ import annotations

import shlex

import pytest

from app.api.openapi.examples.all_operations import FINISHED_JOB
from app.cli.client.job_request import build_job_body
from app.web.pages.jobs import job_form, request_snippets
from app.web.pages.jobs.job_form import FieldError

VALUES = {"model": "tiny", "training_file": "file-1", "n_epochs": "2", "learning_rate": "2e-4", "r": "8", "suffix": ""}
BODY = {
    "model": "tiny",
    "training_file": "file-1",
    "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "learning_rate": 2e-4}}},
    "lora": {"r": 8},
}
FAILED = FINISHED_JOB | {"status": "failed"}


def test_empty_fields_are_left_to_the_server() -> None:
    assert job_form.request_body(VALUES) == BODY


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"training_file": ""}, "training_file"),
        ({"n_epochs": "x"}, "n_epochs"),
        ({"more": "{"}, "more"),
        ({"more": "[1]"}, "more"),
    ],
)
def test_an_unusable_value_names_its_field(change: dict[str, str], field: str) -> None:
    with pytest.raises(FieldError) as raised:
        job_form.request_body(VALUES | change)
    assert raised.value.field == field


def test_a_clone_requests_what_its_original_resolved() -> None:
    body = job_form.request_body(job_form.from_job(FINISHED_JOB))
    method = FINISHED_JOB["method"]["type"]
    resolved = FINISHED_JOB["method"][method]["hyperparameters"]
    requested = body["method"][method]["hyperparameters"]
    assert requested == {
        name: value for name, value in resolved.items() if value is not None and name != "learning_rate_multiplier"
    }
    assert body["seed"] == FINISHED_JOB["seed"]


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
    values = job_form.from_job(FINISHED_JOB) | {name: before}
    monkeypatch.setattr(job_form, "from_job", lambda job: dict(values))
    repaired = job_form.repaired(FAILED | {"error": {"code": code}})
    assert repaired.values == values | {name: after}
    assert len(repaired.changes) == 1


def test_a_repair_of_another_error_changes_nothing() -> None:
    repaired = job_form.repaired(FAILED | {"error": {"code": "server_error"}})
    assert repaired == job_form.Prefilled(job_form.from_job(FAILED), [])


def test_the_command_line_makes_the_same_body() -> None:
    words = shlex.split(request_snippets.command(BODY, "http://api.test").replace("\\\n", ""))
    settings = [words[index + 1] for index, word in enumerate(words) if word == "--set"]
    made = build_job_body("tiny", "file-1", None, None, None, {}, {}, False, settings, [])
    assert made == BODY


def test_the_python_text_compiles_and_puts_extensions_into_extra_body() -> None:
    text = request_snippets.python(BODY, "http://api.test")
    compile(text, "snippet", "exec")
    assert "extra_body={'lora': {'r': 8}}" in text


def test_hostile_names_stay_inside_the_quotes_of_curl() -> None:
    words = shlex.split(
        request_snippets.curl(BODY | {"suffix": "'; rm -rf / #"}, "http://api.test").replace("\\\n", "")
    )
    assert words[-2] == "-d"
    assert "'; rm -rf / #" in words[-1]
