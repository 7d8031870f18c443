"""The memory that common base models need, from the plans of this service: for the choice of a base model.

The shapes are those of the `config.json` that each model's publisher distributes.
"""

from __future__ import annotations

from dataclasses import dataclass

from app.domain.base_models.catalog import CatalogEntry, default_learning_rate
from app.domain.jobs.spec import Hyperparameters, JobSpec, LoraSpec, QuantizationSpec
from app.domain.planning.estimate import USABLE_MEMORY_SHARE, Device, estimate_placement
from app.domain.planning.packing import SequenceLengths, Workload
from app.domain.scheduling.worker_capacity import SHARED_MEMORY_SHARE

# MiB that nvidia-smi reports, by the "GB" of the name: RTX 4060, RTX 4070, RTX 4080, RTX 4090, RTX 5090, L40S, H100,
# H200. Others of a size may have less, as error correction takes a part: an L4 has 23,034.
CARD_MEBIBYTES = {8: 8_188, 12: 12_282, 16: 16_376, 24: 24_564, 32: 32_607, 48: 46_068, 80: 81_559, 141: 143_771}
# The tokens of the longest document, and the format of the frozen weights.
USUAL_TRAININGS = ((2048, QuantizationSpec()), (8192, QuantizationSpec()), (2048, None))
EXAMPLES = 64
RANK = 16


@dataclass(frozen=True)
class DecoderShape:
    """A dense decoder with gated feed-forward layers."""

    name: str
    architecture: str
    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    key_heads: int
    head_size: int
    vocab_size: int
    has_tied_head: bool = False

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """[out, in] of the linear layers of one decoder layer."""
        hidden, inner = self.hidden_size, self.intermediate_size
        query, key = self.heads * self.head_size, self.key_heads * self.head_size
        return {
            "q_proj": (query, hidden),
            "k_proj": (key, hidden),
            "v_proj": (key, hidden),
            "o_proj": (hidden, query),
            "gate_proj": (inner, hidden),
            "up_proj": (inner, hidden),
            "down_proj": (hidden, inner),
        }

    @property
    def entry(self) -> CatalogEntry:
        linear_parameters = self.layers * sum(rows * columns for rows, columns in self.linear.values())
        parameters = linear_parameters + self.vocab_size * self.hidden_size * (1 if self.has_tied_head else 2)
        return CatalogEntry(
            architecture=self.architecture,
            context_length=32_768,
            hidden_size=self.hidden_size,
            vocab_size=self.vocab_size,
            parameters=parameters,
            size_bytes=2 * parameters,
            target_modules=self.linear,
            learning_rate=default_learning_rate(self.hidden_size, self.architecture),
            decoder_layers=self.layers,
            attention_heads=self.heads,
            query_size=self.heads * self.head_size,
            key_size=self.key_heads * self.head_size,
            intermediate_size=self.intermediate_size,
            linear_parameters=linear_parameters,
            has_chat_template=True,
        )


QWEN3, LLAMA = "Qwen3ForCausalLM", "LlamaForCausalLM"
COMMON_BASES = (
    DecoderShape("Qwen3-0.6B", QWEN3, 28, 1024, 3072, 16, 8, 128, 151_936, has_tied_head=True),
    DecoderShape("Llama-3.2-1B", LLAMA, 16, 2048, 8192, 32, 8, 64, 128_256, has_tied_head=True),
    DecoderShape("Qwen3-1.7B", QWEN3, 28, 2048, 6144, 16, 8, 128, 151_936, has_tied_head=True),
    DecoderShape("Llama-3.2-3B", LLAMA, 28, 3072, 8192, 24, 8, 128, 128_256, has_tied_head=True),
    DecoderShape("Qwen3-4B", QWEN3, 36, 2560, 9728, 32, 8, 128, 151_936, has_tied_head=True),
    DecoderShape("Llama-3.1-8B", LLAMA, 32, 4096, 14336, 32, 8, 128, 128_256),
    DecoderShape("Qwen3-8B", QWEN3, 36, 4096, 12288, 32, 8, 128, 151_936),
    DecoderShape("Qwen3-14B", QWEN3, 40, 5120, 17408, 40, 8, 128, 151_936),
    DecoderShape("Qwen3-32B", QWEN3, 64, 5120, 25600, 64, 8, 128, 151_936),
)


def least_memory_bytes(entry: CatalogEntry, document_tokens: int, quantization: QuantizationSpec | None) -> int:
    """The memory of the smallest GPU on which an adapter of rank 16 on all linear layers can be trained.

    All documents have `document_tokens` tokens. This is the plan with the least memory; a larger GPU is faster.
    """
    lengths = SequenceLengths()
    for _ in range(EXAMPLES):
        lengths.add([document_tokens])
    spec = usual_job(entry, document_tokens, quantization)
    placement = estimate_placement(entry, spec, Workload.of(spec, lengths), Device("cuda", "none", 0))
    return int(placement.memory.total / USABLE_MEMORY_SHARE)


def training_memory(entry: CatalogEntry) -> list[dict[str, int | None]]:
    """Of each of USUAL_TRAININGS the least memory, and the smallest usual card with it, or None."""
    return [
        {
            "bits": 16 if quantization is None else 4,
            "document_tokens": tokens,
            "bytes": (size_bytes := least_memory_bytes(entry, tokens, quantization)),
            "card_gigabytes": smallest_card_gigabytes(size_bytes),
        }
        for tokens, quantization in USUAL_TRAININGS
    ]


def smallest_card_gigabytes(memory_bytes: int) -> int | None:
    """The smallest of the usual cards with this memory, by the size in its name; None if none has it."""
    return next((size for size in CARD_MEBIBYTES if card_bytes(size) >= memory_bytes), None)


def card_bytes(size: int) -> int:
    """What a usual card of so many "GB" offers: of what nvidia-smi reports, the driver keeps a part."""
    return int(SHARED_MEMORY_SHARE * (CARD_MEBIBYTES[size] << 20))


def usual_job(
    entry: CatalogEntry,
    document_tokens: int,
    quantization: QuantizationSpec | None,
    rank: int = RANK,
    batch_size: int = 8,
) -> JobSpec:
    """An adapter on all linear layers, with documents of up to `document_tokens` tokens."""
    hyperparameters = Hyperparameters(
        n_epochs=3,
        batch_size=batch_size,
        learning_rate=entry.learning_rate,
        learning_rate_multiplier=1.0,
        warmup_ratio=0.0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        lr_scheduler_type="linear",
        context_length=document_tokens,
    )
    lora = LoraSpec(r=rank, alpha=2 * rank, target_modules=tuple(sorted(entry.target_modules)))
    return JobSpec(base_model="none", lora=lora, quantization=quantization, hyperparameters=hyperparameters, seed=0)
