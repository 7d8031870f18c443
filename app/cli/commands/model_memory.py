"""`tunery models memory`: the memory that common base models need, for the choice of a base model."""

from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.options import AsJson
from app.cli.output.console import print_json, print_note, print_table

if TYPE_CHECKING:
    from app.domain.planning.base_sizes import DecoderShape

commands = typer.Typer()

COLUMNS = ["base model", "parameters", "QLoRA, 2,048 tokens", "QLoRA, 8,192 tokens", "16-bit LoRA, 2,048 tokens"]


@commands.command("memory")
def memory(
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
) -> None:
    """Print the GPU memory that training on common base models needs at least, by this version's plans.

    For an adapter of rank 16 on all linear layers and documents of the given length, and the smallest usual card with
    this memory. It needs no service; `tunery jobs plan` plans a job with its own data on the service's devices.
    """
    from app.domain.planning.base_sizes import COMMON_BASES

    rows = [_row(base) for base in COMMON_BASES]
    if as_json:
        print_json([dict(zip(COLUMNS, row, strict=True)) for row in rows])
    elif markdown:
        for line in markdown_table(rows):
            typer.echo(line)
    else:
        print_table(COLUMNS, rows, "")
        print_note("Estimated from shapes. More memory is faster: packed batches get longer and less is recomputed.")


def markdown_table(rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows)]


def _row(base: "DecoderShape") -> list[str]:
    from app.domain.jobs.spec import QuantizationSpec
    from app.domain.planning.base_sizes import least_memory_bytes, smallest_card_gigabytes

    entry, cells = base.entry, []
    for document_tokens, quantization in ((2048, QuantizationSpec()), (8192, QuantizationSpec()), (2048, None)):
        size_bytes = least_memory_bytes(entry, document_tokens, quantization)
        card = smallest_card_gigabytes(size_bytes)
        cells.append(f"{size_bytes / 1e9:.1f} GB ({f'{card} GB card' if card else 'no single card'})")
    return [base.name, f"{entry.parameters / 1e9:.1f} B", *cells]
