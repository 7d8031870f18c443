"""Verification of the saved adapter: PEFT loads the files onto the base in memory, as a user would.

Two comparisons: the tensors that PEFT loaded equal the trained ones to the bit, and PEFT's model has the logits of the
trained model. The logits are computed in float32 on both sides (with the same frozen weights, converted layer by
layer), because the rounding of bfloat16, one part in a hundred, would hide a wrong alpha or a swapped layer. Then only
the order of float32 sums differs: TOLERANCE is far above that and far below any error.

Besides the trained adapter only PEFT's own is in memory: the file is mapped, and its tensors are copied one by one.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict

from app.domain.datasets.documents import Document
from app.domain.jobs.states import Reason
from app.domain.planning.memory import VERIFY_HEAD_ROWS, VERIFY_LOGITS, VERIFY_TOKENS
from worker.trainer.adapter.lora import PEFT_PREFIX, LoraAdapter
from worker.trainer.data.batch import PackedBatch, TokenizedDataset, pack_batches
from worker.trainer.model.base_model import FrozenBase, hidden_states, in_dtype, unwrapped
from worker.trainer.model.frozen_linear import Frozen4, Frozen8
from worker.trainer.runtime.failures import Failure
from worker.trainer.training.state import Run

TOLERANCE = 1e-4  # of the largest logit; measured: 5e-7 on 2 layers, 1e-6 on 30, 0 where alpha / r is a power of two


@torch.no_grad()
def verify_adapter(base: FrozenBase, run: Run, directory: Path) -> float:
    """Load `directory` with PEFT onto the same base and compare tensors and logits.

    Returns the largest difference of the logits, relative to the largest logit. Raises Failure(ADAPTER_MISMATCH).
    """
    batch = _short_batch(run).to(base.device)
    with in_dtype(base, torch.float32):
        trained_N_V = _logits(base, batch, run.adapter)
        with unwrapped(base) as model:
            peft_model = _load_with_peft(model, directory, base.device)
            try:
                tensors = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
                loaded_N_V = _logits(base, batch, None)
            finally:
                peft_model.unload()
    saved_modules = [PEFT_PREFIX + name for name in run.adapter.module_masters]
    _compare_tensors(run.adapter.named_parameters(), tensors, saved_modules)
    difference = float((trained_N_V - loaded_N_V).abs().max() / trained_N_V.abs().max())
    if not difference <= TOLERANCE:  # this form is also true for NaN
        raise _mismatch(f"its logits differ from those of the trained model by {difference:.1e} of the largest one")
    return difference


def _short_batch(run: Run) -> PackedBatch:
    """Return the first document with a label on each token, truncated to what the memory plan allows in float32."""
    tokens = run.dataset.tokens_and_labels(run.dataset.documents(0)[0])[0][:VERIFY_TOKENS].tolist()
    dataset = TokenizedDataset()
    dataset.add(1, [Document(1, tokens, [False] + [True] * (len(tokens) - 1))])
    return next(pack_batches(dataset, dataset.documents(0), VERIFY_TOKENS))


def _load_with_peft(model: Any, directory: Path, device: torch.device) -> PeftModel:
    """Load the adapter. PEFT chooses its layer class by two flags, which transformers sets if it quantizes a model."""
    model.is_loaded_in_4bit = any(isinstance(module, Frozen4) for module in model.modules())
    model.is_loaded_in_8bit = any(isinstance(module, Frozen8) for module in model.modules())
    gpus = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(gpus), warnings.catch_warnings():  # PEFT draws a random A before it reads the file
        warnings.simplefilter("ignore", FutureWarning)  # PEFT uses names that transformers will change
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # merge.py unties them
        try:
            peft_model = PeftModel.from_pretrained(model, directory, is_trainable=False, torch_device="cpu")
        except BaseException:
            vars(model).pop("peft_config", None)  # otherwise a second try would find an incomplete adapter
            raise
    return peft_model.eval()


def _logits(base: FrozenBase, batch: PackedBatch, adapter: LoraAdapter | None) -> torch.Tensor:
    """Return the logits (N x V, float32) of the last positions. The whole head in float32 would take 2.5 GB."""
    hidden_N_D = hidden_states(base, batch, adapter, dtype=torch.float32)[batch.logit_positions_N[-VERIFY_LOGITS:]]
    head_V_D = base.head_with(adapter).to(base.compute_dtype)
    return torch.cat([hidden_N_D @ chunk.float().t() for chunk in torch.split(head_V_D, VERIFY_HEAD_ROWS)], dim=1)


def _compare_tensors(
    trained: Mapping[str, torch.Tensor], loaded: Mapping[str, torch.Tensor], saved_modules: Collection[str]
) -> None:
    if unmatched := sorted(trained.keys() ^ loaded.keys()):
        raise _mismatch(f"PEFT did not find the same tensors in it ({unmatched[0]})")
    for name, tensor in trained.items():
        dtype = loaded[name].dtype if name in saved_modules else tensor.dtype  # PEFT keeps those in the base's dtype
        if loaded[name].dtype != dtype or not torch.equal(tensor.to(dtype), loaded[name]):
            raise _mismatch(f"the tensor {name} differs from the trained one")


def _mismatch(problem: str) -> Failure:
    text = f"The saved adapter, loaded with PEFT, is not what was trained: {problem}. It was not published."
    return Failure(Reason.ADAPTER_MISMATCH, text)
