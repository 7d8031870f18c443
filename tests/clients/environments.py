"""An environment for each generation of the official client, made once and kept until its pin changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOME = Path(os.environ.get("TUNERY_CLIENTS_HOME", HERE.parents[1] / ".venv-clients"))
PINS = HERE / "generations.toml"
RUNNERS = ("pytest>=9.0,<10", "pytest-timeout>=2.4,<3")
NPM_SECONDS = 240


@dataclass(frozen=True)
class Generation:
    name: str
    version: str

    @property
    def directory(self) -> Path:
        return HOME / f"openai-{self.version}"

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"


def python_generations() -> list[Generation]:
    return [Generation(name, version) for name, version in _pins()["python"].items()]


def prepare(generation: Generation) -> None:
    """Make its environment, unless it stands already; half of one is made anew."""
    ready = generation.directory / ".ready"
    if ready.exists():
        return
    shutil.rmtree(generation.directory, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(generation.directory)], check=True)
    install = [str(generation.python), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    subprocess.run([*install, f"openai=={generation.version}", *RUNNERS], check=True)
    ready.touch()


def node_client() -> Path | None:
    """The directory whose `node_modules` has the official Node client; None where it cannot be installed."""
    if not (shutil.which("node") and shutil.which("npm")):
        print("openai for Node: skipped, as `node` or `npm` is not on the PATH", flush=True)
        return None
    version = _pins()["node"]["newest"]
    directory = HOME / f"node-{version}"
    if not (directory / ".ready").exists():
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        (directory / "package.json").write_text('{"private": true}\n')
        install = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", f"openai@{version}"]
        try:
            subprocess.run(install, cwd=directory, check=True, timeout=NPM_SECONDS)
        except subprocess.SubprocessError as error:
            print(f"openai for Node: skipped, as npm cannot install it: {error}", flush=True)
            return None
        (directory / ".ready").touch()
    return directory


def _pins() -> dict[str, dict[str, str]]:
    pins: dict[str, dict[str, str]] = tomllib.loads(PINS.read_text(encoding="utf-8"))
    return pins
