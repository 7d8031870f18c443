"""Plans beside published numbers: the page has the table of this version, and the plans are not far from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.domain.planning.base_sizes import card_bytes, smallest_card_gigabytes
from app.domain.planning.estimate import Device
from benchmarks import card_table
from benchmarks.published_plans import H100, Job, markdown, speeds
from tests.sentences import Reviewed

PAGE = (Path(__file__).parents[2] / "docs" / "how-it-works" / "decisions" / "plan.md").read_text(encoding="utf-8")


def test_the_page_has_the_tables_of_this_version() -> None:
    assert "\n".join(markdown()).strip() in PAGE
    peers = [row.plan / row.published for row in speeds() if "torchtune" not in row.source]
    assert peers == pytest.approx([1.0] * 3, abs=0.25)


@pytest.mark.extended("144 plans, 12 s")
def test_the_page_for_choosing_a_base_has_the_tables_of_this_version() -> None:
    page = card_table.PAGE.read_text(encoding="utf-8")
    assert card_table.written(page) == page, "write them again: python -m benchmarks.card_table"


def test_a_70b_in_4_bits_fits_a_card_of_48_gb_with_rank_32(reviewed: Reviewed) -> None:
    """An L40S has 46,068 MiB with error correction, of which the driver keeps 2 %; an RTX A6000 has 49,140."""
    placement = Job("Llama-3.1-70B", 2048, rank=32).placed(Device("cuda", "NVIDIA L40S", card_bytes(48)))
    assert placement.fits, placement.message
    reviewed(placement.details)


@pytest.mark.parametrize(
    ("base", "tokens", "expected"),
    [  # without fused kernels, sums of the parts of a step on an H100: 8 rows of the length, 16 bits
        ("Llama-3.1-8B", 4096, 10_300),
        ("Llama-3.1-8B", 250, 9_000),
        ("Llama-3.1-8B", 100, 7_000),
        ("Llama-3.2-1B", 256, 38_000),
        ("Qwen3-0.6B", 256, 27_000),
    ],
)
def test_short_steps_of_small_models_launch_longer_than_they_compute(base: str, tokens: int, expected: int) -> None:
    assert Job(base, tokens, 8, bits=16).tokens_per_second(H100, cuda_kernels=False) == pytest.approx(
        expected, rel=0.25
    )


@pytest.mark.parametrize(
    ("gigabytes", "card"), [(8.3, 8), (8.5, 12), (25.2, 24), (25.5, 32), (83.7, 80), (84.0, 141), (148.0, None)]
)
def test_a_card_has_what_its_driver_offers(gigabytes: float, card: int | None) -> None:
    assert smallest_card_gigabytes(int(gigabytes * 1e9)) == card
