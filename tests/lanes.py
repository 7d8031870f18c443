"""What `make test` leaves to `make test-all`, and the order in which both run their tests.

`make test` selects what is not marked `extended`. Such a mark has a reason, and every run prints the reasons with the
number of tests that it did not select.
"""

from __future__ import annotations

import gc
import json
import os
import shlex
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.fork_server import forked

DURATIONS = Path(__file__).with_name("durations.json")  # seconds of each file of tests that takes more than one
SHORT_SECONDS = 0.5  # of a file that takes less than a second
WRITE_DURATIONS = "TUNERY_WRITE_DURATIONS"

SAMPLE = 8  # `make test` tries one of so many rows of a hostile table
Test = TypeVar("Test")
Sampled = Callable[[Iterable[Any]], list[Any]]

not_selected: Counter[str] = Counter()  # extended tests by their reason


@pytest.hookimpl(trylast=True)  # without the deselected tests
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deal the files to the processes of pytest-xdist, each process beginning with those that took longest.

    `--dist worksteal` gives each process an equal part of the list, so in the order of the folders one process had the
    longest files, and the others stole their tests one by one, with the fixtures of their modules.
    """
    for item in items:
        for mark in item.iter_markers("extended"):
            if not mark.args or not isinstance(mark.args[0], str):
                raise pytest.UsageError(f"{item.nodeid}: the mark `extended` needs its reason as a sentence")
    seconds = json.loads(DURATIONS.read_text(encoding="utf-8")) if DURATIONS.is_file() else {}
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.nodeid.partition("::")[0], []).append(item)
    longest_first = sorted(files, key=lambda name: -seconds.get(name, 0.0))
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    items[:] = deal([(seconds.get(name, SHORT_SECONDS), files[name]) for name in longest_first], processes)


def deal(files: Iterable[tuple[float, list[Test]]], processes: int) -> list[Test]:
    """The tests of all files (seconds, tests) in as many parts of equal length, with about the same seconds."""
    files = list(files)
    total = sum(len(tests) for _, tests in files)
    parts: list[list[Test]] = [[] for _ in range(processes)]
    lengths = [total * (number + 1) // processes - total * number // processes for number in range(processes)]
    loads = [0.0] * processes
    for seconds, tests in files:
        rest = tests
        while rest:
            number = min((n for n in range(processes) if len(parts[n]) < lengths[n]), key=loads.__getitem__)
            fitting = rest[: lengths[number] - len(parts[number])]
            parts[number] += fitting
            loads[number] += seconds * len(fitting) / len(tests)
            rest = rest[len(fitting) :]
    return [test for part in parts for test in part]


def pytest_configure() -> None:
    """Collect the tests without garbage collection, which took 29 s of processor time with it and takes 20 without."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Exclude the modules and tests that are loaded by now from garbage collection: one took 0.6 s with all tests."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """Fork the processes of a run of all tests from one that has imported what they import: 8 s of each process."""
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        for spec in specs:
            spec.python = shlex.join(forked("tests.fork_server.interpreter", with_tests=True))


@pytest.fixture(params=["sample", pytest.param("all", marks=pytest.mark.extended("every row of a hostile table"))])
def sampled(request: pytest.FixtureRequest) -> Sampled:
    """A function that returns every row of a table in `make test-all`, and in `make test` each eighth.

    The name of the test decides with which row it begins, so that tests of one table try different rows.
    """
    if request.param == "all":
        return list
    first = zlib.crc32(request.node.nodeid.encode()) % SAMPLE
    return lambda rows: list(rows)[first::SAMPLE]


def pytest_deselected(items: list[pytest.Item]) -> None:
    not_selected.update(mark.args[0] for item in items if (mark := item.get_closest_marker("extended")))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the counts to the process that prints the summary. Every process of xdist has collected all tests."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["not_selected"] = dict(not_selected)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    not_selected.update(Counter(getattr(node, "workeroutput", {}).get("not_selected", {})) - not_selected)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not_selected:
        terminalreporter.section("tests of `make test-all` that this run did not select")
        for reason, number in not_selected.most_common():
            terminalreporter.line(f"{number:5} {reason}")
    if os.environ.get(WRITE_DURATIONS):
        _write_durations(terminalreporter)


def _write_durations(terminalreporter: pytest.TerminalReporter) -> None:
    """Replace the seconds of the files that this run has tested."""
    tested: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                tested[report.nodeid.partition("::")[0]] += report.duration
    recorded = json.loads(DURATIONS.read_text(encoding="utf-8")) if DURATIONS.is_file() else {}
    merged = {**recorded, **tested}
    kept = {name: round(seconds) for name, seconds in sorted(merged.items()) if seconds > 1}
    DURATIONS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
