"""The memory plan: the peak memory of a training step, by component, from the shapes of the base model alone.

Letters as in the papers: L layers, d hidden size, q and kv the widths of queries and keys, f the inner width, V the
vocabulary, T tokens of the largest packed batch, N parameters of the linear layers, P of the adapter; w bytes of a
number in the compute dtype. Derived from what autograd saves in transformers' Llama-like layers with the trainer's LoRA
function, and compared with measurements: docs/how-it-works/decisions/plan.md.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from app.domain.base_models.catalog import IGNORED_LAYERS, CatalogEntry
from app.domain.jobs.spec import Hyperparameters, JobSpec, LoraSpec, QuantizationSpec
from app.domain.planning.adapter_size import (
    adapter_bytes_per_token,
    adapter_parameters,
    fully_trained_modules,
    trained_norm_bytes_per_token,
    trained_parameters,
)
from app.domain.planning.execution_plan import ExecutionPlan

DeviceKind = Literal["cpu", "cuda"]
DESCRIBED_ARCHITECTURES = frozenset({"LlamaForCausalLM", "MistralForCausalLM"})  # exactly, without a count

PROCESS_BYTES = {"cpu": 440_000_000, "cuda": 500_000_000}  # Python, torch and transformers; the CUDA context
KERNEL_BYTES = {"cpu": 100_000_000, "cuda": 0}  # measured: 55 MB after the first batch, then what oneDNN compiles
LOSS_BYTES = 32 << 20  # of logits in one chunk: 128 tokens at V = 49,152, so that most of it fits into the cache
MIN_CHUNK_TOKENS = 128
CUDA_CHUNK_TOKENS = 2048  # a chunk reads the head twice: with 128 tokens on an H100 that takes longer than the products
GATED_MLP_LAYERS = ("gate_proj", "up_proj", "down_proj")
OFFLOADED_LAYERS = 2  # with `offload`, so many inputs of layers are on the GPU at once
BYTES_PER_LOGIT = 6  # the product's output in 16 bits, and its float32 copy
# Weights of experts that are dequantized at once, by device (worker/trainer/model/experts.py): on a GPU those of all
# experts of a layer of Qwen3 30B-A3B (402 million) or gpt-oss 20B (531 million), so that nothing is read back.
EXPERT_WEIGHTS = {"cpu": 1 << 26, "cuda": 1 << 29}
BLOCK = 64  # weights with one scale, in NF4 and FP4
SCALE_BLOCK = 256  # scales that double quantization stores as bytes, with one scale of their own
MASTER_BYTES, GRADIENT_BYTES = 4, 4  # per trained parameter: float32
MOMENT_BYTES = {"adamw": 8, "adamw_8bit": 2}  # both moments; those in 8 bits have a scale for 256 numbers, 0.03 bytes
# worker/trainer/model/attention/attention.py: flash attention shares key and value heads between query heads, other
# kernels on CUDA expand them. It has no float32, no larger heads and no capped scores (Gemma 2).
MAX_FLASH_HEAD_SIZE = 256
FLASH_HEAD_SIZE_STEP = 8
ARCHITECTURES_WITHOUT_FLASH = frozenset({"Gemma2ForCausalLM"})
MAX_BLOCK_ATTENTION_TOKENS = 512  # of a document: worker/trainer/kernels/cpu/block_attention.py
VERIFY_TOKENS = 512  # of the final verification, in float32
VERIFY_HEAD_ROWS = 8192  # of the head in float32 at a time: 134 MB at D = 4,096, where all 151,936 would take 2.5 GB
VERIFY_LOGITS = 64  # of the last positions, each with the logits of the complete vocabulary
# Overhead of the allocator by rounding and fragmentation. A C heap fragments because every packed batch has another
# length: with 301 and 1,020 tokens in the largest batch, runs took 428 and 1,038 MB above the loaded memory; the
# tensors took 274 and 741 MB.
ALLOCATOR_OVERHEAD = {"cpu": 1.2, "cuda": 1.04}
# Additional fragmentation by the softmax saved for short documents: its size differs in each batch, so it does not fit
# into freed blocks. In five jobs on the bundled model it explains the difference between batches of short documents and
# batches of long ones.
SOFTMAX_OVERHEAD = 1.4


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by component. `total` is less than their sum, because loss, live layer and verification do not overlap."""

    process: int
    base: int
    adapter: int  # with its gradients and optimizer state
    cache: int  # dequantized weights
    activations: int
    live_layer: int  # additional memory of the backward of one layer
    loss: int
    verify: int  # of the checks before the first and after the last step, less gradients and moments
    forwards: int  # of batches that are longer than those of the steps, without gradients
    kernels: int  # kernels that CPU libraries compile and cache for each new shape, and their buffers

    @property
    def loaded(self) -> int:
        """Memory that stays allocated from the first to the last step."""
        return self.process + self.base + self.adapter + self.cache

    @property
    def working(self) -> int:
        """Memory that a step allocates and frees."""
        step = self.activations + max(self.live_layer, self.loss)
        return max(step, self.verify, self.forwards) + self.kernels

    @property
    def total(self) -> int:
        return self.loaded + self.working

    def scaled(self, loaded: float, working: float) -> MemoryEstimate:
        """This estimate multiplied by measured ratios for the loaded and the working part."""
        ratios = dict.fromkeys(("process", "base", "adapter", "cache"), loaded)
        return MemoryEstimate(
            **{each.name: int(getattr(self, each.name) * ratios.get(each.name, working)) for each in fields(self)}
        )


@dataclass(frozen=True)
class _LargestBatch:
    """The largest packed batch of a job, and what determines its memory."""

    entry: CatalogEntry
    lora: LoraSpec
    plan: ExecutionPlan
    kind: DeviceKind
    tokens: int
    width: int  # bytes of a number in the compute dtype
    mean_attended_tokens: int  # length of a token's document, averaged over all tokens
    max_attended_tokens: int  # the same, averaged over the batch in which it is largest
    weight_bytes: int  # per weight of a frozen layer while it computes
    live_expert_bytes: int
    has_flash: bool


def estimate_memory(
    entry: CatalogEntry,
    spec: JobSpec,
    plan: ExecutionPlan,
    kind: DeviceKind,
    row_tokens: int,
    mean_attended_tokens: int = 0,
    max_attended_tokens: int = 0,
    forward_tokens: int = 0,
) -> MemoryEstimate:
    """The peak memory of a job whose largest packed batch has `row_tokens` tokens.

    `mean_attended_tokens` is the length of a token's document, averaged over all tokens, `max_attended_tokens` the same
    averaged over the batch in which it is largest. `forward_tokens` are those of a longer batch without gradients.
    """
    width = compute_dtype_bytes(spec.quantization, plan)
    trained = trained_parameters(entry, spec.layer_lora)
    overhead = ALLOCATOR_OVERHEAD[kind]
    batch = _LargestBatch(
        entry,
        spec.layer_lora,
        plan,
        kind,
        row_tokens,
        width,
        mean_attended_tokens,
        max_attended_tokens,
        8 if spec.lora.use_dora else width,  # the norms of DoRA need two float32 copies
        live_expert_bytes(entry, spec.quantization, kind, width),
        _has_flash(entry, compute_dtype(spec.quantization, plan)),
    )
    embedding = hosted_embedding_bytes(entry, spec.layer_lora, width) if plan.offload else 0
    in_checks = max(
        _adapters_in_check(trained, spec.hyperparameters, kind),
        embedding - trained * (GRADIENT_BYTES + MOMENT_BYTES[spec.hyperparameters.optimizer]),  # it is loaded with it
    )
    return MemoryEstimate(
        process=PROCESS_BYTES[kind],
        base=int(base_bytes(entry, spec.quantization, width)) - embedding,
        adapter=trained * optimizer_bytes(spec.hyperparameters),
        cache=cache_bytes(entry, spec.quantization, width) if plan.cache_weights else 0,
        activations=int(overhead * _activations(batch)),
        live_layer=int(overhead * _live_layer(batch)) + _embedding(batch),
        loss=int(overhead * _loss(batch)) + _head(batch),
        verify=max(0, int(overhead * _verification(entry) + in_checks)),
        forwards=int(overhead * _forward(batch, forward_tokens)) if forward_tokens else 0,
        kernels=KERNEL_BYTES[kind],
    )


def optimizer_bytes(hyperparameters: Hyperparameters) -> int:
    """Bytes of a trained parameter: its master, its gradient and its moments."""
    return MASTER_BYTES + GRADIENT_BYTES + MOMENT_BYTES[hyperparameters.optimizer]


def min_loss_chunk_tokens(plan: ExecutionPlan) -> int:
    """Longer chunks of the loss save a few percent of the time: not where a plan recomputes everything to fit."""
    return CUDA_CHUNK_TOKENS if plan.cuda_kernels and plan.recompute != "everything" else MIN_CHUNK_TOKENS


def loss_chunk_tokens(vocabulary: int, min_tokens: int) -> int:
    """The labelled tokens whose logits exist at once."""
    return max(min_tokens, LOSS_BYTES // (BYTES_PER_LOGIT * vocabulary))


def compute_dtype(quantization: QuantizationSpec | None, plan: ExecutionPlan) -> str:
    """That of the plan, which the trainer chooses by its device; before that, the one of the spec."""
    return plan.compute_dtype or (quantization.compute_dtype if quantization is not None else "bfloat16")


def compute_dtype_bytes(quantization: QuantizationSpec | None, plan: ExecutionPlan) -> int:
    """Bytes of a number in the compute dtype."""
    return 4 if compute_dtype(quantization, plan) == "float32" else 2


def base_bytes(entry: CatalogEntry, quantization: QuantizationSpec | None, width: int) -> float:
    """NF4 has a float32 scale per block; double quantization has a byte per block and a scale per SCALE_BLOCK.

    Without quantization the weights have 16 bits in each compute dtype (`width` bytes), unless their files have more.
    """
    quantized = entry.linear_parameters + entry.expert_parameters
    other_bytes = (entry.parameters - quantized) * width
    if quantization is None:
        has_16_bits = entry.size_bytes < 4 * entry.parameters
        return quantized * (2 if has_16_bits else width) + other_bytes
    if quantization.bits == 8:
        return quantized * 1.0 + other_bytes
    scales = 1 / BLOCK + 4 / (BLOCK * SCALE_BLOCK) if quantization.double_quant else 4 / BLOCK
    return quantized * (0.5 + scales) + other_bytes


def cache_bytes(entry: CatalogEntry, quantization: QuantizationSpec | None, width: int) -> int:
    """Bytes of the dequantized weights; 0 for a base that is not quantized."""
    return entry.linear_parameters * width if quantization is not None else 0


def live_expert_bytes(entry: CatalogEntry, quantization: QuantizationSpec | None, kind: DeviceKind, width: int) -> int:
    """Bytes of the weights of experts that are dequantized, or converted from 16 bits, at once; int8 is dequantized to
    float32 first."""
    if quantization is None and width == 2:
        return 0
    in_a_layer = entry.expert_parameters // max(1, entry.decoder_layers)
    largest = max((count * out * width for count, out, width in entry.experts.values()), default=in_a_layer)
    number_bytes = width + (4 if quantization is not None and quantization.bits == 8 else 0)
    return number_bytes * min(largest, EXPERT_WEIGHTS[kind])


def offloaded_bytes(hidden_size: int, layers: int, width: int, row_tokens: int) -> int:
    """Bytes of host memory for the inputs of the layers: torch rounds pinned blocks up to a power of two."""
    block_bytes = 1 << (row_tokens * hidden_size * width - 1).bit_length()
    return layers * block_bytes


def hosted_embedding_bytes(entry: CatalogEntry, lora: LoraSpec, width: int) -> int:
    """Bytes of the embedding, which `offload` moves to host memory: not if it is trained or is the head's matrix."""
    size = entry.vocab_size * entry.hidden_size
    is_head = entry.parameters - entry.linear_parameters - entry.expert_parameters < 2 * size
    return 0 if is_head or _trains_embedding(entry, lora) else width * size


def _trains_embedding(entry: CatalogEntry, lora: LoraSpec) -> bool:
    return bool(set(fully_trained_modules(entry, lora)) & (IGNORED_LAYERS - {"lm_head"}))


def kept_bytes_per_token(batch: _LargestBatch, elementwise: bool) -> int:
    """Bytes per token that one layer saves for its backward.

    Norms save their input and output, the gated MLP saves gate, up and their product. With elementwise recomputation
    only the inputs remain: the residual stream twice, gate and up. If they were counted on the model, that counts.
    """
    entry, width = batch.entry, batch.width
    d, f = entry.hidden_size, entry.intermediate_size
    others = 2 * width * (d + f) if elementwise else width * (4 * d + 3 * f)
    counted = entry.activation_bytes.get("elementwise" if elementwise else "nothing")
    if counted is not None:
        others = int(counted * width / 2)
    if elementwise:
        others += trained_norm_bytes_per_token(entry, batch.lora, width)
    return _attention_bytes(batch) + others + adapter_bytes_per_token(entry, batch.lora, width, batch.plan.cuda_kernels)


def _has_flash(entry: CatalogEntry, dtype: str) -> bool:
    """Whether a GPU attends by flash attention. In float16, which GPUs before sm80 compute in, it may have none."""
    head_size = entry.query_size // max(1, entry.attention_heads)
    fits = head_size <= MAX_FLASH_HEAD_SIZE and head_size % FLASH_HEAD_SIZE_STEP == 0
    return dtype == "bfloat16" and fits and entry.architecture not in ARCHITECTURES_WITHOUT_FLASH


def _attention_bytes(batch: _LargestBatch) -> int:
    """Bytes per token for queries, keys, values and output.

    On a CPU short documents also save their softmax, and long documents or float32 save everything in float32 besides
    the output (worker/trainer/kernels/cpu/block_attention.py).
    """
    q, kv = batch.entry.query_size, batch.entry.key_size
    if batch.kind == "cuda":
        return batch.width * (2 * q + 2 * kv if batch.has_flash else 4 * q)
    if batch.width == 4 or batch.mean_attended_tokens > MAX_BLOCK_ATTENTION_TOKENS:
        return 4 * (2 * q + 2 * kv) + batch.width * q
    softmax = batch.entry.attention_heads * int(
        max(SOFTMAX_OVERHEAD * batch.mean_attended_tokens, batch.max_attended_tokens)
    )
    return batch.width * (2 * q + 2 * kv + softmax)


def _activations(batch: _LargestBatch) -> int:
    """The activations saved by all layers, the embedding and the last norm."""
    entry, layers = batch.entry, batch.entry.decoder_layers
    recomputed = {"layers": batch.plan.recompute_layers, "everything": layers}.get(batch.plan.recompute, 0)
    saved = kept_bytes_per_token(batch, elementwise=batch.plan.recompute != "nothing")
    factors = adapter_parameters(entry, batch.lora) * batch.width * (layers - recomputed) // max(1, layers)
    kept = min(recomputed, OFFLOADED_LAYERS) if batch.plan.offload else recomputed
    of_layers = kept * batch.width * entry.hidden_size + (layers - recomputed) * saved
    return batch.tokens * (of_layers + _end_bytes_per_token(batch)) + factors


def _end_bytes_per_token(batch: _LargestBatch) -> int:
    """Bytes per token that the embedding and the last norm keep."""
    return (4 + 3 * batch.width) * batch.entry.hidden_size


def _live_layer(batch: _LargestBatch) -> int:
    """The gradients of the gated MLP, the recomputed activations of the layer, and one dequantized weight."""
    d, f = batch.entry.hidden_size, batch.entry.intermediate_size
    per_token = batch.width * (d + 3 * f)
    if batch.plan.recompute in ("elementwise", "layers"):
        per_token += 2 * batch.width * f
    if batch.plan.recompute in ("layers", "everything"):
        per_token += kept_bytes_per_token(batch, elementwise=False) + 2 * batch.width * f
    if batch.plan.mlp_chunk_tokens:
        return _live_tiled_layer(batch) + _live_weight(batch)
    return batch.tokens * per_token + _live_weight(batch)


def _live_tiled_layer(batch: _LargestBatch) -> int:
    """The same with an MLP in chunks: gate, up, product and their gradients exist for the tokens of one chunk.

    All tokens have what attention and the norms keep, the gradient and the output of the layer. Beside them are first
    the gradient of the MLP's input, in chunks and as a whole, and a chunk; later the gradients of attention and its
    input, when the MLP is freed. What the ends of the model keep is freed by then.
    """
    d, f, width = batch.entry.hidden_size, batch.entry.intermediate_size, batch.width
    of_mlp = batch.lora.model_copy(
        update={"target_modules": tuple(name for name in batch.lora.target_modules if name in GATED_MLP_LAYERS)}
    )
    adapters = adapter_bytes_per_token(batch.entry, of_mlp, width, batch.plan.cuda_kernels)
    kept = kept_bytes_per_token(batch, elementwise=False) - 3 * width * f - adapters + 2 * width * d
    chunk = min(batch.tokens, batch.plan.mlp_chunk_tokens) * (8 * width * f + adapters)
    gradients = max(batch.tokens * 2 * width * d + chunk, batch.tokens * _attention_bytes(batch))
    return batch.tokens * (kept - _end_bytes_per_token(batch)) + gradients


def _live_weight(batch: _LargestBatch) -> int:
    """One dequantized weight, or the experts of a layer that are dequantized at once."""
    is_cached = batch.plan.cache_weights and batch.weight_bytes == batch.width
    entry = batch.entry
    weight = batch.weight_bytes * entry.hidden_size * max(entry.intermediate_size, entry.query_size)
    return max(0 if is_cached else weight, batch.live_expert_bytes)


def _forward(batch: _LargestBatch, tokens: int) -> int:
    """A layer of a pass without gradients: the residual stream, its norm and its sum, and gate, up and product."""
    d, f = batch.entry.hidden_size, batch.entry.intermediate_size
    chunk_tokens = min(tokens, batch.plan.mlp_chunk_tokens or tokens)
    return batch.width * (tokens * 4 * d + chunk_tokens * 3 * f) + _live_weight(batch)


def _loss(batch: _LargestBatch) -> int:
    """One chunk of logits in the compute dtype and in float32; the labelled hidden states and their gradient."""
    vocabulary = batch.entry.vocab_size
    rows = min(batch.tokens, loss_chunk_tokens(vocabulary, min_loss_chunk_tokens(batch.plan)))
    return rows * vocabulary * (4 + batch.width) + 2 * batch.tokens * batch.width * batch.entry.hidden_size


def _embedding(batch: _LargestBatch) -> int:
    """The gradient of a fully trained embedding, in the compute dtype and in float32.

    These large blocks are allocated outside of the heap, which keeps the size of all activations. Estimated 170 MB and
    measured 147 MB on the bundled model.
    """
    size = batch.entry.vocab_size * batch.entry.hidden_size
    return (batch.width + 4) * size if _trains_embedding(batch.entry, batch.lora) else 0


def _head(batch: _LargestBatch) -> int:
    """A fully trained head: its weight and the gradient of a chunk in the compute dtype, and two float32 gradients.

    One float32 gradient is the batch's, one is the copy that is added to the step's. Estimated 340 MB and measured
    314 MB on the bundled model.
    """
    if "lm_head" not in fully_trained_modules(batch.entry, batch.lora):
        return 0
    return (2 * batch.width + 8) * batch.entry.vocab_size * batch.entry.hidden_size


def _adapters_in_check(trained: int, hyperparameters: Hyperparameters, kind: DeviceKind) -> int:
    """PEFT's copy of the adapter, less its gradients and moments, which are free by then: mostly negative.

    On a CPU the adapter of the last step is copied, too, while that of the best one is in place.
    """
    copies = 2 if kind == "cpu" and hyperparameters.promote_best else 1
    return trained * (copies * MASTER_BYTES - GRADIENT_BYTES - MOMENT_BYTES[hyperparameters.optimizer])


def _verification(entry: CatalogEntry) -> int:
    """A chunk of the head, one layer of a short batch in float32, and logits."""
    head = 4 * min(entry.vocab_size, VERIFY_HEAD_ROWS) * entry.hidden_size
    logits = (
        4 * 4 * VERIFY_LOGITS * entry.vocab_size
    )  # of the trainer, of PEFT, their difference and its absolute value
    weight = 4 * entry.hidden_size * max(entry.intermediate_size, entry.query_size)
    row = VERIFY_TOKENS * 4 * (4 * entry.hidden_size + 3 * entry.intermediate_size)
    return head + logits + weight + row
