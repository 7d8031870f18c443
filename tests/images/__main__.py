"""`python -m tests.images [TARGET ...]`: build images of Dockerfile.gpu without a registry or a daemon, by buildah.

Without targets it builds `api`, and runs the commands of docker-compose.yml from that image against a real PostgreSQL
and a real Valkey. The target `worker` needs 40 GB of disk; build it before a release.

Plain Python is a stand-in: Debian's, installed by debootstrap. Exits with NOT_POSSIBLE and the reason where that cannot
be made: without root, without the right to mount, without the programs and apt-get, or without a mirror of Debian.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from tests.up import ROOT

NOT_POSSIBLE = 3
PACKAGES = ("buildah", "netavark", "aardvark-dns", "debootstrap", "debian-archive-keyring", "ca-certificates")
OLDEST_BUILDAH = (1, 33)  # the first that reads the here-documents of Dockerfile.gpu
PLACE = "/var/tmp"  # /tmp is often in memory, and mounted without devices, which debootstrap creates
DEBIAN = "trixie"  # whose Python is that of the images
STAND_IN_PACKAGES = "python3,python3-pip,python3-venv,ca-certificates"
CERTIFICATES = "/etc/ssl/certs"
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
        run("debootstrap", "--variant=minbase", f"--include={STAND_IN_PACKAGES}", DEBIAN, str(root), mirror())
        proxies = (path for path in Path("/etc/apt").glob("apt.conf.d/*") if "Acquire::" in path.read_text())
        for path in (*Path(CERTIFICATES).glob("ca-certificates.crt"), *proxies):
            shutil.copy(path, f"{root}{path}")
        settings = "".join(f"{name} = {value}\n" for name, value in pip_settings().items())
        (root / "etc/pip.conf").write_text(f"[global]\n{settings}")
        run("chroot", str(root), "python3", "-m", "venv", "/usr/local")
        container = self("from", "scratch")
        self("add", "--quiet", container, str(root), "/")
        self("commit", "--quiet", container, STAND_IN)
        self("run", "--isolation", "chroot", container, "--", "python3", "--version")
        self("rm", container)
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
        words = " ".join(pip_settings().values()).split()
        paths = [CERTIFICATES, *(word for word in words if Path(word).exists() and not word.startswith(CERTIFICATES))]
        mounts = [option for path in paths for option in ("--volume", f"{path}:{path}:ro")]
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
    with tempfile.TemporaryDirectory(prefix="tunery-images-", dir=PLACE) as directory:
        try:  # nothing of the tree is used
            require_machine()
            build = Builder(Path(directory))
            build.make_stand_in()
        except (NotPossible, subprocess.CalledProcessError, OSError) as error:
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


class NotPossible(Exception):
    """This machine cannot build images, whatever the tree contains."""


def require_machine() -> None:
    """Install what is missing. Raises NotPossible, CalledProcessError or OSError where images cannot be built."""
    if os.geteuid() != 0:
        raise NotPossible("it needs root")
    if subprocess.run(["unshare", "--mount", "mount", "--bind", "/mnt", "/mnt"]).returncode:  # buildah and the tests do
        raise NotPossible("it needs the right to mount, which this container lacks")
    if not (shutil.which("buildah") and shutil.which("debootstrap")):
        run("apt-get", "update", "-qq")
        run("apt-get", "install", "-qq", "--yes", "--no-install-recommends", *PACKAGES)
    found = subprocess.run(["buildah", "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
    if tuple(int(number) for number in re.findall(r"\d+", found)[:2]) < OLDEST_BUILDAH:
        raise NotPossible(f"it needs buildah {'.'.join(map(str, OLDEST_BUILDAH))} or newer, not {found.strip()}")
    address = f"{mirror()}/dists/{DEBIAN}/InRelease"
    try:
        urllib.request.urlopen(address, timeout=60).close()
    except OSError as error:
        raise NotPossible(f"{address} cannot be read: {error}") from error


def run(*command: str) -> None:
    """Run a command; print the end of its output if it fails. Raises CalledProcessError."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print(done.stdout[-2000:], file=sys.stderr)
    done.check_returncode()


def mirror() -> str:
    """The mirror of Debian that this machine's apt uses; Debian's own if none is found."""
    for path in (*Path("/etc/apt").glob("**/*.list"), *Path("/etc/apt").glob("**/*.sources")):
        if found := re.search(r"^(?:URIs:|deb) .*?(https?://\S+/debian)/?\s", path.read_text(), re.MULTILINE):
            return found[1]
    return "http://deb.debian.org/debian"


def pip_settings() -> dict[str, str]:
    """Where this machine's pip gets packages from: its files of settings and its environment variables, merged."""
    names = "cert|extra-index-url|find-links|index-url|proxy|trusted-host"
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], stdout=subprocess.PIPE, text=True, check=True
    )
    found = re.findall(rf"^(?:global|install|:env:)\.({names})='(.*)'$", listed.stdout, re.MULTILINE)
    return {name: value.replace("\\n", " ") for name, value in found}


if __name__ == "__main__":
    sys.exit(main())
