from __future__ import annotations

from typing import Any

import pytest

from app.cli.errors import UsageError
from app.cli.job_options import job_body
from app.cli.main import app as command_line
from tests.commands.conftest import Tunery, command_tree

FILE = {"model": "m", "training_file": "file-1"}


def test_what_is_not_given_is_absent_so_that_the_server_decides() -> None:
    assert job_body(FILE | {"lora.r": None, "n_epochs": None, "deliver_to": []}) == FILE


def test_hyperparameters_go_where_openai_has_them_and_into_its_older_place_for_a_clone() -> None:
    hyperparameters = {"n_epochs": 2, "warmup_ratio": 0.1, "packing": False}
    given, assignments = FILE | {"n_epochs": 2}, ["warmup_ratio=0.1", "packing=false"]
    method = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    assert job_body(given, assignments) == FILE | {"method": method}
    assert job_body(given, assignments, is_clone=True) == FILE | {"hyperparameters": hyperparameters}


def test_a_dotted_name_sets_a_key_of_lora_or_quantization() -> None:
    body = job_body(FILE | {"lora.r": 8}, ["lora.use_rslora=true", "quantization.type=fp4"])
    assert body["lora"] == {"r": 8, "use_rslora": True}
    assert body["quantization"] == {"type": "fp4"}


def test_a_whole_object_goes_where_it_contradicts_no_option_unseen() -> None:
    body = job_body(FILE | {"lora.r": 8}, ['lora={"r": 4}', "seed=5"])
    assert (body["lora"], body["seed"]) == ({"r": 8}, 5)
    assert body["method"]["supervised"]["hyperparameters"] == {"lora": {"r": 4}}


def test_no_quantization_is_an_explicit_null() -> None:
    assert job_body(FILE, no_quantization=True) == FILE | {"quantization": None}


def test_metadata_stays_text() -> None:
    pairs = job_body(FILE | {"metadata": ["team=support", "ticket=42", "note=a=b"]})["metadata"]
    assert pairs == {"team": "support", "ticket": "42", "note": "a=b"}


def test_arguments_of_the_chat_template_are_json() -> None:
    given = job_body(FILE, ['chat_template_kwargs={"enable_thinking": false}'])
    assert given["chat_template_kwargs"] == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("given", "assignments", "no_quantization"),
    [
        ({}, ["warmup_ratio"], False),
        ({"metadata": ["=x"]}, [], False),
        ({"n_epochs": 2}, ["n_epochs=3"], False),
        ({}, ["quantization.type=fp4"], True),
    ],
)
def test_a_contradiction_is_refused_here(given: dict[str, Any], assignments: list[str], no_quantization: bool) -> None:
    with pytest.raises(UsageError):
        job_body(FILE | given, assignments, no_quantization)


def test_another_method_has_the_hyperparameters() -> None:
    asked = job_body(FILE | {"method": "dpo", "n_epochs": 2}, ["beta=0.2"])
    assert asked["method"] == {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 2, "beta": 0.2}}}
    assert job_body(FILE | {"method": "kto"})["method"] == {"type": "kto", "kto": {"hyperparameters": {}}}


def test_create_clone_and_plan_have_the_same_options_and_name_all_that_is_missing(bare_tunery: Tunery) -> None:
    commands = command_tree(command_line).commands["jobs"].commands

    def options(name: str) -> set[str]:
        return {option for each in commands[name].params for option in each.opts if option.startswith("--")}

    assert options("create") == options("clone") == options("plan") | {"--watch"}
    for name in ("create", "plan"):
        done = bare_tunery("jobs", name)
        assert (done.exit_code, "--model and --training-file" in done.err) == (2, True)
