"""A check of the attention kernels that training calls: they isolate documents and equal a softmax in float32.

The model's own forward records each kind of attention call. Each is repeated, forward and backward, in the compute
dtype, on random heads of the same sizes. Random queries and keys give every score a variance of one, so that a leak
between documents or a wrong scale changes the result by its own size, whatever the weights of the model are.

    packed against float32    a masked softmax over the whole batch, by autograd
    packed against alone      the same kernel on one document
    with other neighbours     other tokens in the other documents change neither the output nor a gradient

Letters as in attention.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from app.domain.jobs.spec import QuantizationSpec
from app.domain.jobs.states import Reason
from app.domain.planning.memory import MAX_BLOCK_ATTENTION_TOKENS
from worker.trainer.kernels.comparison import difference, random_tensors, run_with_gradients
from worker.trainer.model.attention import attention
from worker.trainer.model.patches import Patches
from worker.trainer.runtime.device import dtype_name, float32_request
from worker.trainer.runtime.failures import Failure

# The second document exceeds one tile of flash attention, and it does not begin with a tile.
SHORT_LENGTHS, LONG_LENGTHS = (5, 70, 24), (5, MAX_BLOCK_ATTENTION_TOKENS + 1)
CHECKED_DOCUMENT = 1
BAND_TOKENS = 4  # a sliding window is also checked with this width: no document here exceeds the width of a real one
NEIGHBOUR_SCALE = 4.0  # of the replaced tokens: a leak of them changes the result more
# Of the largest value. In 16 bits rounding causes 0.5 to 1 %; a leak or a doubled scale causes 30 % and more.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 5e-3}
# The same kernel rounds the same numbers; on CUDA the gradient of the queries is added in varying order.
MAX_LEAKS = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}
# The options of a call that may differ between layers and change the result.
OPTIONS = ("scaling", "sliding_window", "softcap")


@dataclass(frozen=True)
class AttentionCall:
    """One kind of attention call of a model."""

    function: Any  # as it is registered with transformers
    module: torch.nn.Module
    options: Mapping[str, Any]
    query_heads: int
    key_heads: int
    query_size: int
    value_size: int
    device: torch.device
    dtype: torch.dtype

    @property
    def scale(self) -> float:
        scaling: float | None = self.options.get("scaling")
        return self.query_size**-0.5 if scaling is None else scaling

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The heads and the size of each, of queries, keys, values and the output."""
        of_query, of_key = (self.query_heads, self.query_size), (self.key_heads, self.query_size)
        return of_query, of_key, (self.key_heads, self.value_size), (self.query_heads, self.value_size)

    def kernel(self, lengths: tuple[int, ...], window: int | None) -> attention.Kernel:
        """Return the kernel that the call chooses for documents of these lengths."""
        query, key, value = (
            torch.empty(1, heads, 1, size, dtype=self.dtype, device=self.device) for heads, size in self.sizes[:3]
        )
        scaling, cap, sinks_H = (self.options.get(name) for name in ("scaling", "softcap", "s_aux"))
        return attention.choose_kernel(attention.Heads(query, key, value, lengths, scaling, window, cap, sinks_H))


@contextmanager
def recorded_attention() -> Iterator[dict[Any, AttentionCall]]:
    """Yield a dictionary to which every attention call in the block is added, one of each kind."""
    registered = ALL_ATTENTION_FUNCTIONS[attention.NAME]
    calls: dict[Any, AttentionCall] = {}

    def record(module: torch.nn.Module, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        sizes = query.shape[1], key.shape[1], query.shape[-1], value.shape[-1]
        kind = (*sizes, query.dtype, *(options.get(name) for name in OPTIONS))
        if kind not in calls:
            calls[kind] = AttentionCall(registered, module, options, *sizes, query.device, query.dtype)
        return registered(module, query, key, value, mask, **options)

    with Patches() as patches:
        patches.put("recorded attention", ALL_ATTENTION_FUNCTIONS, attention.NAME, record)
        yield calls


def check_attention(
    base_name: str,
    calls: Iterable[AttentionCall],
    quantization: QuantizationSpec | None = None,
    margins: dict[str, tuple[float, float]] | None = None,
) -> None:
    """Check every kernel that these calls may choose. `margins` gets the largest differences, and the allowed ones.

    Raises Failure(MODEL_UNAVAILABLE), which names the kernel, if one mixes documents or computes another result.
    """
    for call in calls:
        window = call.options.get("sliding_window")
        layouts: list[tuple[tuple[int, ...], int | None]] = [(SHORT_LENGTHS, window)]
        if window is not None and window > BAND_TOKENS:
            layouts.append((SHORT_LENGTHS, BAND_TOKENS))
        if call.kernel(LONG_LENGTHS, window) != call.kernel(SHORT_LENGTHS, window):
            layouts.append((LONG_LENGTHS, window))
        for lengths, width in layouts:
            if problem := _problem(call, lengths, width, {} if margins is None else margins):
                kernel, dtype = call.kernel(lengths, width).name, dtype_name(call.dtype)
                text = (
                    f"The attention kernel of this worker ({kernel}; {dtype}, {call.query_heads} query and "
                    f"{call.key_heads} key heads of size {call.query_size}) {problem}. Training {base_name} with it "
                    f"would give a wrong adapter. For another kernel set {float32_request(quantization)}; the operator "
                    "can install another version of torch or of the driver."
                )
                raise Failure(Reason.MODEL_UNAVAILABLE, text, "model")


def _problem(
    call: AttentionCall, lengths: tuple[int, ...], window: int | None, margins: dict[str, tuple[float, float]]
) -> str:
    """Return what is wrong with the kernel, as the end of a sentence; empty if nothing is."""
    inputs, others = (_random_inputs(call, sum(lengths), seed) for seed in (0, 1))
    start = sum(lengths[:CHECKED_DOCUMENT])
    document = slice(start, start + lengths[CHECKED_DOCUMENT])
    replaced = [NEIGHBOUR_SCALE * tensor for tensor in others]
    for tensor, original in zip(replaced, inputs, strict=True):
        tensor[:, :, document] = original[:, :, document]
    packed = _run(call, inputs, lengths, window)
    mine = _part(packed, document)
    leak = difference(_part(_run(call, replaced, lengths, window), document), mine)
    alone = _run(call, _part(inputs, document), lengths[CHECKED_DOCUMENT:][:1], window)
    of_reference = difference(packed, _reference(call, inputs, lengths, window))
    compared = (
        ("neighbours", leak, MAX_LEAKS, "mixes the documents of a batch (other neighbours change one by {:.1%})"),
        ("alone", difference(mine, alone), TOLERANCES, "computes another result for a document alone ({:.1%})"),
        ("float32", of_reference, TOLERANCES, "computes another result than a softmax in float32 ({:.1%})"),
    )
    name = f"attention {call.kernel(lengths, window).name}"
    for what, found, allowed, problem in compared:
        key = f"{name}, {what}"
        margins[key] = (max(found, margins.get(key, (0.0, 0.0))[0]), allowed[call.dtype])
        if not found <= allowed[call.dtype]:
            return problem.format(found)
    return ""


def _random_inputs(call: AttentionCall, tokens: int, seed: int) -> list[torch.Tensor]:
    """Return queries, keys, values and the gradient of the output, 1 x heads x tokens x size in the compute dtype."""
    shapes = [(1, heads, tokens, size) for heads, size in call.sizes]
    query, *others = random_tensors(shapes, call.device, torch.float32, seed)
    query /= call.scale * call.query_size**0.5  # scores then have a variance of one
    return [tensor.to(call.dtype) for tensor in (query, *others)]


def _part(tensors: Sequence[torch.Tensor], tokens: slice) -> list[torch.Tensor]:
    return [tensor[:, :, tokens] for tensor in tensors]


def _run(
    call: AttentionCall, inputs: list[torch.Tensor], lengths: tuple[int, ...], window: int | None
) -> list[torch.Tensor]:
    """Return the output and the gradients of queries, keys and values, with the shapes of the inputs."""
    options = {**call.options, "document_lengths": lengths, "sliding_window": window}

    def attend(*heads: torch.Tensor) -> torch.Tensor:
        out_1_T_H_E: torch.Tensor = call.function(call.module, *heads, None, **options)[0]
        return out_1_T_H_E.transpose(1, 2)

    return run_with_gradients(attend, inputs[:3], inputs[3:])


def _reference(
    call: AttentionCall, inputs: list[torch.Tensor], lengths: tuple[int, ...], window: int | None
) -> list[torch.Tensor]:
    """The same attention as a softmax over the whole batch in float32, with a mask of T x T."""
    cap, sinks_H = call.options.get("softcap"), call.options.get("s_aux")
    document_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(call.device)
    position_T = torch.arange(sum(lengths), device=call.device)
    distance_T_T = position_T[:, None] - position_T[None, :]
    is_hidden_T_T = (document_T[:, None] != document_T[None, :]) | (distance_T_T < 0)
    if window is not None:
        is_hidden_T_T |= distance_T_T >= window

    def attend(query: torch.Tensor, *key_and_value: torch.Tensor) -> torch.Tensor:
        copies = call.query_heads // call.key_heads
        key, value = (tensor.repeat_interleave(copies, dim=1) for tensor in key_and_value)
        scores_1_H_T_T = query @ key.transpose(2, 3) * call.scale
        if cap is not None:
            scores_1_H_T_T = cap * (scores_1_H_T_T / cap).tanh()
        scores_1_H_T_T = scores_1_H_T_T.masked_fill(is_hidden_T_T, float("-inf"))
        if sinks_H is not None:
            sinks_1_H_T_1 = sinks_H.float()[None, :, None, None].expand(*scores_1_H_T_T.shape[:3], 1)
            scores_1_H_T_T = torch.cat([scores_1_H_T_T, sinks_1_H_T_1], dim=3)
        return scores_1_H_T_T.softmax(-1)[..., : value.shape[2]] @ value

    heads_and_gradient = [tensor.float() for tensor in inputs]
    return run_with_gradients(attend, heads_and_gradient[:3], heads_and_gradient[3:])
