"""What a training step holds in memory, by component, from the shapes of the base alone.

Letters as in the papers: L layers, d hidden size, q and kv the widths of queries and keys, f the inner width, V the
vocabulary, T tokens of the largest row, N parameters of the linear layers, P of the adapter; w bytes of a computed
number, a of a number inside attention. Derived from what autograd keeps of transformers' Llama-like layers under our
LoRA product, and held against measurements: docs/decisions/0014-the-plan.md.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from app.domain.base_models.catalog import IGNORED_LAYERS, CatalogEntry
from app.domain.jobs.layer_patterns import rank_of
from app.domain.jobs.spec import JobSpec, LoraSpec, QuantizationSpec
from app.domain.planning.execution_plan import ExecutionPlan

DeviceKind = Literal["cpu", "cuda"]

PROCESS_BYTES = {"cpu": 440_000_000, "cuda": 500_000_000}  # Python, torch and transformers; the CUDA context
KERNEL_BYTES = {"cpu": 100_000_000, "cuda": 0}  # seen: 55 MB after the first row, then what oneDNN compiles
LOSS_BYTES = 32 << 20  # of logits at a time: worker/trainer/objective/linear_cross_entropy.py
LEAST_LOSS_ROWS = 128
BYTES_PER_LOGIT = 6
OPTIMIZER_BYTES = 16  # of a trained number: master, gradient, two moments, float32 each
LONGEST_IN_BLOCKS = 512  # tokens of a document: worker/trainer/model/block_attention.py
VERIFY_TOKENS = 512  # the last check carries so many in float32, over the whole vocabulary for 64 of them
VERIFY_HEAD_ROWS = 8192  # of the vocabulary at a time: worker/trainer/checkpoint/verify.py
VERIFY_LOGITS = 64
# What blocks lose to rounding and gaps. A C heap whose rows have ever new lengths: with 301 and with 1,020 tokens in
# the largest row, runs took 428 and 1,038 MB over what was loaded, where the tensors were 274 and 741.
ALLOCATOR = {"cpu": 1.2, "cuda": 1.04}
# And what a softmax that short documents keep loses beside that: its size is that of no other row's, so it fits no gap
# of theirs. Of five jobs on the bundled model it explains what told rows of short documents from rows of long ones.
SOFTMAX_GAPS = 1.4


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak. `total` is less than their sum: loss, live layer and last check come one after the other."""

    process: int
    base: int
    adapter: int  # with its gradient and optimizer state
    cache: int  # dequantised weights
    activations: int
    live_layer: int  # what the backward of one layer needs beside that
    loss: int
    verify: int
    kernels: int  # what the libraries of a CPU build for each new shape and keep, and their own buffers

    @property
    def loaded(self) -> int:
        """What stays from the first step to the last."""
        return self.process + self.base + self.adapter + self.cache

    @property
    def working(self) -> int:
        """What a step adds and gives back."""
        return max(self.activations + max(self.live_layer, self.loss), self.verify) + self.kernels

    @property
    def total(self) -> int:
        return self.loaded + self.working

    def scaled(self, loaded: float, working: float) -> Memory:
        """Corrected by what was measured: ratios of the part that stays and the part that comes and goes."""
        stays = ("process", "base", "adapter", "cache")
        return Memory(
            **{each.name: int(getattr(self, each.name) * (loaded if each.name in stays else working))
               for each in fields(self)}
        )  # fmt: skip


@dataclass(frozen=True)
class _Row:
    """The largest row there is, and what it goes through."""

    entry: CatalogEntry
    lora: LoraSpec
    plan: ExecutionPlan
    kind: DeviceKind
    tokens: int
    width: int  # bytes of a computed number
    attended_tokens: int  # of a token's document, on average over all tokens
    densest_tokens: int  # on average over those of the row in which it is most
    weight_bytes: int  # of a weight of the frozen layer that is in use, for the while


def memory(
    entry: CatalogEntry,
    spec: JobSpec,
    plan: ExecutionPlan,
    kind: DeviceKind,
    row_tokens: int,
    attended_tokens: int = 0,
    densest_tokens: int = 0,
) -> Memory:
    """The peak of a job whose largest row has `row_tokens` tokens, in documents of `attended_tokens` on average, and
    of `densest_tokens` in the row of the longest."""
    width = computed_bytes(spec.quantization)
    trained = trained_parameters(entry, spec.layer_lora)
    overhead = ALLOCATOR[kind]
    row = _Row(
        entry, spec.layer_lora, plan, kind, row_tokens, width, attended_tokens, densest_tokens, weight_bytes(spec)
    )
    return Memory(
        process=PROCESS_BYTES[kind],
        base=int(base_bytes(entry, spec.quantization)),
        adapter=trained * OPTIMIZER_BYTES,
        cache=cache_bytes(entry, spec.quantization) if plan.cache_weights else 0,
        activations=int(overhead * _activations(row)),
        live_layer=int(overhead * _live_layer(row)) + _embedding(row),
        loss=int(overhead * _loss(entry, row_tokens, width)) + _head(row),
        verify=int(overhead * _verify(entry, trained)),
        kernels=KERNEL_BYTES[kind],
    )


def computed_bytes(quantization: QuantizationSpec | None) -> int:
    return 4 if quantization is not None and quantization.compute_dtype == "float32" else 2


def base_bytes(entry: CatalogEntry, quantization: QuantizationSpec | None) -> float:
    """NF4 in blocks of 64 with a float32 scale each; double quantisation keeps bytes and a scale per 256 of them."""
    width = computed_bytes(quantization)
    rest = (entry.parameters - entry.linear_parameters) * width
    if quantization is None:
        return entry.linear_parameters * width + rest
    if quantization.bits == 8:
        return entry.linear_parameters * 1.0 + rest
    scales = 1 / 64 + 4 / (64 * 256) if quantization.double_quant else 4 / 64
    return entry.linear_parameters * (0.5 + scales) + rest


def cache_bytes(entry: CatalogEntry, quantization: QuantizationSpec | None) -> int:
    """Of a base that is not quantised nothing need be cached."""
    return entry.linear_parameters * computed_bytes(quantization) if quantization is not None else 0


def adapter_parameters(entry: CatalogEntry, lora: LoraSpec) -> int:
    """P: r x (inputs + outputs) of each target, in every layer; patterns count where the layers' names are known."""
    if targets := _targets(entry, lora):
        return sum(rank_of(lora, name) * sum(shape) for name, shape in targets.items())
    return entry.decoder_layers * sum(lora.r * sum(entry.target_modules[name]) for name in lora.target_modules)


def ranks_of_layer(entry: CatalogEntry, lora: LoraSpec) -> float:
    """The ranks of a layer's targets together, on average over layers."""
    if lora.rank_pattern and (targets := _targets(entry, lora)):
        return sum(rank_of(lora, name) for name in targets) / max(1, entry.decoder_layers)
    return lora.r * len(lora.target_modules)


def trained_parameters(entry: CatalogEntry, lora: LoraSpec) -> int:
    """P, DoRA's magnitude of each output, and the matrices that are trained whole. Norms are lost beside those."""
    magnitudes = entry.decoder_layers * _outputs(entry, lora) if lora.use_dora else 0
    matrices = sum(name in IGNORED_LAYERS for name in whole_modules(entry, lora))
    return adapter_parameters(entry, lora) + magnitudes + matrices * entry.vocab_size * entry.hidden_size


def whole_modules(entry: CatalogEntry, lora: LoraSpec) -> list[str]:
    """The last names of what is trained whole; as in PEFT, "norm" is every norm."""
    ends = tuple(name.rpartition(".")[2] for name in lora.modules_to_save)
    return [name for name in entry.whole_modules if name.endswith(ends)] if ends else []


def weight_bytes(spec: JobSpec) -> int:
    """Of one weight while its layer computes: two float32 copies where rows have scales, or lengths (DoRA's)."""
    has_rows = spec.quantization is not None and spec.quantization.bits == 8
    return 8 if has_rows or spec.lora.use_dora else computed_bytes(spec.quantization)


def _targets(entry: CatalogEntry, lora: LoraSpec) -> dict[str, tuple[int, int]]:
    """By their full names, where those are known."""
    return {name: shape for name, shape in entry.layers.items() if name.split(".")[-1] in lora.target_modules}


def kept_bytes_per_token(row: _Row, elementwise: bool) -> int:
    """What one layer keeps of a token for its backward.

    Norms keep their input and output, the gated product gate, up and product. Made again element by element, what is
    left of those are the inputs: the residual twice, gate and up.
    """
    d, f, lora = row.entry.hidden_size, row.entry.intermediate_size, row.lora
    others = 2 * row.width * (d + f) if elementwise else row.width * (4 * d + 3 * f)
    if elementwise and set(whole_modules(row.entry, lora)) - IGNORED_LAYERS:
        others += 2 * row.width * d  # a norm that is trained is not made again: worker/trainer/recompute.py
    of_adapter = int(row.width * ranks_of_layer(row.entry, lora))
    if lora.use_dora:
        of_adapter += 2 * row.width * _outputs(row.entry, lora)  # W x and B A x, for the gradient of the magnitude
    masks = sum(row.entry.target_modules[name][1] for name in lora.target_modules) if lora.dropout else 0
    return _attention_bytes(row) + others + of_adapter + masks


def _outputs(entry: CatalogEntry, lora: LoraSpec) -> int:
    """Of a layer's targets together."""
    return sum(entry.target_modules[name][0] for name in lora.target_modules)


def _attention_bytes(row: _Row) -> int:
    """Queries, keys, values and the output; on a CPU short documents keep their softmax too, and long ones, or
    float32, all in float32 beside the output (worker/trainer/model/block_attention.py)."""
    q, kv = row.entry.query_size, row.entry.key_size
    if row.kind == "cuda":
        return row.width * (2 * q + 2 * kv)
    if row.width == 4 or row.attended_tokens > LONGEST_IN_BLOCKS:
        return 4 * (2 * q + 2 * kv) + row.width * q
    softmax = row.entry.attention_heads * int(max(SOFTMAX_GAPS * row.attended_tokens, row.densest_tokens))
    return row.width * (2 * q + 2 * kv + softmax)


def _activations(row: _Row) -> int:
    """All layers' kept numbers, the embedding and the last norm's."""
    entry, layers = row.entry, row.entry.decoder_layers
    whole = {"layers": row.plan.recompute_layers, "everything": layers}.get(row.plan.recompute, 0)
    kept = kept_bytes_per_token(row, elementwise=row.plan.recompute != "nothing")
    ends = (4 + 3 * row.width) * entry.hidden_size
    factors = adapter_parameters(entry, row.lora) * row.width * (layers - whole) // max(1, layers)
    return row.tokens * (whole * row.width * entry.hidden_size + (layers - whole) * kept + ends) + factors


def _live_layer(row: _Row) -> int:
    """Gradients of the gated product's parts; beside them what was not kept, made again; one dequantised weight."""
    d, f = row.entry.hidden_size, row.entry.intermediate_size
    per_token = row.width * (d + 3 * f)
    if row.plan.recompute in ("elementwise", "layers"):
        per_token += 2 * row.width * f
    if row.plan.recompute in ("layers", "everything"):
        per_token += kept_bytes_per_token(row, elementwise=False) + 2 * row.width * f
    is_at_hand = row.plan.cache_weights and row.weight_bytes == row.width
    weight = 0 if is_at_hand else row.weight_bytes * d * max(f, row.entry.query_size)
    return row.tokens * per_token + weight


def _loss(entry: CatalogEntry, row_tokens: int, width: int) -> int:
    """One chunk of logits, as the product leaves them and in float32; the labelled hidden states and their gradient."""
    vocabulary = entry.vocab_size
    rows = min(row_tokens, max(LEAST_LOSS_ROWS, LOSS_BYTES // (BYTES_PER_LOGIT * vocabulary)))
    return rows * vocabulary * (4 + width) + 2 * row_tokens * width * entry.hidden_size


def _embedding(row: _Row) -> int:
    """Of one that is trained whole the row's gradient, as it comes and in float32: blocks of their own, beside a heap
    that still has the size of all activations. Of 170 MB 147 were seen on the bundled model."""
    trained = set(whole_modules(row.entry, row.lora)) & (IGNORED_LAYERS - {"lm_head"})
    return (row.width + 4) * row.entry.vocab_size * row.entry.hidden_size if trained else 0


def _head(row: _Row) -> int:
    """One that is trained whole: itself as it computes, its gradient of a chunk, of the row in float32, and while that
    is added to the step's once more. Of 340 MB 314 were seen on the bundled model."""
    if "lm_head" not in whole_modules(row.entry, row.lora):
        return 0
    return (2 * row.width + 8) * row.entry.vocab_size * row.entry.hidden_size


def _verify(entry: CatalogEntry, trained: int) -> int:
    """The saved adapter beside the trained one, a part of the head and one layer of a short row in float32, logits."""
    head = 4 * min(entry.vocab_size, VERIFY_HEAD_ROWS) * entry.hidden_size
    logits = 4 * 4 * VERIFY_LOGITS * entry.vocab_size  # ours, PEFT's, their difference and its absolute
    weight = 4 * entry.hidden_size * max(entry.intermediate_size, entry.query_size)
    row = VERIFY_TOKENS * 4 * (4 * entry.hidden_size + 3 * entry.intermediate_size)
    return 2 * 4 * trained + head + logits + weight + row
