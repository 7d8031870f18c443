"""docs/deploy.md says what is true of the files it is about. test_commands.py runs what it tells people to run."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.deploy import compose, guide

SERVICES = compose.services()


class Override(yaml.SafeLoader):
    """`!override` is Compose's: take this in place of what was there."""


Override.add_constructor("!override", lambda loader, node: loader.construct_mapping(node, deep=True))


def test_every_variable_of_the_compose_file_is_explained() -> None:
    table = guide.text().partition("## Variables and settings")[2].partition("\n## ")[0]
    explained = set(re.findall(r"`([A-Z0-9_]+)`", "".join(re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE))))
    assert explained == compose.variables() | {"COMPOSE_PROFILES"}


def test_the_secrets_are_those_of_the_compose_file() -> None:
    written = set(re.findall(r"> (secrets/\w+)$", guide.shell_block("secrets/pg_service"), re.MULTILINE))
    assert written == {secret["file"] for secret in compose.load()["secrets"].values()}


def test_a_second_gpu_extends_the_first_and_has_a_device_of_its_own() -> None:
    document: dict[str, Any] = yaml.load(guide.blocks("yaml")[0], Override)
    for service in document["services"].values():
        assert service["extends"]["file"] == compose.FILE.name
        first = SERVICES[service["extends"]["service"]]["deploy"]["resources"]["reservations"]["devices"]
        second = service["deploy"]["resources"]["reservations"]["devices"]
        assert [one["capabilities"] for one in second] == [one["capabilities"] for one in first]
        assert second[0]["device_ids"] != first[0]["device_ids"]
