"""Reads docker-compose.yml as Docker Compose does, as far as ours uses it: variables, anchors, durations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
FILE = ROOT / "docker-compose.yml"
VARIABLE = re.compile(r"\$(?:(?P<escaped>\$)|\{(?P<name>\w+)(?:(?P<operator>:-|:\?)(?P<word>[^}]*))?\})")

Service = dict[str, Any]


def load(variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The whole file, with `variables` for what `.env` and the shell would give."""
    document: dict[str, Any] = yaml.safe_load(interpolate(FILE.read_text(encoding="utf-8"), variables or {}))
    return document


def services(variables: Mapping[str, str] | None = None) -> dict[str, Service]:
    found: dict[str, Service] = load(variables)["services"]
    return found


def interpolate(text: str, variables: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        if given := variables.get(match["name"]):
            return given
        if match["operator"] == ":?":
            raise KeyError(f"{match['name']} is not set: {match['word']}")
        return match["word"] or ""

    return VARIABLE.sub(value, text)


def variables() -> set[str]:
    """Every variable the file asks for."""
    return {match["name"] for match in VARIABLE.finditer(FILE.read_text(encoding="utf-8")) if match["name"]}


def is_ours(service: Service) -> bool:
    return "build" in service


def target(service: Service) -> str:
    """Which stage of the Dockerfile a service of ours runs."""
    stage: str = service["build"]["target"]
    return stage


def mounts(service: Service) -> dict[str, tuple[str, bool]]:
    """Where the service can see what: path in the container -> (source, whether it is read-only)."""
    parts = [volume.split(":") for volume in service.get("volumes", [])]
    return {where: (source, options == ["ro"]) for source, where, *options in parts}


def seconds(duration: str) -> float:
    found = re.findall(r"([0-9.]+)(h|m|s)", duration)
    assert "".join(number + unit for number, unit in found) == duration, duration
    return sum(float(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in found)
