"""Is the saved adapter what was trained? PEFT answers, with the files as a user gets them, on the base in memory.

Two questions. Are the tensors PEFT loaded equal to the trained ones, to the bit? And does the model PEFT made of them
give the logits of the model that was trained? The second is asked in float32 on both sides (the same frozen weights,
widened layer by layer), because bfloat16 would hide a wrong alpha or a swapped layer behind rounding of one part in a
hundred. What is left is the order of float32 sums: TOLERANCE leaves it a wide margin and an error none.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict

from app.domain.datasets.documents import Document
from app.domain.jobs.states import Reason
from worker.trainer.adapter.lora import PEFT_PREFIX, Adapter
from worker.trainer.checkpoint.checkpoint import adapter_tensors
from worker.trainer.data.batch import PackedBatch, TokenizedDataset, pack_batches
from worker.trainer.model.base_model import Base, hidden_states, in_float32, unwrapped
from worker.trainer.model.frozen_linear import Frozen4, Frozen8
from worker.trainer.runtime.failures import Failure
from worker.trainer.state import Run

ROW_TOKENS = 512
HEAD_ROWS = 8192  # of the vocabulary in float32 at a time: 134 MB at D = 4,096, where all 151,936 would take 2.5 GB
LOGITS = 64  # positions that are compared, the last ones, over the whole vocabulary
TOLERANCE = 1e-4  # of the largest logit; measured: 5e-7 on 2 layers, 1e-6 on 30, 0 where alpha / r is a power of two


@torch.no_grad()
def verify_adapter(base: Base, run: Run, directory: Path) -> float:
    """Load `directory` with PEFT onto the same base and compare. Returns the largest relative difference of the logits.

    Raises Failure(ADAPTER_MISMATCH).
    """
    batch = _short_batch(run).to(base.device)
    with in_float32(base):
        ours_N_V = _logits(base, batch, run.adapter)
        with unwrapped(base) as model:
            tuned = _load(model, directory, base.device)
            try:
                tensors = get_peft_model_state_dict(tuned, save_embedding_layers=False)
                theirs_N_V = _logits(base, batch, None)
            finally:
                tuned.unload()
    _compare_tensors(adapter_tensors(run), tensors, [PEFT_PREFIX + name for name in run.adapter.module_masters])
    return _compare_logits(ours_N_V, theirs_N_V)


def _short_batch(run: Run) -> PackedBatch:
    """The first document, no more of it than the plan has room for in float32; each of its tokens counts."""
    tokens = run.dataset.tokens_and_labels(run.dataset.documents(0)[0])[0][:ROW_TOKENS].tolist()
    dataset = TokenizedDataset()
    dataset.add(1, [Document(1, tokens, [False] + [True] * (len(tokens) - 1))])
    return next(pack_batches(dataset, dataset.documents(0), ROW_TOKENS))


def _load(model: Any, directory: Path, device: torch.device) -> PeftModel:
    """PEFT chooses its layer class by this flag; transformers sets it when it is transformers that quantises."""
    model.is_loaded_in_4bit = any(isinstance(module, Frozen4) for module in model.modules())
    model.is_loaded_in_8bit = any(isinstance(module, Frozen8) for module in model.modules())
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda), warnings.catch_warnings():  # PEFT draws A before it reads the file's
        warnings.simplefilter("ignore", FutureWarning)  # between PEFT and transformers: names that will change
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # merging unties them: merge.py
        try:
            tuned = PeftModel.from_pretrained(model, directory, is_trainable=False, torch_device=str(device))
        except BaseException:
            vars(model).pop("peft_config", None)  # of half an adapter: a second try would find it
            raise
    return tuned.eval()


def _logits(base: Base, batch: PackedBatch, adapter: Adapter | None) -> torch.Tensor:
    hidden_N_D = hidden_states(base, batch, adapter, float32=True)[batch.logit_positions_N[-LOGITS:]]
    head_V_D = base.head_with(adapter).to(base.compute_dtype)
    return torch.cat([hidden_N_D @ part.float().t() for part in torch.split(head_V_D, HEAD_ROWS)], dim=1)


def _compare_tensors(
    trained: dict[str, torch.Tensor], loaded: dict[str, torch.Tensor], saved_modules: Collection[str]
) -> None:
    if absent := sorted(trained.keys() ^ loaded.keys()):
        raise _mismatch(f"PEFT did not find the same tensors in it ({absent[0]})")
    for name, tensor in trained.items():
        dtype = loaded[name].dtype if name in saved_modules else tensor.dtype  # PEFT keeps those in the base's dtype
        if loaded[name].dtype != dtype or not torch.equal(tensor.to(dtype), loaded[name].cpu()):
            raise _mismatch(f"the tensor {name} is not the one that was trained")


def _compare_logits(ours_N_V: torch.Tensor, theirs_N_V: torch.Tensor) -> float:
    difference = float((ours_N_V - theirs_N_V).abs().max() / ours_N_V.abs().max())
    if not difference <= TOLERANCE:  # also when it is not a number
        raise _mismatch(f"its logits differ from the trained model's by {difference:.1e} of the largest one")
    return difference


def _mismatch(why: str) -> Failure:
    text = f"The saved adapter was loaded again with PEFT and is not what was trained: {why}. It was not published."
    return Failure(Reason.ADAPTER_MISMATCH, text)
