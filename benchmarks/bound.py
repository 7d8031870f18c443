"""The time of a step's matrix products alone: a lower bound for every trainer that computes them.

    python -m benchmarks.bound WORKLOAD_DIR

Forward W x and, backwards, W^T g; A, B and their gradients; the head over labelled rows, forwards and backwards. At the
shapes of the workload's rows, in bfloat16, one product after the other. No attention, no norms, no dequantization.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

REPEATS = 5


def main(directory: Path) -> None:
    work = json.loads((directory / "peer.json").read_text())
    torch.set_num_threads(work["threads"])
    device = torch.device(work["device"])
    tokens, labelled = work["tokens_of_step"], work["labelled_of_step"]
    rows = range(3, len(tokens))
    typical = sorted(rows, key=lambda step: tokens[step])[len(rows) // 2]
    seconds = sum(
        _time(product, device) * count for product, count in products(work, tokens[typical], labelled[typical], device)
    )
    print(json.dumps({"tokens_per_second": tokens[typical] / seconds, "seconds": seconds, "tokens": tokens[typical]}))


def products(
    work: dict, T: int, N: int, device: torch.device
) -> Iterator[tuple[list[tuple[torch.Tensor, torch.Tensor]], int]]:
    """(the products of one layer, how often it stands in the model)."""

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=torch.bfloat16)

    r = work["r"]
    for (out, inner), count in ((tuple(shape), count) for shape, count in work["layers"]):
        x, g, w, a, b, u = made(T, inner), made(T, out), made(out, inner), made(r, inner), made(out, r), made(T, r)
        yield [(x, w.t()), (g, w), (x, a.t()), (u, b.t()), (g, b), (u, a), (u.t(), x), (g.t(), u)], count
    vocabulary, hidden = work["head"]
    h, head, z = made(N, hidden), made(vocabulary, hidden), made(N, vocabulary)
    yield [(h, head.t()), (z, head)], 1


def _time(pairs: list[tuple[torch.Tensor, torch.Tensor]], device: torch.device) -> float:
    """The median over repeats of all products of a layer, seconds."""
    times = []
    for _ in range(REPEATS):
        _wait(device)
        began = time.perf_counter()
        for left, right in pairs:
            left @ right
        _wait(device)
        times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
