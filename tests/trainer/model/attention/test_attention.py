from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.jobs.states import Reason
from worker.trainer.kernels.comparison import run_with_gradients
from worker.trainer.model.attention import attention, explicit_attention
from worker.trainer.model.attention.attention import Heads, document_attention
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

    @pytest.mark.parametrize("window", [None, 2, 3])
    def test_explicit_scores_equal_a_masked_softmax_in_value_and_gradient(
        self, monkeypatch: pytest.MonkeyPatch, window: int | None
    ) -> None:
        monkeypatch.setattr(explicit_attention, "QUERIES", 3)
        found = run_with_gradients(lambda *each: attention._explicit(Heads(*each, (4, 3), None, window)), heads(7))
        torch.testing.assert_close(found, run_with_gradients(lambda *each: by_hand(*each, [4, 3], window)[0], heads(7)))

    @pytest.mark.parametrize("lengths", [(4, 3), (1, 1, 5), (7,)])
    def test_a_layer_that_passes_only_the_positions_gives_the_same(self, lengths: tuple[int, ...]) -> None:
        positions_1_T = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
        out, _ = document_attention(torch.nn.Module(), *heads(7), None, position_ids=positions_1_T)
        expected, _ = document_attention(torch.nn.Module(), *heads(7), None, document_lengths=lengths)
        assert torch.equal(out, expected)

    @pytest.mark.parametrize("extra", [{"position_bias": torch.ones(4)}, {"is_causal": False}])
    def test_unsupported_options_are_refused(self, extra: dict[str, object]) -> None:
        with pytest.raises(Failure) as caught:
            document_attention(torch.nn.Module(), *heads(4), None, document_lengths=(4,), **extra)  # type: ignore[arg-type]
        assert caught.value.reason is Reason.MODEL_UNAVAILABLE

    def test_a_model_that_does_not_pass_the_document_lengths_is_refused(self) -> None:
        with pytest.raises(Failure):
            document_attention(torch.nn.Module(), *heads(4), None)


class TestChooseKernel:
    """The facts of a GPU are faked; the tensors are on `meta`, because only their sizes count."""

    @pytest.fixture
    def on(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[[Heads], torch.Tensor]]:
        def choose(
            capability: tuple[int, int],
            dtype: torch.dtype,
            size: int,
            value_size: int | None = None,
            window: int | None = None,
            sinks_H: torch.Tensor | None = None,
        ) -> Callable[[Heads], torch.Tensor]:
            monkeypatch.setattr(attention, "_capability", lambda device: capability)
            monkeypatch.setattr(Heads, "device", torch.device("cuda", 0))
            sizes = ((8, size), (2, size), (2, value_size or size))
            tensors = [torch.empty(1, count, 7, width, dtype=dtype, device="meta") for count, width in sizes]
            return attention.choose_kernel(Heads(*tensors, (4, 3), None, window, None, sinks_H)).compute

        return choose

    @pytest.mark.parametrize("size", [64, 128, 192, 256])
    def test_flash_attention_from_sm80_on_in_16_bits(self, on: Callable[..., object], size: int) -> None:
        assert on((8, 0), torch.bfloat16, size) is attention._variable_length
        assert on((9, 0), torch.float16, size) is attention._variable_length

    @pytest.mark.parametrize(
        ("capability", "dtype", "size", "value_size"),
        [
            ((7, 5), torch.float16, 64, 64),
            ((9, 0), torch.float32, 64, 64),
            ((9, 0), torch.bfloat16, 512, 512),
            ((9, 0), torch.bfloat16, 192, 128),
            ((9, 0), torch.bfloat16, 60, 60),
            ((8, 9), torch.bfloat16, 200, 200),
        ],
        ids=["before sm80", "float32", "large heads", "unequal heads", "not a multiple of 8", "no backward"],
    )
    def test_one_document_at_a_time_with_expanded_heads_otherwise(
        self, on: Callable[..., object], capability: tuple[int, int], dtype: torch.dtype, size: int, value_size: int
    ) -> None:
        assert on(capability, dtype, size, value_size) is attention._expanded_by_document

    def test_a_sliding_window_without_flash_attention_needs_no_mask_of_the_documents_length_squared(
        self, on: Callable[..., object]
    ) -> None:
        assert on((7, 5), torch.float16, 64, window=3) is attention._explicit
        assert on((9, 0), torch.float32, 64, window=3) is attention._explicit
        assert on((7, 5), torch.float16, 64, window=4) is attention._expanded_by_document
        assert on((9, 0), torch.bfloat16, 64, window=3) is attention._variable_length

    def test_sinks_use_flash_attention_where_the_device_has_it(self, on: Callable[..., object]) -> None:
        sinks_H = torch.zeros(8)
        assert on((9, 0), torch.bfloat16, 64, window=3, sinks_H=sinks_H) is attention._variable_length_with_sinks
        assert on((9, 0), torch.float32, 64, sinks_H=sinks_H) is attention._explicit
        assert on((7, 5), torch.float16, 64, sinks_H=sinks_H) is attention._explicit

    @pytest.mark.parametrize("window", [None, 2])
    def test_expanded_heads_give_the_same_result_and_no_call_shares_a_key_head(
        self, monkeypatch: pytest.MonkeyPatch, window: int | None
    ) -> None:
        """torch's kernels but flash attention do not share key heads: it would use the one with S x S numbers."""
        plain, calls = torch.nn.functional.scaled_dot_product_attention, []

        def record(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: object) -> torch.Tensor:
            calls.append((query.shape[1], key.shape[1], value.shape[1], options["enable_gqa"]))
            return plain(query, key, value, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
        shared, expanded = (
            run_with_gradients(lambda *each, compute=compute: compute(Heads(*each, (4, 3), None, window)), heads(7))
            for compute in (attention._document_by_document, attention._expanded_by_document)
        )
        torch.testing.assert_close(shared, expanded)
        assert calls[:2] == [(HEADS, GROUPS, GROUPS, True)] * 2
        assert calls[2:] == [(HEADS, HEADS, HEADS, False)] * 2
