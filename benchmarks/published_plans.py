"""Plans beside published numbers, `make bench-plan ARGS=--published`: memory, tokens a second, the longest document.

Arithmetic only, no GPU: what the plan of this version says of jobs that others have measured or state as a minimum. The
table is that of docs/how-it-works/decisions/plan.md. GB are 10^9 bytes, the adapter is on all linear layers, with
rank 16 unless the case names another. Speeds are those of the plan for the card, memory that of the smallest plan.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace

from app.domain.base_models.catalog import CatalogEntry
from app.domain.jobs.hyperparameters import OptimizerName
from app.domain.jobs.spec import JobSpec, QuantizationSpec
from app.domain.planning.base_sizes import COMMON_BASES, LLAMA, DecoderShape, card_bytes, usual_job
from app.domain.planning.duration import JobCost
from app.domain.planning.estimate import USABLE_MEMORY_SHARE, Device, Placement, estimate_placement
from app.domain.planning.memory import hosted_embedding_bytes, offloaded_bytes
from app.domain.planning.packing import SequenceLengths, Workload, mean_packed_length

BASES = {base.name: base.entry for base in COMMON_BASES} | {
    base.name: base.entry
    for base in (
        DecoderShape("Llama-2-7B", LLAMA, 32, 4096, 11_008, 32, 32, 128, 32_000),
        DecoderShape("Llama-3.1-70B", LLAMA, 80, 8192, 28_672, 64, 8, 128, 128_256),
    )
}
H100 = Device("cuda", "NVIDIA H100 80GB HBM3", card_bytes(80))
RTX_4090 = Device("cuda", "NVIDIA GeForce RTX 4090", card_bytes(24))
RTX_6000_ADA = Device("cuda", "NVIDIA RTX 6000 Ada Generation", 49_140 << 20)
RTX_A6000 = Device("cuda", "NVIDIA RTX A6000", 49_140 << 20)
STEPS = 64
HEADER = ("plan", "published", "ratio", "why they differ")
MAX_TOKENS = 1_000_000


@dataclass(frozen=True)
class Job:
    """A batch of equally long documents."""

    base: str
    tokens: int
    documents: int = 1
    bits: int = 4
    rank: int = 16
    optimizer: OptimizerName = "adamw"

    def placed(self, device: Device) -> Placement:
        return estimate_placement(self.entry, self.spec, self.work, device)

    def tokens_per_second(self, device: Device, **changes: object) -> float:
        """`changes` are those of the plan: other recomputation, or no fused kernels."""
        plan = self.placed(device).plan.model_copy(update=changes)
        mean_tokens = mean_packed_length(self.work.lengths, self.spec.hyperparameters, 0, plan.row_tokens)
        cost = JobCost(self.entry, self.spec, self.work, "cuda", device.estimated_flops)
        return cost.flops / cost.of_step(plan, mean_tokens)

    @property
    def least_gigabytes(self) -> float:
        return self.placed(Device("cuda", "", 0)).memory.total / 1e9

    def longest_document(self, memory_bytes: int, host_bytes: int | None = None) -> int:
        """The tokens of the longest document that fits, to a hundred; 0 if none does.

        `host_bytes` limit the inputs of layers in host memory; None: not limited.
        """
        device = Device("cuda", "", memory_bytes, host_bytes=host_bytes)

        def is_too_long(tokens: int) -> bool:
            return not replace(self, tokens=tokens).placed(device).fits

        hundreds = range(1, MAX_TOKENS // 100)
        return 100 * bisect_left(hundreds, True, key=lambda each: is_too_long(100 * each))

    def host_gigabytes(self, tokens: int) -> float:
        """The host memory of a plan that keeps the inputs of the layers and the embedding there."""
        of_layers = offloaded_bytes(self.entry.hidden_size, self.entry.decoder_layers, 2, tokens)
        return (of_layers + hosted_embedding_bytes(self.entry, replace(self, tokens=tokens).spec.layer_lora, 2)) / 1e9

    @property
    def entry(self) -> CatalogEntry:
        return BASES[self.base]

    @property
    def spec(self) -> JobSpec:
        quantization = QuantizationSpec() if self.bits == 4 else None
        job = usual_job(self.entry, self.tokens, quantization, self.rank, self.documents)
        optimized = job.hyperparameters.model_copy(update={"optimizer": self.optimizer})
        return job.model_copy(update={"hyperparameters": optimized})

    @property
    def work(self) -> Workload:
        lengths = SequenceLengths()
        for _ in range(STEPS * self.documents):
            lengths.add([self.tokens])
        return Workload.of(self.spec, lengths)


@dataclass(frozen=True)
class Comparison:
    case: str
    plan: float
    published: float
    source: str
    why: str

    @property
    def cells(self) -> tuple[str, ...]:
        digits = 0 if self.published > 100 else 1
        plan, published = f"{self.plan:,.{digits}f}", f"{self.published:,.{digits}f} ({self.source})"
        return self.case, plan, published, f"{self.plan / self.published:.2f}", self.why


def speeds() -> Iterator[Comparison]:
    """Tokens a second."""
    long, short = Job("Llama-3.1-8B", 4096, 2, bits=16), Job("Llama-3.1-8B", 1024, 4, bits=16)
    yield Comparison(
        "8B, 16 bits, 2 x 4,096, H100", long.tokens_per_second(H100), 12_473, "NeMo AutoModel",
        "They report 402 TFLOP/s; the plan assumes FlashAttention 2, and adapters whose products are not stacked.",
    )  # fmt: skip
    yield Comparison(
        "8B, 16 bits, 4 x 1,024, H100, not fused", short.tokens_per_second(H100, cuda_kernels=False), 9_621,
        "TRL, SDPA",
        "Eager operators on both sides: the assumed 0.4 of the peak is a tenth too high beside SDPA.",
    )  # fmt: skip
    yield Comparison(
        "8B, 16 bits, 4 x 1,024, H100", short.tokens_per_second(H100), 10_256, "TRL, FlashAttention 2, Liger",
        "Fusing and flash attention gained them 7 %, the sums of this plan give 15 %, loss chunks included.",
    )  # fmt: skip
    small = Job("Llama-3.1-8B", 2048, 2, rank=8)
    yield Comparison(
        "8B, 4 bits, r 8, 2 x 2,048, RTX 4090", small.tokens_per_second(RTX_4090), 2_413, "torchtune, compiled",
        "torchtune recomputes every layer; the plan has 24 GB and recomputes norms and activations only.",
    )  # fmt: skip
    yield Comparison(
        "the same, every layer recomputed", small.tokens_per_second(RTX_4090, recompute="everything"), 2_413,
        "torchtune, compiled", "torchtune compiles whole layers, the plan fuses norms, gates and rope.",
    )  # fmt: skip
    small = replace(small, bits=16)
    yield Comparison(
        "8B, 16 bits, r 8, 2 x 2,048, RTX 4090", small.tokens_per_second(RTX_4090), 3_083, "torchtune, compiled",
        "torchtune recomputes every layer and compiles it; the plan recomputes norms and activations only.",
    )  # fmt: skip
    yield Comparison(
        "8B, 16 bits, r 8, 2 x 2,048, RTX A6000", small.tokens_per_second(RTX_A6000), 4_699, "torchtune, compiled",
        "Theirs would be 0.96 of the peak in the data sheet: probably an RTX 6000 Ada, "
        f"for which the plan has {small.tokens_per_second(RTX_6000_ADA):,.0f}.",
    )  # fmt: skip


def memory() -> Iterator[Comparison]:
    """GB of the smallest plan."""
    context = "The plan counts the CUDA context and 16 bytes for each trained parameter"
    recomputed = "The plan recomputes every layer and keeps the inputs of layers and the embedding in host memory."
    eight = Job("Llama-3.1-8B", 2048)
    for case, job, published, source, why in (
        ("3B, 4 bits, 2,048 tokens", Job("Llama-3.2-3B", 2048), 3.5, "Unsloth", f"{context}; theirs is a minimum."),
        ("7B, 4 bits, 2,048 tokens", Job("Llama-2-7B", 2048), 5.0, "Unsloth", f"{context}; theirs is a minimum."),
        ("the same", Job("Llama-2-7B", 2048), 6.0, "LLaMA-Factory", "Their estimate has no length."),
        ("8B, 4 bits, 2,048 tokens", eight, 6.0, "Unsloth",
         "Theirs is less than NF4, embedding and head in 16 bits (5.7) and a CUDA context (0.5) take."),
        ("8B, 4 bits, r 8, 2 x 2,048", replace(eight, documents=2, rank=8), 7.95, "torchtune",
         "Theirs keeps the inputs of layers on the GPU and has no CUDA context (0.5); the plan has one document after "
         "the other."),
        ("8B, 16 bits, r 8, 2 x 2,048", replace(eight, documents=2, rank=8, bits=16), 17.4, "torchtune",
         "Theirs has no CUDA context, and moments in bfloat16."),
        ("8B, 16 bits, 2,048 tokens", replace(eight, bits=16), 22.0, "Unsloth", recomputed),
        ("7B, 16 bits, 2,048 tokens", Job("Llama-2-7B", 2048, bits=16), 16.0, "LLaMA-Factory",
         "Theirs is an estimate: 2 bytes for each parameter, rounded up."),
        ("14B, 4 bits, 2,048 tokens", Job("Qwen3-14B", 2048), 8.5, "Unsloth",
         "Theirs is less than the base alone takes in NF4, with embedding and head in 16 bits (9.9)."),
        ("the same", Job("Qwen3-14B", 2048), 12.0, "LLaMA-Factory", "Their estimate knows no vocabulary of 151,936."),
        ("32B, 4 bits, 2,048 tokens", Job("Qwen3-32B", 2048), 26.0, "Unsloth", recomputed),
        ("32B, 16 bits, 2,048 tokens", Job("Qwen3-32B", 2048, bits=16), 76.0, "Unsloth", recomputed),
        ("70B, 4 bits, 2,048 tokens", Job("Llama-3.1-70B", 2048), 41.0, "Unsloth", f"{context}; theirs is a minimum."),
        ("the same", Job("Llama-3.1-70B", 2048), 48.0, "LLaMA-Factory", "Their estimate has no length."),
        ("the same, moments in 8 bits", Job("Llama-3.1-70B", 2048, optimizer="adamw_8bit"), 41.0, "Unsloth",
         "The plan counts the CUDA context and 10 bytes for each trained parameter; theirs is a minimum."),
        ("70B, 4 bits, r 32, 2,048 tokens", Job("Llama-3.1-70B", 2048, rank=32), 48.0, "a card of 48 GB",
         f"Of an L40S with error correction {USABLE_MEMORY_SHARE * card_bytes(48) / 1e9:.1f} may be planned."),
    ):  # fmt: skip
        yield Comparison(case, job.least_gigabytes, published, source, why)
    kept = replace(eight, tokens=1024, documents=4, bits=16)
    yield Comparison(
        "8B, 16 bits, 4 x 1,024, nothing recomputed", kept.placed(H100).memory.total / 1e9, 76.2, "TRL",
        "Norms, gates and adapters keep their inputs only, and logits exist in chunks.",
    )  # fmt: skip


def documents() -> Iterator[Comparison]:
    """Tokens of the longest document."""
    job = Job("Llama-3.1-8B", 0, rank=32)
    tiled = "Both keep the inputs of layers in host memory; in the plan the MLP runs in chunks, too"
    for size, published in ((8, 2_972), (12, 21_848), (16, 40_724), (24, 78_475), (80, 342_733)):
        tokens = job.longest_document(card_bytes(size))
        text = f"{tiled}: {job.host_gigabytes(tokens):.0f} GB of host memory."
        yield Comparison(f"8B, 4 bits, r 32, {size} GB", tokens, published, "Unsloth", text)
    yield Comparison(
        "8B, 4 bits, r 32, 24 GB, nothing in host memory", job.longest_document(card_bytes(24), 0), 78_475, "Unsloth",
        "They keep the inputs of layers in host memory; here they are three quarters of what a token takes.",
    )  # fmt: skip
    big = replace(job, base="Llama-3.1-70B")
    tokens = big.longest_document(card_bytes(80))
    text = f"{tiled}: {big.host_gigabytes(tokens):.0f} GB of host memory."
    yield Comparison("70B, 4 bits, r 32, 80 GB", tokens, 89_389, "Unsloth", text)
    for size, published in ((12, 932), (16, 2_551), (24, 5_789), (80, 28_454)):
        case = f"8B, 4 bits, r 32, {size} GB"
        text = "Their logits exist as a whole in float32, and every layer keeps more than its input."
        yield Comparison(case, job.longest_document(card_bytes(size)), published, "Transformers", text)


def markdown() -> Iterator[str]:
    """The lines of the table."""
    for title, rows in (("tokens a second", speeds()), ("GB", memory()), ("longest document, tokens", documents())):
        header = (title, *HEADER)
        for cells in (header, ["---"] * len(header), *(each.cells for each in rows)):
            yield f"| {' | '.join(cells)} |"
        yield ""
