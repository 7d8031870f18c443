"""docs/snippets: each language of each snippet runs as it stands against all of `tunery up`.

The base model is a tiny one under the name of the bundled model, so that a training takes seconds.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.cli.local_stack.data_directory import LOCK_NAME, Layout
from app.cli.local_stack.first_run import BUNDLED_MODEL
from tests.tiny import make_tiny_base
from tests.up import ONE_THREAD, ROOT, Service, serving

SNIPPETS = ROOT / "docs" / "snippets"
TAB = re.compile(r'^=== "(.+)"\n\n((?:    .*\n|\n)+)', re.MULTILINE)
FENCED = re.compile(r"```\w+\n(.*)```", re.DOTALL)
ORDER = ("plan", "first-job", "from-a-csv", "evaluate", "chat", "deliver")  # the last three need a result
# What the program prints, and the file that it leaves
PRINTED = {
    "plan": "fits",
    "first-job": "succeeded",
    "from-a-csv": "held-out rows",
    "evaluate": "held-out rows",
    "chat": "\n",
    "deliver": "delivered",
}
# A poll every fifth of a second
PYTHON = "import time\ntime.sleep = lambda _, sleep=time.sleep: sleep(0.2)\n"
SHELL = "set -eo pipefail\nsleep() { command sleep 0.2; }\n"


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    adapters: list[Path] = []

    def prepare(service: Service) -> None:
        make_tiny_base(Layout(service.data).models / BUNDLED_MODEL)
        (service.data / LOCK_NAME).touch()  # marks the directory as one of Tunery
        adapters.append(service.directory / "adapters")
        adapters[0].mkdir(mode=0o777)
        service.environment = ONE_THREAD | {"TUNERY_DELIVERY_DIRECTORIES": str(adapters[0])}

    with serving(prepare=prepare) as service:
        service.tunery("targets", "create", "production", "--kind", "directory", "--set", f"path={adapters[0]}")
        yield service


@pytest.fixture
def reader(tmp_path: Path) -> Path:
    """The directory in which a reader enters the snippets."""
    examples = tmp_path / "examples" / "support-tickets"
    examples.mkdir(parents=True)
    for name, count in (("train.jsonl", 12), ("heldout.jsonl", 2)):
        rows = [[("user", f"Order {n} is lost"), ("assistant", f'{{"order": {n}}}')] for n in range(count)]
        lines = [json.dumps({"messages": [{"role": role, "content": text} for role, text in row]}) for row in rows]
        (examples / name).write_text("\n".join(lines))
    table = "".join(f"Where is order {n}?,shipping\nRefund {n}!,billing\n" for n in range(10))
    (tmp_path / "tickets.csv").write_text("text,label\n" + table)
    return tmp_path


def tabs(name: str) -> dict[str, str]:
    """{title of a tab: its program}."""
    text = (SNIPPETS / f"{name}.md").read_text(encoding="utf-8") + "\n"
    programs = {title: FENCED.search(textwrap.dedent(body)) for title, body in TAB.findall(text)}
    return {title: program[1] for title, program in programs.items() if program}


def test_every_snippet_has_three_languages_and_a_test() -> None:
    assert {path.stem for path in SNIPPETS.iterdir()} == set(ORDER) == PRINTED.keys()
    for name in ORDER:
        assert [*tabs(name)] == ["Python", "curl", "Command line"], name


def test_the_readme_quotes_the_first_job() -> None:
    readme, first_job = (ROOT / "README.md").read_text(encoding="utf-8"), tabs("first-job")
    assert all(first_job[title] in readme for title in ("Python", "curl"))


@pytest.mark.extended("all of `tunery up`, with six trainings of a tiny model")
@pytest.mark.e2e
@pytest.mark.timeout(1200)
def test_each_language_does_what_its_snippet_is_for(service: Service, reader: Path, subtests: pytest.Subtests) -> None:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "NO_PROXY": "*",
        "OPENAI_BASE_URL": f"{service.url}/v1",
        "OPENAI_API_KEY": service.key,
        "TUNERY": service.url,
        "KEY": f"Authorization: Bearer {service.key}",
        "TUNERY_DATA_DIR": str(service.data),
    }
    for name, title, program in [(each, *tab) for each in ORDER for tab in tabs(each).items()]:
        with subtests.test(f"{name} {title}"):
            command = [sys.executable, "-c", PYTHON + program] if title == "Python" else ["bash", "-c", SHELL + program]
            done = subprocess.run(command, cwd=reader, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert PRINTED[name] in done.stdout.lower()
            if name == "first-job":
                (adapter,) = (reader / "my-adapter").rglob("adapter_model.safetensors")
                assert adapter.stat().st_size > 1000
                (reader / "my-adapter").rename(reader / title)
