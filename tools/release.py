"""`make release VERSION=X.Y.Z`: the version in every file, the CHANGELOG's section, and the wheel, from one command.

It changes files and builds `dist/tunery-X.Y.Z-*.whl`; it commits and publishes nothing, and prints what to do next.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSION = re.compile(r"\d+\.\d+\.\d+((a|b|rc)\d+)?")
UNRELEASED = "## [Unreleased]"
# file -> a pattern with the version as its only group
VERSIONED = {
    "pyproject.toml": r'^version = "([^"]+)"$',
    "docker-compose.yml": r"^  image: tunery-(?:api|worker):(\S+)$",
    "examples/kubernetes/tunery.yaml": r"image: \S+/tunery-(?:api|worker):(\S+)$",
    "examples/kubernetes/backup.yaml": r"image: \S+/tunery-api:(\S+)$",
    "examples/kubernetes/README.md": r"--tag \S+/tunery-api:(\S+)",
}


def main(arguments: list[str] | None = None, root: Path = ROOT) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", help="the new version, such as 0.2.0")
    parser.add_argument("--no-wheel", action="store_true", help="change the files, and build nothing")
    options = parser.parse_args(arguments)
    if not VERSION.fullmatch(options.version):
        parser.error(f"{options.version!r} is not a version such as 0.2.0 or 0.2.0rc1")
    changelog = root / "CHANGELOG.md"
    try:
        text = release_section(changelog.read_text(encoding="utf-8"), options.version, datetime.now(UTC).date())
    except ValueError as error:
        parser.error(str(error))
    changelog.write_text(text, encoding="utf-8")
    for name, pattern in VERSIONED.items():
        path = root / name
        path.write_text(with_version(path.read_text(encoding="utf-8"), pattern, options.version), encoding="utf-8")
    if not options.no_wheel:
        subprocess.run([sys.executable, "-m", "tools.docs"], cwd=root, check=True)
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "dist", "."]
        subprocess.run(build, cwd=root, check=True)
    print(f"Version {options.version} is in {', '.join(['CHANGELOG.md', *VERSIONED])}. Next: make test-release,")
    print(f"git commit --all --message 'Release {options.version}', git tag v{options.version}")


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
