"""`--file job.yaml` of `tunery jobs create`, `plan` and `clone`, and the schema that editors read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from app.cli.errors import UsageError
from app.cli.job_file import read_job_file
from app.cli.job_options import job_body
from tests.commands.conftest import Tunery

JOB = """\
# yaml-language-server: $schema=http://127.0.0.1:8000/job.schema.json
model: tiny
training_file: {training_file}
suffix: from-file
method:
  type: supervised
  supervised:
    hyperparameters:
      n_epochs: 3
      learning_rate: 1e-4
lora:
  r: 8
metadata:
  team: no
"""
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abn~<01", max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_job_file_makes_the_job_that_it_describes_and_options_override_it(
    tunery: Tunery, dataset: Path, base_model: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "job.yaml", JOB.format(training_file=dataset))
    plan = tunery("jobs", "plan", "--file", path, "--json").json
    assert (plan["hyperparameters"]["n_epochs"], plan["lora"]["r"]) == (3, 8)
    made = tunery("jobs", "create", "--file", path, "--n-epochs", 2, "--lora-alpha", 16, "--json").json
    hyperparameters = made["method"]["supervised"]["hyperparameters"]
    assert (hyperparameters["n_epochs"], hyperparameters["learning_rate"]) == (2, 1e-4)
    assert (made["lora"]["r"], made["lora"]["alpha"]) == (8, 16)
    assert (made["user_provided_suffix"], made["metadata"]) == ("from-file", {"team": "no"})
    change = write(tmp_path / "change.json", json.dumps({"lora": {"r": 4}}))
    cloned = tunery("jobs", "clone", made["id"], "--file", change, "--json").json
    assert (cloned["lora"]["r"], cloned["user_provided_suffix"]) == (4, "from-file")


def test_options_override_a_file_where_it_has_its_hyperparameters() -> None:
    older = {"model": "m", "hyperparameters": {"n_epochs": 3, "beta2": 1}}
    assert job_body({"n_epochs": 2}, file=older) == {"model": "m", "hyperparameters": {"n_epochs": 2, "beta2": 1}}
    dpo = {"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1}}}, "quantization": {"bits": 4}}
    assert job_body({}, ["beta=0.2"], no_quantization=True, file=dpo) == {
        "method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}},
        "quantization": None,
    }
    unknown = {"model": "m", "sufix": "x", "method": "dpo"}
    assert job_body({}, file=unknown) == unknown  # the API refuses it by name


def test_what_the_api_refuses_in_a_file_is_named(
    tunery: Tunery, dataset: Path, base_model: str, tmp_path: Path
) -> None:
    head = f"model: tiny\ntraining_file: {dataset}\n"
    for number, (wrong, name) in enumerate([("sufix: x", "sufix"), ("lora: {r: 0}", "lora.r"), ("seed: a", "seed")]):
        done = tunery("jobs", "create", "--file", write(tmp_path / f"{number}.yaml", f"{head}{wrong}\n"))
        assert (done.exit_code, name in done.err) == (2, True)
    done = tunery("jobs", "create", "--file", write(tmp_path / "list.yaml", "model: tiny\ntraining_file: [a]\n"))
    assert (done.exit_code, "training_file" in done.err) == (2, True)
    incomplete = tunery("jobs", "create", "--file", write(tmp_path / "less.yaml", "model: tiny\n"))
    assert (incomplete.exit_code, "--training-file" in incomplete.err) == (2, True)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("model: m\nlora: &a {r: 1}\nx: *a\n", 2),
        ("model: m\nseed: 1\nmodel: n\n", 3),
        ("model: m\n1: 2\n", 2),
        ("model: m\n\n[a]: 2\n", 3),
        ("model: !!python/object/apply:os.system [x]\n", 1),
        ("model: m\n--- \nmodel: n\n", 2),
        ("model: 'm\n", 2),
        ("- model\n", None),
        ("", None),
        ("a: 99999999999999999999\n", None),
        ("a: 1e999\n", None),
        ('a: "\\ud83d"\n', None),
        ("[" * 5_000, None),
        ("a: " + "[" * 70 + "]" * 70, None),
        ("#" * 300_000, None),
    ],
)
def test_a_file_that_is_no_plain_body_is_refused_with_its_line(tmp_path: Path, text: str, line: int | None) -> None:
    with pytest.raises(UsageError) as raised:
        read_job_file(write(tmp_path / "job.yaml", text))
    assert "job.yaml" in str(raised.value)
    assert line is None or f"line {line}" in str(raised.value)


@pytest.mark.parametrize("text", ['{"a": 1,\n "b": }', '{"a": 1, "a": 2}', '{"a": NaN}', "[1]", "a: 1"])
def test_a_json_file_is_read_as_json(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"job\.json"):
        read_job_file(write(tmp_path / "job.json", text))


def test_a_missing_file_and_a_directory_are_usage_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UsageError, match="--file"):
            read_job_file(path)


def test_the_values_are_those_of_the_core_schema(tmp_path: Path) -> None:
    text = (
        "a: 1e-4\nb: no\nc: 2026-12-01\nd: 012\ne: 1_000\nf: ~\ng:\nh: true\ni: .5\nj: '5'\nk: 12:30\nl: .inf\nm: -3\n"
    )
    assert read_job_file(write(tmp_path / "job.yaml", text)) == {
        "a": 1e-4, "b": "no", "c": "2026-12-01", "d": "012", "e": "1_000", "f": None, "g": None, "h": True, "i": 0.5,
        "j": "5", "k": "12:30", "l": ".inf", "m": -3,
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(value=st.dictionaries(st.text("abcn01~", min_size=1, max_size=4), PLAIN, max_size=4))
def test_json_is_a_job_file_of_both_kinds(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    directory = tmp_path_factory.mktemp("files")
    assert read_job_file(write(directory / "job.json", json.dumps(value))) == value
    if yaml_allows(text := json.dumps(value, ensure_ascii=False)):
        assert read_job_file(write(directory / "job.yaml", text)) == value


def yaml_allows(text: str) -> bool:
    """Whether YAML allows these characters outside of escapes."""
    return not yaml.reader.Reader.NON_PRINTABLE.search(text)


def test_the_schema_accepts_a_job_file_and_names_what_is_wrong(client: TestClient, tmp_path: Path) -> None:
    schema = client.get("/job.schema.json").json()
    body = read_job_file(write(tmp_path / "job.yaml", JOB.format(training_file="train.jsonl")))
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    assert list(validator.iter_errors(body)) == []
    for wrong in (body | {"sufix": "x"}, body | {"lora": {"r": 0}}, {"model": "m"}):
        assert list(validator.iter_errors(wrong)) != []
