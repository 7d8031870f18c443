"""One look at the base model before anything is trained on it: is it what our shortcuts take it for?

Two things would go wrong without a sound: a model that mixes documents of one row by another way than attention, and a
head that does more than one matrix product. Both are compared with the model's own answer on a few tokens. Weights and
random states stay as they are.
"""

from __future__ import annotations

import torch

from app.domain.datasets.documents import Document
from app.domain.jobs.states import Reason
from worker.trainer.data.batch import PackedBatch, TokenizedDataset, pack_batches
from worker.trainer.model.base_model import Base, hidden_states, in_float32
from worker.trainer.runtime.device import dtype_name
from worker.trainer.runtime.failures import Failure

LENGTH = 12  # tokens of a document
LEAK = 1e-3  # of the largest value, in float32: rounding leaves 1e-6, another document's influence about 1
ANOTHER_HEAD = 2e-2  # of the largest logit, in the compute dtype: bfloat16 has steps of 4e-3


@torch.no_grad()
def check_base(base: Base) -> None:
    """Raises Failure: MODEL_UNAVAILABLE where we would train it wrongly, INVALID_SPEC where its dtype is too narrow."""
    vocabulary = base.head_V_D.shape[0]
    first, second = (_document(start, vocabulary) for start in (1, 1 + vocabulary // 2))
    alone, both = _pack(second).to(base.device), _pack(first, second).to(base.device)
    with in_float32(base):
        alone_T_D = hidden_states(base, alone, float32=True)
        packed_T_D = hidden_states(base, both, float32=True)[LENGTH:]
    if not torch.isfinite(alone_T_D).all():
        raise _refused(base, "gives numbers that are not finite")
    if _difference(alone_T_D, packed_T_D) > LEAK:
        raise _refused(base, "lets the documents of one row see each other")
    logits_T_V = _own_logits(base, alone)
    if not torch.isfinite(logits_T_V).all():
        raise _too_narrow(base)
    if _difference(logits_T_V, hidden_states(base, alone) @ base.head_V_D.t()) > ANOTHER_HEAD:
        raise _refused(base, "does more to its logits than one matrix product")


def _document(start: int, vocabulary: int) -> Document:
    tokens = [(start + 7 * i) % vocabulary for i in range(LENGTH)]
    return Document(1, tokens, [False] + [True] * (LENGTH - 1))


def _pack(*documents: Document) -> PackedBatch:
    dataset = TokenizedDataset()
    dataset.add(1, documents)
    return next(pack_batches(dataset, dataset.documents(0), row_tokens=2 * LENGTH))


def _own_logits(base: Base, batch: PackedBatch) -> torch.Tensor:
    output = base.model(
        input_ids=batch.tokens_T.unsqueeze(0),
        position_ids=batch.positions_T.unsqueeze(0),
        use_cache=False,
        document_lengths=batch.document_lengths,
    )
    logits_1_T_V: torch.Tensor = output.logits
    return logits_1_T_V[0]


def _difference(want: torch.Tensor, got: torch.Tensor) -> float:
    return float((want.float() - got.float()).abs().max() / want.float().abs().max())


def _too_narrow(base: Base) -> Failure:
    """In float32 it has just been finite."""
    text = (
        f"The base model {base.name} gives numbers that are not finite in {dtype_name(base.compute_dtype)}. Ask for "
        'quantization {"compute_dtype": "float32"}, or choose another base model.'
    )
    return Failure(Reason.INVALID_SPEC, text, "quantization.compute_dtype")


def _refused(base: Base, what: str) -> Failure:
    text = f"The base model {base.name} {what}, which Tunery does not train yet. Choose another base model."
    return Failure(Reason.MODEL_UNAVAILABLE, text, "model")
