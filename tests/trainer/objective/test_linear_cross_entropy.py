from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from worker.trainer.objective import losses as module
from worker.trainer.objective.losses import LogitScaling, linear_cross_entropy

N, D, V = 70, 16, 301


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator).to(dtype).requires_grad_()
    return hidden, torch.randn(V, D, generator=generator).to(dtype), torch.randint(V, (N,), generator=generator)


class TestLinearCrossEntropy:
    def test_scaled_and_capped_logits_equal_those_of_torch_in_value_and_gradient(self) -> None:
        hidden, head, targets = inputs()
        total, losses, _ = linear_cross_entropy(hidden, head, targets, scaling=LogitScaling(0.5, cap=2.0))
        total.backward()
        reference = hidden.detach().clone().requires_grad_()
        logits = 2.0 * torch.tanh(0.5 * (reference @ head.t()) / 2.0)
        expected = F.cross_entropy(logits, targets, reduction="none")
        expected.sum().backward()
        torch.testing.assert_close(losses, expected)
        torch.testing.assert_close(hidden.grad, reference.grad)

    def test_the_gradient_is_multiplied_by_the_upstream_gradient(self) -> None:
        hidden, head, targets = inputs()
        (linear_cross_entropy(hidden, head, targets)[0] * 0.25).backward()
        reference = hidden.detach().clone().requires_grad_()
        (F.cross_entropy(reference @ head.t(), targets, reduction="sum") * 0.25).backward()
        torch.testing.assert_close(hidden.grad, reference.grad)

    def test_a_trained_head_gets_no_gradient_under_no_grad(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """`needs_input_grad` is true under no_grad, too: that would allocate V x D numbers."""
        hidden, head, targets = inputs()
        recorded = []
        chunk = module._chunk
        monkeypatch.setattr(module, "_chunk", lambda *inputs: (recorded.append(inputs[-2:]), chunk(*inputs))[1])
        with torch.no_grad():
            linear_cross_entropy(hidden, head.requires_grad_(), targets)
        assert recorded == [(False, None)]

    def test_the_gradient_of_a_trained_head_is_kept_once(self) -> None:
        hidden, head, targets = inputs()
        total, *_ = linear_cross_entropy(hidden, head.requires_grad_(), targets)
        total.backward()
        assert total.grad_fn.head_gradient_V_D is None  # type: ignore[union-attr]

    @pytest.mark.parametrize(("chunk_tokens", "chunks"), [(128, 2), (2048, 1)])
    def test_a_caller_may_ask_for_longer_chunks(
        self, monkeypatch: pytest.MonkeyPatch, chunk_tokens: int, chunks: int
    ) -> None:
        hidden, head, targets = inputs()
        hidden, targets = hidden.detach().repeat(3, 1)[:200], targets.repeat(3)[:200]
        made: list[int] = []
        chunk = module._chunk
        monkeypatch.setattr(module, "_chunk", lambda part, *rest: (made.append(len(part)), chunk(part, *rest))[1])
        total, *_ = linear_cross_entropy(hidden, head, targets, chunk_tokens=chunk_tokens)
        assert (len(made), sum(made)) == (chunks, len(targets))
        torch.testing.assert_close(total, F.cross_entropy(hidden @ head.t(), targets, reduction="sum"))

    @pytest.mark.parametrize("chunk_tokens", [16, 128])
    def test_weights_multiply_the_sum_and_its_gradient_but_not_the_token_losses(self, chunk_tokens: int) -> None:
        hidden, head, targets = inputs()
        weights = torch.linspace(-1, 2, N)
        total, losses, _ = linear_cross_entropy(hidden, head, targets, weights, chunk_tokens=chunk_tokens)
        total.backward()
        reference = hidden.detach().clone().requires_grad_()
        expected = F.cross_entropy(reference @ head.t(), targets, reduction="none")
        (expected * weights).sum().backward()
        torch.testing.assert_close(losses, expected)
        torch.testing.assert_close(total, (expected * weights).sum())
        torch.testing.assert_close(hidden.grad, reference.grad)

    def test_a_target_is_correct_if_it_is_the_most_likely_token(self) -> None:
        hidden, head, _ = inputs()
        best = (hidden @ head.t()).argmax(-1)
        assert linear_cross_entropy(hidden, head, best)[2].all()
        assert not linear_cross_entropy(hidden, head, (best + 1) % V)[2].any()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_the_gradient_of_a_trained_head_is_summed_over_all_chunks_in_float32(self, dtype: torch.dtype) -> None:
        hidden, head, targets = inputs(dtype)
        master = head.float().requires_grad_()
        (linear_cross_entropy(hidden, master, targets, chunk_tokens=16)[0] * 0.5).backward()
        reference = head.float().requires_grad_()
        (F.cross_entropy(hidden.detach().float() @ reference.t(), targets, reduction="sum") * 0.5).backward()
        assert master.grad is not None
        assert reference.grad is not None
        assert master.grad.dtype == torch.float32
        rounding = 1e-6 if dtype == torch.float32 else 1e-2
        assert (master.grad - reference.grad).norm() < rounding * reference.grad.norm()

    def test_bfloat16_is_within_its_rounding_of_float32(self) -> None:
        hidden, head, targets = inputs(torch.bfloat16)
        total, _, _ = linear_cross_entropy(hidden, head, targets)
        total.backward()
        reference = hidden.detach().float().requires_grad_()
        expected = F.cross_entropy(reference @ head.float().t(), targets, reduction="sum")
        expected.backward()
        assert total.item() == pytest.approx(expected.item(), rel=1e-2)
        assert (hidden.grad.float() - reference.grad).norm() < 0.01 * reference.grad.norm()  # type: ignore[union-attr, operator]

    def test_large_logits_do_not_overflow(self) -> None:
        hidden, head, targets = inputs()
        _, losses, _ = linear_cross_entropy(hidden * 1e4, head, targets)
        torch.testing.assert_close(losses, F.cross_entropy(hidden * 1e4 @ head.t(), targets, reduction="none"))
