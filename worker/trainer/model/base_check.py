"""A check of the base model before training: the assumptions of the trainer must hold for it.

Three assumptions could fail silently: documents of one packed batch influence each other only through attention,
attention isolates them (attention_check.py, with the kernels that training calls), and the head is one matrix product.
The check compares them with the model's own output on a few tokens, and looks at the gradient of one document beside
two different others. Weights and random states stay unchanged. If flash-linear-attention fails, it is switched off.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch.nn.attention import activate_flash_attention_impl, current_flash_attention_impl, restore_flash_attention_impl

from app.domain.datasets.documents import Document
from app.domain.jobs.states import Reason
from worker.trainer.data.batch import PackedBatch, TokenizedDataset, pack_batches
from worker.trainer.kernels.comparison import difference
from worker.trainer.model.architecture import carries_state
from worker.trainer.model.attention.attention_check import AttentionCall, check_attention, recorded_attention
from worker.trainer.model.base_model import FrozenBase, hidden_states, in_dtype
from worker.trainer.model.kernel_check import check_kernels
from worker.trainer.model.recurrent_layers import fused_rules
from worker.trainer.runtime.device import dtype_name, float32_request
from worker.trainer.runtime.failures import Failure, is_device_lost, is_out_of_memory

DOCUMENT_TOKENS = 12
# With flash-linear-attention, whose kernel works in chunks of 64 tokens: documents that begin and end within chunks.
CHUNKED_DOCUMENT_TOKENS = 70
MAX_LEAK = 1e-3  # of the largest value, in float32: rounding causes 1e-6, the influence of another document about 1
MAX_HEAD_DIFFERENCE = 2e-2  # of the largest logit, in the compute dtype: bfloat16 has steps of 4e-3
# Of the norm, in the compute dtype: rounding in bfloat16 adds up to some per cent in a deep model.
MAX_DTYPE_DIFFERENCE = 0.2
MAX_ROUTED_DIFFERENCE = 0.5  # the same with experts: rounding may give a token other experts
# They take the place of torch's own flash attention, 2, for the whole process, where they are installed: 3 on sm90 (the
# package `flash_attn_interface`), 4 on sm90 and sm100 (`flash_attn.cute`). On an H100 2 reaches half of the speed of 3.
FLASH_VERSIONS = ("FA3", "FA4")


def check_base(base: FrozenBase) -> None:
    """Switch flash-linear-attention off if it fails. Raises Failure: MODEL_UNAVAILABLE if the base would be trained
    wrongly, INVALID_SPEC if the dtype overflows.
    """
    rules = fused_rules(base.model)
    try:
        _check_with_reason(base)
    except Exception as error:
        if not rules or is_out_of_memory(error) or is_device_lost(error):
            raise
        for rule in rules:
            rule.is_fused = False
        base.recurrence_problem = " ".join(str(error).split()) or type(error).__name__
        _check_with_reason(base)


def _check_with_reason(base: FrozenBase) -> None:
    try:
        _check_base(base)
    except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        if is_out_of_memory(error) or is_device_lost(error):
            raise
        text = (
            f"The base model {base.name} cannot be used: its forward fails ({type(error).__name__}: "
            f"{' '.join(str(error).split())}). Choose another base model."
        )
        raise Failure(Reason.MODEL_UNAVAILABLE, text, "model") from error


@torch.no_grad()
def _check_base(base: FrozenBase) -> None:
    vocabulary = base.head_V_D.shape[0]
    tokens = CHUNKED_DOCUMENT_TOKENS if fused_rules(base.model) else DOCUMENT_TOKENS
    first, second = (_document(start, vocabulary, tokens) for start in (1, 1 + vocabulary // 2))
    single, pair = _pack(second).to(base.device), _pack(first, second).to(base.device)
    with in_dtype(base, torch.float32):
        single_T_D = hidden_states(base, single, dtype=torch.float32)
        packed_T_D = hidden_states(base, pair, dtype=torch.float32)[tokens:]
    if not torch.isfinite(single_T_D).all():
        raise _unsupported(base, "computes values that are not finite")
    if _exceeds(base, "packed documents in float32", difference([packed_T_D], [single_T_D]), MAX_LEAK):
        # recurrent_layers.py replaces the functions of the supported layers with state; with others it runs alone.
        if not carries_state(base.text_config):
            raise _unsupported(base, "mixes the documents of a packed batch")
        base.packs_documents = False
    own_logits_1_T_V = base.model(
        input_ids=single.tokens_T.unsqueeze(0),
        position_ids=single.positions_T.unsqueeze(0),
        use_cache=False,
        document_lengths=single.document_lengths,
    ).logits
    if not torch.isfinite(own_logits_1_T_V).all():
        raise _wrong_dtype(base, "values that are not finite")
    if getattr(base.model.get_output_embeddings(), "bias", None) is not None:
        raise _unsupported(base, "adds a bias to its logits")
    # As the loss computes them.
    logits_T_V = base.logit_scaling.apply_((hidden_states(base, single) @ base.head_V_D.t()).float())
    if _exceeds(base, "logits", difference([logits_T_V], [own_logits_1_T_V[0]]), MAX_HEAD_DIFFERENCE):
        raise _unsupported(base, "computes its logits with more than one matrix product")
    _check_packed_training(base, first, second, single_T_D)
    check_kernels(base)


def _check_packed_training(base: FrozenBase, first: Document, second: Document, alone_T_D: torch.Tensor) -> None:
    """Check forward and backward of packed documents in the compute dtype, with the kernels that training calls.

    The same document is packed twice, behind different neighbours. `alone_T_D` are its hidden states alone, in float32.
    """
    tokens, vocabulary = len(first.tokens), base.head_V_D.shape[0]
    third = _document(1 + tokens + vocabulary // 3, vocabulary, tokens)
    documents = (first, second, third, second)
    with recorded_attention() as calls:
        hidden, gradients = _hidden_and_gradients(base, _pack(*documents).to(base.device))
    check_newest_attention(base, calls.values())
    if gradients[0].any() or gradients[2].any():
        raise _unsupported(base, "gives one document of a packed batch a gradient of another's loss")
    of_gradients = _norm_difference(gradients[1], gradients[3])
    if _exceeds(base, "gradients beside other documents", of_gradients, MAX_DTYPE_DIFFERENCE):
        raise _unsupported(base, "gives a document another gradient beside other documents")
    limit = MAX_ROUTED_DIFFERENCE if base.experts else MAX_DTYPE_DIFFERENCE
    found = max(_norm_difference(alone_T_D, hidden[copy]) for copy in (1, 3))
    if _exceeds(base, f"hidden states in {dtype_name(base.compute_dtype)}", found, limit):
        what = f"hidden states that differ by {found:.0%} from those in float32, and {limit:.0%} is allowed"
        raise _wrong_dtype(base, what)


def check_newest_attention(base: FrozenBase, calls: Collection[AttentionCall]) -> None:
    """Check every kernel that these calls may choose, with the newest flash attention that passes.

    A version that is not installed is skipped; the problems of others become a warning. Raises Failure if torch's own
    kernels fail, too.
    """
    for version in FLASH_VERSIONS if base.kernels.is_fused and base.kernels.kind == "cuda" else ():
        try:
            activate_flash_attention_impl(version)
            margins: dict[str, tuple[float, float]] = {}
            check_attention(base.name, calls, base.quantization, margins)
            base.margins.update(margins)
            base.fused_modules[f"attention kernels of {version}"] = len(calls)
            return
        except Exception as error:
            if current_flash_attention_impl():
                restore_flash_attention_impl()
            if is_out_of_memory(error) or is_device_lost(error):
                raise
            if not isinstance(error, ImportError):
                problem = f"{version}: {' '.join(str(error).split())}"
                base.fused_problem = "; ".join(filter(None, [base.fused_problem, problem]))
    check_attention(base.name, calls, base.quantization, base.margins)


def _exceeds(base: FrozenBase, name: str, found: float, limit: float) -> bool:
    """Record the comparison; return whether the difference is larger than allowed, or no number."""
    base.margins[name] = (found, limit)
    return not found <= limit


def _hidden_and_gradients(
    base: FrozenBase, batch: PackedBatch
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Return the hidden states of each document (S x D), and the gradient of its embeddings (S x D).

    The gradient is that of a fixed weighted sum of the hidden states of the second and the fourth document.
    """
    embedded: list[torch.Tensor] = []
    lengths = list(batch.document_lengths)

    def keep(_module: torch.nn.Module, _inputs: Any, output_1_T_D: torch.Tensor) -> torch.Tensor:
        embedded.append(output_1_T_D.detach().requires_grad_())
        return embedded[-1]

    hook = base.model.get_input_embeddings().register_forward_hook(keep)
    try:
        with torch.enable_grad():
            hidden = torch.split(hidden_states(base, batch), lengths)
            weights_S_D = torch.randn(hidden[1].shape, generator=torch.Generator().manual_seed(0)).to(base.device)
            weighted_sum = ((hidden[1].float() + hidden[3].float()) * weights_S_D).sum()
            # Documents that run alone are embedded alone.
            gradients = torch.autograd.grad(weighted_sum, embedded, materialize_grads=True)
    finally:
        hook.remove()
    return hidden, torch.split(torch.cat(gradients, dim=1)[0], lengths)


def _document(start: int, vocabulary: int, length: int) -> Document:
    tokens = [(start + 7 * i) % vocabulary for i in range(length)]
    return Document(1, tokens, [False] + [True] * (length - 1))


def _pack(*documents: Document) -> PackedBatch:
    dataset = TokenizedDataset()
    dataset.add(1, documents)
    return next(pack_batches(dataset, dataset.documents(0), row_tokens=sum(len(each.tokens) for each in documents)))


def _norm_difference(expected: torch.Tensor, actual: torch.Tensor) -> float:
    return float((expected.float() - actual.float()).norm() / expected.float().norm())


def _wrong_dtype(base: FrozenBase, what: str) -> Failure:
    """Return the failure for a base that computes `what` in the compute dtype, but not in float32."""
    text = (
        f"The base model {base.name} computes in {dtype_name(base.compute_dtype)} {what}. Set "
        f"{float32_request(base.quantization)}; or choose another base model."
    )
    return Failure(Reason.INVALID_SPEC, text, "quantization.compute_dtype")


def _unsupported(base: FrozenBase, property_text: str) -> Failure:
    text = f"The base model {base.name} {property_text}, which Tunery does not support yet. Choose another base model."
    return Failure(Reason.MODEL_UNAVAILABLE, text, "model")
