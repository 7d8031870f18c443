from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from worker.trainer.objective import linear_cross_entropy as loss
from worker.trainer.objective.linear_cross_entropy import linear_cross_entropy

N, D, V = 70, 16, 301


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dice = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=dice).to(dtype).requires_grad_()
    return hidden, torch.randn(V, D, generator=dice).to(dtype), torch.randint(V, (N,), generator=dice)


class TestHeadLoss:
    def test_equals_torchs_cross_entropy_in_value_and_gradient(self) -> None:
        hidden, head, targets = inputs()
        total, losses, _ = linear_cross_entropy(hidden, head, targets)
        total.backward()
        twin = hidden.detach().clone().requires_grad_()
        want = F.cross_entropy(twin @ head.t(), targets, reduction="none")
        want.sum().backward()
        torch.testing.assert_close(losses, want)
        torch.testing.assert_close(total, want.sum())
        torch.testing.assert_close(hidden.grad, twin.grad)

    def test_the_gradient_follows_the_scale_of_what_comes_after(self) -> None:
        hidden, head, targets = inputs()
        (linear_cross_entropy(hidden, head, targets)[0] * 0.25).backward()
        twin = hidden.detach().clone().requires_grad_()
        (F.cross_entropy(twin @ head.t(), targets, reduction="sum") * 0.25).backward()
        torch.testing.assert_close(hidden.grad, twin.grad)

    def test_a_trained_head_costs_nothing_where_nobody_learns(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """autograd says of its inputs under no_grad, too, that they want gradients: V x D numbers of them."""
        hidden, head, targets = inputs()
        learned = []
        chunk = loss._chunk
        monkeypatch.setattr(loss, "_chunk", lambda *given: (learned.append(given[4:]), chunk(*given))[1])
        with torch.no_grad():
            linear_cross_entropy(hidden, head.requires_grad_(), targets)
        assert learned == [(False, None)]

    def test_the_gradient_of_a_trained_head_is_kept_once(self) -> None:
        hidden, head, targets = inputs()
        total, *_ = linear_cross_entropy(hidden, head.requires_grad_(), targets)
        total.backward()
        assert total.grad_fn.head_gradient_V_D is None  # type: ignore[union-attr]

    def test_chunks_do_not_change_the_result(self, monkeypatch: pytest.MonkeyPatch) -> None:
        hidden, head, targets = inputs()
        whole = linear_cross_entropy(hidden, head, targets)
        monkeypatch.setattr(loss, "CHUNK_BYTES", 0)
        monkeypatch.setattr(loss, "LEAST_CHUNK_ROWS", 16)
        for one, other in zip(whole, linear_cross_entropy(hidden, head, targets), strict=True):
            torch.testing.assert_close(one, other)

    @pytest.mark.parametrize("rows", [16, 128])
    def test_weights_weigh_the_sum_and_its_gradient_and_no_tokens_loss(
        self, monkeypatch: pytest.MonkeyPatch, rows: int
    ) -> None:
        monkeypatch.setattr(loss, "CHUNK_BYTES", 0)
        monkeypatch.setattr(loss, "LEAST_CHUNK_ROWS", rows)
        hidden, head, targets = inputs()
        weights = torch.linspace(-1, 2, N)
        total, losses, _ = linear_cross_entropy(hidden, head, targets, weights)
        total.backward()
        twin = hidden.detach().clone().requires_grad_()
        want = F.cross_entropy(twin @ head.t(), targets, reduction="none")
        (want * weights).sum().backward()
        torch.testing.assert_close(losses, want)
        torch.testing.assert_close(total, (want * weights).sum())
        torch.testing.assert_close(hidden.grad, twin.grad)

    def test_a_hit_is_a_target_that_was_the_likeliest(self) -> None:
        hidden, head, _ = inputs()
        best = (hidden @ head.t()).argmax(-1)
        assert linear_cross_entropy(hidden, head, best)[2].all()
        assert not linear_cross_entropy(hidden, head, (best + 1) % V)[2].any()

    def test_a_frozen_head_gets_no_gradient(self) -> None:
        hidden, head, targets = inputs()
        linear_cross_entropy(hidden, head, targets)[0].backward()
        assert head.grad is None

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_head_that_is_trained_gets_its_own_over_all_chunks_in_float32(
        self, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
    ) -> None:
        monkeypatch.setattr(loss, "CHUNK_BYTES", 0)
        monkeypatch.setattr(loss, "LEAST_CHUNK_ROWS", 16)
        hidden, head, targets = inputs(dtype)
        master = head.float().requires_grad_()
        (linear_cross_entropy(hidden, master, targets)[0] * 0.5).backward()
        twin = head.float().requires_grad_()
        (F.cross_entropy(hidden.detach().float() @ twin.t(), targets, reduction="sum") * 0.5).backward()
        assert master.grad is not None
        assert twin.grad is not None
        assert master.grad.dtype == torch.float32
        rounding = 1e-6 if dtype == torch.float32 else 1e-2
        assert (master.grad - twin.grad).norm() < rounding * twin.grad.norm()

    def test_bfloat16_is_within_its_rounding_of_float32(self) -> None:
        hidden, head, targets = inputs(torch.bfloat16)
        total, _, _ = linear_cross_entropy(hidden, head, targets)
        total.backward()
        twin = hidden.detach().float().requires_grad_()
        want = F.cross_entropy(twin @ head.float().t(), targets, reduction="sum")
        want.backward()
        assert total.item() == pytest.approx(want.item(), rel=1e-2)
        assert (hidden.grad.float() - twin.grad).norm() < 0.01 * twin.grad.norm()  # type: ignore[union-attr, operator]

    def test_large_logits_do_not_overflow(self) -> None:
        hidden, head, targets = inputs()
        total, losses, _ = linear_cross_entropy(hidden * 1e4, head, targets)
        assert torch.isfinite(losses).all()
        assert torch.isfinite(total)
