"""The tables of docs/guides/choose-a-base.md: what fits on which card. `python -m benchmarks.card_table` writes them.

Arithmetic only, no GPU: the plans of this version for rank 16 on all linear layers, documents of 2,048 tokens, eight of
them a step, and 64 GB of free host memory. A cell has the tokens of a packed batch, and the speed beside that of the
same GPU with as much memory as the fastest plan wants.
"""

from __future__ import annotations

from pathlib import Path

from app.domain.planning.base_sizes import CARD_MEBIBYTES, COMMON_BASES, card_bytes
from app.domain.planning.estimate import Device
from benchmarks.published_plans import Job

PAGE = Path(__file__).resolve().parents[1] / "docs" / "guides" / "choose-a-base.md"
BEGIN, END = "<!-- Written by `python -m benchmarks.card_table`. -->", "<!-- End of the tables. -->"
TOKENS, DOCUMENTS, HOST_BYTES = 2048, 8, 64 << 30
UNLIMITED = Device("cuda", "", 10**15)
FORMATS = {"QLoRA, 4 bits": 4, "LoRA, 16 bits": 16}


def markdown() -> str:
    tables = []
    for title, bits in FORMATS.items():
        header = [title, *(f"{size} GB" for size in CARD_MEBIBYTES)]
        rows = [header, ["---"] * len(header), *(_row(base.name, bits) for base in COMMON_BASES)]
        tables.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(tables)


def _row(name: str, bits: int) -> list[str]:
    job = Job(name, TOKENS, DOCUMENTS, bits)
    fastest, cells = job.tokens_per_second(UNLIMITED), []
    for size in CARD_MEBIBYTES:
        device = Device("cuda", "", card_bytes(size), host_bytes=HOST_BYTES)
        placement = job.placed(device)
        speed = job.tokens_per_second(device) / fastest if placement.fits else 0
        cells.append(f"{placement.plan.row_tokens:,}, {100 * speed:.0f} %" if placement.fits else "no")
    return [name, *cells]


def written(page: str) -> str:
    """The page with the tables of this version."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{markdown()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
