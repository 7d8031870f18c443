from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.jobs.states import Reason
from worker.trainer.model.attention import document_attention
from worker.trainer.runtime.failures import Failure

HEADS, GROUPS, WIDTH = 4, 2, 8


def heads(tokens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dice = torch.Generator().manual_seed(seed)
    query = torch.randn(1, HEADS, tokens, WIDTH, generator=dice)
    key, value = (torch.randn(1, GROUPS, tokens, WIDTH, generator=dice) for _ in range(2))
    return query, key, value


def by_hand(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], window: int | None = None
) -> torch.Tensor:
    """Compute attention with a T x T mask: a token attends to itself and to earlier tokens of its document."""
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    at = torch.arange(len(owner))
    sees = (owner[:, None] == owner[None, :]) & (at[:, None] >= at[None, :])
    if window:
        sees &= at[:, None] - at[None, :] < window
    key, value = (tensor.repeat_interleave(HEADS // GROUPS, dim=1) for tensor in (key, value))
    scores = (query @ key.transpose(2, 3) / WIDTH**0.5).masked_fill(~sees, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2)


class TestDocumentAttention:
    @settings(deadline=None, max_examples=20)
    @given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.one_of(st.none(), st.integers(1, 6)))
    def test_equals_a_masked_softmax_over_the_batch(self, lengths: list[int], window: int | None) -> None:
        query, key, value = heads(sum(lengths))
        out, _ = document_attention(
            torch.nn.Module(), query, key, value, None, document_lengths=tuple(lengths), sliding_window=window
        )
        torch.testing.assert_close(out, by_hand(query, key, value, lengths, window))

    def test_no_gradient_crosses_from_one_document_to_another(self) -> None:
        tensors = [tensor.requires_grad_() for tensor in heads(7)]
        out, _ = document_attention(torch.nn.Module(), *tensors, None, document_lengths=(4, 3))
        out[:, 4:].sum().backward()
        assert all(not tensor.grad[:, :, :4].any() for tensor in tensors)  # type: ignore[index]

    @pytest.mark.parametrize("extra", [{"softcap": 30.0}, {"s_aux": torch.ones(4)}, {"is_causal": False}])
    def test_unsupported_options_are_refused(self, extra: dict[str, object]) -> None:
        with pytest.raises(Failure) as caught:
            document_attention(torch.nn.Module(), *heads(4), None, document_lengths=(4,), **extra)  # type: ignore[arg-type]
        assert caught.value.reason is Reason.MODEL_UNAVAILABLE

    def test_a_model_that_does_not_pass_the_document_lengths_is_refused(self) -> None:
        with pytest.raises(Failure):
            document_attention(torch.nn.Module(), *heads(4), None)
