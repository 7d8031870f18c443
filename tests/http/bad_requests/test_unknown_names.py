"""Unknown keys of a body: the error names the most similar known one, for the first ten problems."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from app.domain.error_text import json_text
from app.domain.error_text.json_text import MAX_NAME_CHARACTERS, MAX_SUGGESTIONS
from tests.http.conftest import Upload

JOBS = "/v1/fine_tuning/jobs"
GRADER = {"type": "string_check", "name": "g", "input": "a", "reference": "b", "operation": "eq"}


@pytest.mark.parametrize(
    ("body", "param", "meant"),
    [
        ({"sufix": "x"}, "sufix", "suffix"),
        ({"hyperparameters": {"n_epoch": 2}}, "hyperparameters.n_epoch", "n_epochs"),
        ({"lora": {"alpa": 2}}, "lora.alpa", "alpha"),
        ({"quantization": {"bit": 4}}, "quantization.bit", "bits"),
        ({"method": {"type": "dpo", "dpo": {"hyperparameter": {}}}}, "method.dpo.hyperparameter", "hyperparameters"),
        ({"hyperparameters": {"early_stopping": {"pacience": 1}}}, "early_stopping.pacience", "patience"),
        ({"evaluation": {"file": "f", "graders": [GRADER | {"refrence": "x"}]}}, "graders.0.refrence", "reference"),
        ({"zzzz": 1}, "zzzz", None),
    ],
)
def test_the_similar_name_is_suggested(
    client: TestClient, base_model: str, training_file: str, body: dict[str, Any], param: str, meant: str | None
) -> None:
    error = client.post(JOBS, json={"model": base_model, "training_file": training_file} | body).json()["error"]
    assert error["code"] == "unknown_parameter"
    assert error["param"].endswith(param)
    assert ("did you mean" in error["message"]) == (meant is not None)
    assert meant is None or f'(did you mean "{meant}"?)' in error["message"]


def test_the_similar_name_of_a_form_field_is_suggested(upload: Upload) -> None:
    assert '(did you mean "purpose"?)' in upload(purpos="evals").json()["error"]["message"]


@pytest.mark.parametrize("place", [None, "hyperparameters", "lora"])
def test_many_unknown_names_cost_ten_short_searches(
    client: TestClient, base_model: str, training_file: str, place: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, searched = json_text.get_close_matches, list[str]()

    def counted(name: str, known: Any, n: int) -> list[str]:
        searched.append(name)
        return search(name, known, n)

    monkeypatch.setattr(json_text, "get_close_matches", counted)
    names = {f"n_epoch{'s' * 500}{number}": 1 for number in range(1_000)}
    body = {"model": base_model, "training_file": training_file} | ({place: names} if place else names)
    error = client.post(JOBS, json=body).json()["error"]
    assert error["code"] == "unknown_parameter"
    assert len(searched) == MAX_SUGGESTIONS
    assert max(map(len, searched)) <= MAX_NAME_CHARACTERS
