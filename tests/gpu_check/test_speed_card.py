"""The speed card compares like with like and names a side that learned less."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from benchmarks import peers, train
from benchmarks.table import Measured
from benchmarks.workload import Workload
from tests.gpu_check import speed_card
from tests.tiny import make_tiny_base, make_tiny_dataset
from tests.trainer.helpers import make_spec

FLOP = 1e9  # per token

pytestmark = pytest.mark.extended("the checks of make gpu-check, on the processor")


def measured(loss: float, seconds: float = 1.0) -> Measured:
    steps = range(1, train.MIN_STEPS + 1)
    return Measured([seconds for _ in steps], [100 for _ in steps], dict.fromkeys(steps, loss), cuda_peak_bytes=10**9)


def test_the_peers_get_packed_rows_and_tunery_runs_with_and_without_kernels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base, data = make_tiny_base(tmp_path / "base"), make_tiny_dataset(tmp_path / "train.jsonl", 12)
    spec = make_spec(base, data)
    monkeypatch.setattr(
        peers, "why_not_importable", lambda _, package: "not found" if package == "nemo_automodel" else None
    )
    monkeypatch.setattr(speed_card, "mfu", lambda rate, flop, device: 0.33)
    seen = {}

    def run_peer(work: object, peer: peers.Peer, seconds: float) -> Measured:
        seen[peer.name] = peer.options
        return measured(2.0)

    workload = Workload(tmp_path, tmp_path, spec, [], [])
    monkeypatch.setattr(train, "prepare", lambda directory, options: workload)
    kernels = []

    def run_tunery(work: Workload, number: int, seconds: float) -> Measured:
        kernels.append(work.spec.cuda_kernels)
        return measured(2.0, 0.5)

    monkeypatch.setattr(train, "run_tunery", run_tunery)
    monkeypatch.setattr(train, "run_peer", run_peer)
    card = speed_card.measure("cuda", base, Path(sys.executable), 600)
    assert kernels == [False, True]
    assert list(seen) == ["TRL", "TRL, keeping all", "Unsloth", "Unsloth, keeping all"]
    assert all(options["padding_free"] and options["micro_batch"] == 8 for options in seen.values())
    assert (card["absent"], card["loss_problem"]) == ({"NeMo AutoModel": "not installed"}, "")
    assert any("NeMo AutoModel 12,473" in line and "docs.nvidia.com" in line for line in speed_card.lines(card))
    of_unsloth = next(line.split("|") for line in speed_card.lines(card) if "| Unsloth |" in line)
    assert [cell.strip() for cell in of_unsloth[2:6]] == ["100", "33.0%", "2.00", "1.00 GB"]


def test_a_side_that_learned_less_is_named() -> None:
    rows = [speed_card.row("Tunery", measured(2.0), FLOP, "cpu"), speed_card.row("TRL", measured(2.03), FLOP, "cpu")]
    assert re.findall(r"[A-Z]\w+|\d\.\d+", speed_card.loss_problem(rows)) == ["TRL", "2.0300", "Tunery", "2.0000"]
    assert speed_card.loss_problem([rows[0], speed_card.row("TRL", measured(2.01), FLOP, "cpu")]) == ""
    assert speed_card.loss_problem([rows[0], speed_card.row("TRL", measured(float("nan")), FLOP, "cpu")])
    assert speed_card.loss_problem(rows[1:]) == ""
