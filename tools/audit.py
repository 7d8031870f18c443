"""`make audit`: look the pinned packages up in the databases of vulnerabilities.

    python -m tools.audit                           # asks PyPI, with pip-audit
    python -m tools.audit --advisories all.zip      # a file of OSV, without the network

The file is https://osv-vulnerabilities.storage.googleapis.com/PyPI/all.zip, or a JSON file with one record of OSV's
format (https://ossf.github.io/osv-schema/) or an array of them. Exit codes: 0 nothing found, 1 vulnerabilities, 2 wrong
usage, 3 no data about vulnerabilities, so nothing is known.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

VULNERABLE, NO_DATA = 1, 3
CANARY = "jinja2==2.10"  # it has had advisories since 2019: a source without them has no data
PIP_AUDIT = (".venv-audit/bin/pip-audit", "--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json")
DOWNLOAD = "https://osv-vulnerabilities.storage.googleapis.com/PyPI/all.zip"

Pins = Mapping[str, Version]
Finding = tuple[str, str, str, str]  # package, version, advisory, first fixed version or what is known of it


class NoData(Exception):
    """The source cannot say whether a package is vulnerable."""


def main(arguments: Sequence[str] | None = None, pip_audit: Sequence[str] = PIP_AUDIT) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.audit", description="Look pinned packages up.")
    parser.add_argument("--requirement", type=Path, default=Path("constraints.txt"))
    parser.add_argument("--advisories", type=Path, help="a file in OSV's format, or a zip of such files")
    given = parser.parse_args(arguments)
    try:
        pins = read_pins(given.requirement)
        if given.advisories is None:
            findings = list(_ask_registry(given.requirement, pip_audit))
        else:
            findings = list(find_vulnerable(pins, read_advisories(given.advisories)))
    except OSError as error:
        parser.error(f"{error.filename}: {error.strerror}")
    except NoData as error:
        print(
            f"No vulnerability data: {error}.\nWhether the packages are vulnerable is unknown. "
            f"Download {DOWNLOAD} where the network allows it, and run: make audit ADVISORIES=all.zip",
            file=sys.stderr,
        )
        return NO_DATA
    for package, version, advisory, fix in sorted(findings):
        print(f"{package} {version}: {advisory}, {fix}")
    print(f"{len(pins)} packages, {len(findings)} vulnerabilities")
    return VULNERABLE if findings else 0


def read_pins(path: Path) -> dict[str, Version]:
    """{canonical name: version} of the lines `name==version`; other lines pin nothing."""
    pins: dict[str, Version] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            requirement = Requirement(line.partition(" #")[0].strip())
        except InvalidRequirement:
            continue
        exact = [each.version for each in requirement.specifier if each.operator == "=="]
        if exact:
            pins[canonicalize_name(requirement.name)] = Version(exact[0])
    return pins


def read_advisories(path: Path) -> Iterator[Mapping[str, Any]]:
    """The records of a file. Raises NoData for a file that has none."""
    count = 0
    try:
        for text in _texts(path):
            loaded = json.loads(text)
            for record in loaded if isinstance(loaded, list) else [loaded]:
                count += bool(record.get("affected"))
                yield record
    except (ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise NoData(f"{path} is not in OSV's format ({error})") from error
    if not count:
        raise NoData(f"{path} contains no advisory about a package")


def find_vulnerable(pins: Pins, advisories: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    for record in advisories:
        if record.get("withdrawn"):
            continue
        for affected in record.get("affected", ()):
            package = affected.get("package", {})
            name = canonicalize_name(package.get("name", ""))
            if package.get("ecosystem") == "PyPI" and name in pins and _is_affected(pins[name], affected):
                names = ", ".join([record["id"], *record.get("aliases", ())])
                yield name, str(pins[name]), names, _fix_text(pins[name], affected)


def _texts(path: Path) -> Iterator[str]:
    if not zipfile.is_zipfile(path):
        yield path.read_text(encoding="utf-8")
        return
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".json"):
                yield archive.read(name).decode()


def _is_affected(version: Version, affected: Mapping[str, Any]) -> bool:
    if any(_parsed(each) == version for each in affected.get("versions", ())):
        return True
    ranges = [each for each in affected.get("ranges", ()) if each.get("type") == "ECOSYSTEM"]
    return any(_is_within(version, each.get("events", ())) for each in ranges)


def _is_within(version: Version, events: Sequence[Mapping[str, str]]) -> bool:
    """OSV's evaluation: the last event at or before the version decides; `last_affected` holds only after it."""
    is_vulnerable = False
    dated = [(kind, at) for event in events for kind, text in event.items() if (at := _parsed(text)) is not None]
    for kind, at in sorted(dated, key=lambda each: each[1]):
        if kind == "introduced" and version >= at:
            is_vulnerable = True
        elif (kind == "fixed" and version >= at) or (kind == "last_affected" and version > at):
            is_vulnerable = False
    return is_vulnerable


def _fix_text(version: Version, affected: Mapping[str, Any]) -> str:
    events = [event for each in affected.get("ranges", ()) for event in each.get("events", ())]
    fixes = [at for event in events if (at := _parsed(event.get("fixed", ""))) is not None and at > version]
    return f"fixed in {min(fixes)}" if fixes else "no fixed version is known"


def _parsed(text: str) -> Version | None:
    try:
        return Version(text)
    except InvalidVersion:
        return None


def _ask_registry(requirement: Path, pip_audit: Sequence[str]) -> Iterator[Finding]:
    """What pip-audit finds. Raises NoData if it fails, skips a package, or does not find a known vulnerability."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as canary:
        canary.write(f"{CANARY}\n")
        canary.flush()
        if not list(_pip_audit(Path(canary.name), pip_audit)):
            raise NoData(f"the registry has no vulnerability of {CANARY}, which has some")
    yield from _pip_audit(requirement, pip_audit)


def _pip_audit(requirement: Path, pip_audit: Sequence[str]) -> Iterator[Finding]:
    done = subprocess.run([*pip_audit, "--requirement", str(requirement)], capture_output=True, text=True)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise NoData(f"pip-audit failed ({last})") from None
    for package in packages:
        if "skip_reason" in package:
            raise NoData(f"{package['name']} was skipped: {package['skip_reason']}")
        for each in package["vulns"]:
            fixes = each.get("fix_versions") or []
            names = ", ".join([each["id"], *each.get("aliases", ())])
            text = f"fixed in {', '.join(fixes)}" if fixes else "no fixed version is known"
            yield package["name"], package["version"], names, text


if __name__ == "__main__":
    sys.exit(main())
