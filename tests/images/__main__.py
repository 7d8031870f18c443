"""`python -m tests.images [TARGET ...]`: build images of Dockerfile.gpu without a registry or a daemon, by buildah.

Without targets it builds `api`, and runs the commands of docker-compose.yml from that image against a real PostgreSQL
and a real Valkey. The target `worker` needs 40 GB of disk; build it before a release.

Plain Python is a stand-in: Debian's, installed by debootstrap. Exits with NOT_POSSIBLE where that cannot be made:
without root, on another system than Debian, or without a mirror of it.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.up import ROOT

NOT_POSSIBLE = 3
PROGRAMS = ("buildah", "netavark", "aardvark-dns", "debootstrap", "ca-certificates")
DEBIAN = "trixie"  # whose Python is that of the images
PACKAGES = "python3,python3-pip,python3-venv,ca-certificates"
STAND_IN = "localhost/python:stand-in"
TESTS = "tests/operations/deploy/test_commands.py"


class Builder:
    """buildah with its images in one directory; layers are whole copies, as that needs no support by the kernel."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.options = ("--storage-driver", "vfs", "--root", f"{directory}/store", "--runroot", f"{directory}/run")
        # The defaults of buildah exceed what an unprivileged account may ask for.
        limits = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
        hard = [f'"{name}={value}:{value}"' for name, kind in limits.items() for value in [resource.getrlimit(kind)[1]]]
        settings = directory / "containers.conf"
        settings.write_text(f"[containers]\ndefault_ulimits = [{', '.join(hard)}]\n")
        self.environment = {**os.environ, "CONTAINERS_CONF": str(settings)}

    def __call__(self, *words: str) -> str:
        done = subprocess.run(
            ["buildah", *self.options, *words], env=self.environment, stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout.strip()

    def make_stand_in(self) -> None:
        root = self.directory / "root"
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", DEBIAN, str(root), mirror())
        for settings in ("/etc/ssl/certs/ca-certificates.crt", "/etc/apt/apt.conf.d/"):  # those of a proxy, too
            run("cp", "--recursive", "--no-target-directory", settings, f"{root}{settings}")
        run("chroot", str(root), "python3", "-m", "venv", "/usr/local")
        container = self("from", "scratch")
        self("add", "--quiet", container, str(root), "/")
        self("commit", "--quiet", container, STAND_IN)
        self("run", "--isolation", "chroot", container, "--", "python3", "--version")
        self("rm", container)
        run("unshare", "--mount", "true")  # as the tests need it
        run("rm", "--recursive", str(root))

    def build(self, target: str) -> None:
        where = (
            "--isolation",
            "chroot",
            "--network",
            "host",
            "--pull=never",
            "--build-arg",
            f"PYTHON_IMAGE={STAND_IN}",
        )
        mounts = [option for path in pip_files() for option in ("--volume", f"{path}:{path}:ro")]
        self(
            "build",
            "--format",
            "docker",
            *where,
            *mounts,
            "--target",
            target,
            "--tag",
            target,
            "--file",
            str(ROOT / "Dockerfile.gpu"),
            str(ROOT),
        )


def main() -> int:
    targets = sys.argv[1:] or ["api"]
    with tempfile.TemporaryDirectory(prefix="tunery-images-") as directory:
        try:
            run("apt-get", "update", "-qq")
            run("apt-get", "install", "-qq", "--yes", "--no-install-recommends", *PROGRAMS)
            build = Builder(Path(directory))
            build.make_stand_in()
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"No stand-in of the base image can be made here: {error}", file=sys.stderr)
            return NOT_POSSIBLE
        for target in targets:
            build.build(target)
        if sys.argv[1:]:
            return 0
        Path(directory).chmod(0o711)
        root = build("mount", build("from", "--pull=never", "localhost/api"))
        environment = {**os.environ, "TUNERY_API_IMAGE": root}
        pytest = [sys.executable, "-m", "pytest", "-n", "0", TESTS]
        if subprocess.run(pytest, cwd=ROOT, env=environment).returncode == 0:
            return 0
        print("The tests that failed run once more, as other work can exceed their limits of time.", file=sys.stderr)
        return subprocess.run([*pytest, "--last-failed"], cwd=ROOT, env=environment).returncode


def run(*command: str) -> None:
    """Run a command; print the end of its output if it fails. Raises CalledProcessError."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print(done.stdout[-2000:], file=sys.stderr)
    done.check_returncode()


def mirror() -> str:
    """The mirror of Debian that this machine uses. Raises OSError where there is none."""
    for path in Path("/etc/apt/sources.list.d").glob("*.sources"):
        if found := re.search(r"^URIs: (https?://\S+)", path.read_text(), re.MULTILINE):
            return found[1]
    raise FileNotFoundError("no mirror of Debian in /etc/apt/sources.list.d")


def pip_files() -> list[Path]:
    """What pip reads on this machine: certificates, settings, and a local folder of wheels if the settings name one."""
    found = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.find-links"], capture_output=True, text=True
    )
    folders = [Path(word) for word in found.stdout.split() if word.startswith("/")]
    return [path for path in (Path("/etc/ssl/certs"), Path("/etc/pip.conf"), *folders) if path.exists()]


if __name__ == "__main__":
    sys.exit(main())
