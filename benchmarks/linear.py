"""Check that the time of every parser and of every operation grows at most linearly: `make bench-linear`

Operations are asked of a running API (`benchmarks.linear_service`). Of the parsers each hostile input is made in sizes
of 2^12 to 2^20 bytes, and the CPU time of parsing it (`time.process_time`, best of five) is fitted against the size on
two logarithmic axes. The slope is the exponent: 1 is linear, 2 quadratic. One of 1.2 or more fails. Times below
FLOOR_SECONDS are left out: they are the fixed cost of a call, and the clock.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import time
from collections.abc import Callable, Sequence

from benchmarks import linear_service
from benchmarks.growth import MAX_EXPONENT, Growth
from benchmarks.request_parsers import PARSERS, Parser, hostile_inputs

SIZES = tuple(1 << power for power in range(12, 21))
RUNS = 5


def cpu_seconds(work: Callable[[], object], runs: int = RUNS) -> float:
    """The CPU time of this process for `work`, the least of several runs, without the garbage collector."""
    best = math.inf
    gc.disable()
    try:
        for _ in range(runs):
            began = time.process_time()
            work()
            best = min(best, time.process_time() - began)
    finally:
        gc.enable()
    return best


def measure(parser: Parser, make: Callable[[int], bytes]) -> Growth:
    seconds = []
    for size in SIZES:
        data = make(size)
        seconds.append(cpu_seconds(lambda data=data: parser.run(data)))  # type: ignore[misc]
    return Growth(SIZES, seconds)


def main(arguments: Sequence[str]) -> int:
    """0 when every exponent is below the limit."""
    options = argparse.ArgumentParser(prog="make bench-linear", description=__doc__)
    names = ", ".join(parser.name for parser in PARSERS)
    options.add_argument("--only", default="", help=f"a part of a name: {names}, or METHOD /path of an operation")
    only = options.parse_args(arguments).only.lower()
    print(f"| {'parser':29} | {'input':31} | ms at 2^12 |    2^16 |    2^20 | exponent |")
    print("|---|---|---:|---:|---:|---:|")
    failed = 0
    for parser, name, make in hostile_inputs():
        if only not in parser.name.lower():
            continue
        growth = measure(parser, make)
        exponent = growth.exponent
        first, middle, last = (growth.seconds[at] * 1000 for at in (0, len(SIZES) // 2, -1))
        is_bad = exponent is not None and exponent >= MAX_EXPONENT
        failed += is_bad
        exponent_text = "too quick" if exponent is None else f"{exponent:8.2f}"
        times = f"{first:10.3f} | {middle:7.2f} | {last:7.1f}"
        print(f"| {parser.name:29} | {name:31} | {times} | {exponent_text}{' !' * is_bad} |", flush=True)
    failed += linear_service.check(only)
    print(
        f"\n{failed} grow with an exponent of {MAX_EXPONENT} or more, or stop others."
        if failed
        else "\nAll are linear."
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
