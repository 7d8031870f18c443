"""No request costs far more than an ordinary one of its size.

CPU time is compared, which another process's load changes by less than MAX_RATIO leaves room for. A quadratic parser
takes thousands of times as long at these sizes; `make bench-linear` finds the exponents.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from benchmarks.growth import Growth
from benchmarks.linear import cpu_seconds
from benchmarks.linear_bodies import EXCEPTIONS, bodies, operations
from benchmarks.request_parsers import PARSERS, Make, Parser, hostile_inputs

MAX_RATIO = 40
MIN_SECONDS = 0.02  # parsing a megabyte of 96,000 keys took 0.12 s of CPU time beside other work
RUNS = 3
SLOW_BYTES = 256 << 10  # of what takes seconds for the largest input; one of its inputs is tried in full
SLOW = "chat line and template"
SLOWEST_INPUT = "answers"


def size_of(parser: Parser, name: str) -> int:
    return SLOW_BYTES if parser.name == SLOW and name != SLOWEST_INPUT else parser.most_bytes


def cases() -> Iterator[ParameterSet]:
    for parser, name, make in hostile_inputs():
        slow = [pytest.mark.slow] if parser.name == SLOW and name == SLOWEST_INPUT else []
        yield pytest.param(parser, name, make, id=f"{parser.name}: {name}", marks=slow)


@pytest.fixture(scope="module")
def ordinary_seconds() -> dict[tuple[str, int], float]:
    return {}


@pytest.mark.extended("measures processor time")
@pytest.mark.parametrize(("parser", "name", "make"), list(cases()))
def test_the_largest_hostile_input_does_not_take_far_longer_than_an_ordinary_one(
    parser: Parser, name: str, make: Make, ordinary_seconds: dict[tuple[str, int], float]
) -> None:
    size = size_of(parser, name)
    runs = 1 if parser.name == SLOW and name == SLOWEST_INPUT else RUNS
    ordinary, hostile = parser.ordinary(size), make(size)
    if (parser.name, size) not in ordinary_seconds:
        ordinary_seconds[parser.name, size] = cpu_seconds(lambda: parser.run(ordinary), runs)
    most_seconds = MAX_RATIO * max(ordinary_seconds[parser.name, size], MIN_SECONDS)
    # The least of several runs counts, so the first that is fast enough decides.
    assert any(cpu_seconds(lambda: parser.run(hostile), 1) < most_seconds for _ in range(runs))


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_every_input_has_its_size(parser: Parser) -> None:
    for name, make in {**parser.hostile, "ordinary": parser.ordinary}.items():
        assert 0.9 < len(make(1 << 14)) / (1 << 14) <= 1, name


class TestExponent:
    def test_the_exponent_is_that_of_the_power_law(self) -> None:
        sizes = [1 << power for power in range(12, 21)]
        for exponent in (1.0, 2.0):
            growth = Growth(sizes, [1e-8 * size**exponent for size in sizes])
            assert growth.exponent == pytest.approx(exponent)

    def test_what_is_never_slow_has_no_exponent(self) -> None:
        assert Growth([1, 2, 4], [0.00001, 0.00002, 0.00004]).exponent is None


class TestBodies:
    DOCUMENT = json.loads((Path(__file__).parents[1] / "http/openapi/openapi.json").read_bytes())
    BODIES = tuple(bodies(DOCUMENT, {"model": "tiny"}))

    def test_every_operation_with_a_body_is_asked_or_an_exception(self) -> None:
        assert {body.operation for body in self.BODIES} | EXCEPTIONS.keys() == operations(self.DOCUMENT).keys()

    def test_every_body_has_its_size(self) -> None:
        for body in self.BODIES:
            size_bytes = min(body.most_bytes, 1 << 16)
            assert 0.8 < len(body.make(size_bytes)) / size_bytes <= 1, (body.operation, body.name)
