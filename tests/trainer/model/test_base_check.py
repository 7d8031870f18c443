from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.domain.jobs.spec import QuantizationSpec
from tests.trainer.helpers import load_tiny_base
from worker.trainer.model.attention import attention
from worker.trainer.model.base_check import check_base
from worker.trainer.runtime.failures import Failure


class TestCheckBase:
    def test_a_leak_between_documents_is_refused(self, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = attention._document_by_document

        def leaky(heads: attention.Heads) -> torch.Tensor:
            return whole(replace(heads, lengths=(sum(heads.lengths),)))

        monkeypatch.setattr(attention, "_document_by_document", leaky)
        with pytest.raises(Failure, match="mixes the documents"):
            check_base(load_tiny_base(tiny))

    def test_a_head_with_more_than_one_product_is_refused(self, tiny: Path) -> None:
        base = load_tiny_base(tiny)
        base.model.get_output_embeddings().register_forward_hook(lambda _module, _inputs, logits: logits.tanh())
        with pytest.raises(Failure, match="logits"):
            check_base(base)

    def test_a_broken_base_is_refused(self, tiny: Path) -> None:
        base = load_tiny_base(tiny)
        base.model.base_model.norm.weight.data.fill_(torch.inf)
        with pytest.raises(Failure, match="not finite"):
            check_base(base)

    def test_a_base_that_overflows_in_half_precision_is_refused(self, tiny: Path) -> None:
        """Otherwise the loss would not be a number and the error would name the training file."""
        base = load_tiny_base(tiny, QuantizationSpec(compute_dtype="float16"))
        base.model.base_model.norm.weight.data.fill_(65_000)
        with pytest.raises(Failure, match="in float16"):
            check_base(base)
