"""A check of the base model before training: the assumptions of the trainer must hold for it.

Two assumptions could fail silently: documents of one packed batch influence each other only through attention, and the
head is one matrix product. The check compares both with the model's own output on a few tokens. Weights and random
states stay unchanged.
"""

from __future__ import annotations

import torch

from app.domain.datasets.documents import Document
from app.domain.jobs.states import Reason
from worker.trainer.data.batch import PackedBatch, TokenizedDataset, pack_batches
from worker.trainer.model.base_model import FrozenBase, hidden_states, in_float32
from worker.trainer.runtime.device import dtype_name
from worker.trainer.runtime.failures import Failure

DOCUMENT_TOKENS = 12
MAX_LEAK = 1e-3  # of the largest value, in float32: rounding causes 1e-6, the influence of another document about 1
MAX_HEAD_DIFFERENCE = 2e-2  # of the largest logit, in the compute dtype: bfloat16 has steps of 4e-3


@torch.no_grad()
def check_base(base: FrozenBase) -> None:
    """Raises Failure: MODEL_UNAVAILABLE if it would be trained wrongly, INVALID_SPEC if the dtype overflows."""
    vocabulary = base.head_V_D.shape[0]
    first, second = (_document(start, vocabulary) for start in (1, 1 + vocabulary // 2))
    single, pair = _pack(second).to(base.device), _pack(first, second).to(base.device)
    with in_float32(base):
        single_T_D = hidden_states(base, single, float32=True)
        packed_T_D = hidden_states(base, pair, float32=True)[DOCUMENT_TOKENS:]
    if not torch.isfinite(single_T_D).all():
        raise _unsupported(base, "computes values that are not finite")
    if _difference(single_T_D, packed_T_D) > MAX_LEAK:
        raise _unsupported(base, "mixes the documents of a packed batch")
    logits_T_V = _own_logits(base, single)
    if not torch.isfinite(logits_T_V).all():
        raise _dtype_overflow(base)
    if _difference(logits_T_V, hidden_states(base, single) @ base.head_V_D.t()) > MAX_HEAD_DIFFERENCE:
        raise _unsupported(base, "computes its logits with more than one matrix product")


def _document(start: int, vocabulary: int) -> Document:
    tokens = [(start + 7 * i) % vocabulary for i in range(DOCUMENT_TOKENS)]
    return Document(1, tokens, [False] + [True] * (DOCUMENT_TOKENS - 1))


def _pack(*documents: Document) -> PackedBatch:
    dataset = TokenizedDataset()
    dataset.add(1, documents)
    return next(pack_batches(dataset, dataset.documents(0), row_tokens=2 * DOCUMENT_TOKENS))


def _own_logits(base: FrozenBase, batch: PackedBatch) -> torch.Tensor:
    """Return the logits (T x V) of the model's own forward."""
    output = base.model(
        input_ids=batch.tokens_T.unsqueeze(0),
        position_ids=batch.positions_T.unsqueeze(0),
        use_cache=False,
        document_lengths=batch.document_lengths,
    )
    logits_1_T_V: torch.Tensor = output.logits
    return logits_1_T_V[0]


def _difference(expected: torch.Tensor, actual: torch.Tensor) -> float:
    return float((expected.float() - actual.float()).abs().max() / expected.float().abs().max())


def _dtype_overflow(base: FrozenBase) -> Failure:
    """Return the failure for values that are finite in float32, but not in the compute dtype."""
    text = (
        f"The base model {base.name} computes values that are not finite in {dtype_name(base.compute_dtype)}. Set "
        'quantization {"compute_dtype": "float32"}, or choose another base model.'
    )
    return Failure(Reason.INVALID_SPEC, text, "quantization.compute_dtype")


def _unsupported(base: FrozenBase, property_text: str) -> Failure:
    text = f"The base model {base.name} {property_text}, which Tunery does not support yet. Choose another base model."
    return Failure(Reason.MODEL_UNAVAILABLE, text, "model")
