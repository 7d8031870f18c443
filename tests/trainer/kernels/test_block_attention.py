from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.helpers import CPU
from worker.trainer.kernels.comparison import random_tensors, run_with_gradients
from worker.trainer.kernels.cpu.block_attention import (
    MAX_CELLS,
    MIN_FILL,
    SHORT_TOKENS,
    block_attention,
    make_blocks,
)

HEADS, GROUPS, WIDTH = 4, 2, 8
LENGTHS = st.lists(st.integers(1, 150), min_size=1, max_size=12).map(tuple)


def one_by_one(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
    outs = [
        torch.nn.functional.scaled_dot_product_attention(
            *(part.transpose(0, 1) for part in parts), is_causal=True, scale=0.3, enable_gqa=True
        ).transpose(0, 1)
        for parts in zip(*(tensor.split(list(lengths)) for tensor in (query, key, value)), strict=True)
    ]
    return torch.cat(outs)


class TestBlockAttention:
    @settings(deadline=None, max_examples=25)
    @given(LENGTHS)
    def test_equals_causal_attention_of_each_document_with_its_gradients(self, lengths: tuple[int, ...]) -> None:
        shapes = [(sum(lengths), count, WIDTH) for count in (HEADS, GROUPS, GROUPS)]
        heads = random_tensors(shapes, CPU, torch.float32)
        ours = run_with_gradients(lambda *qkv: block_attention(*qkv, lengths, 0.3), heads)
        theirs = run_with_gradients(lambda *qkv: one_by_one(*qkv, lengths), heads)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


class TestMakeBlocks:
    @given(st.lists(st.integers(1, 512), min_size=1, max_size=30).map(tuple))
    def test_every_token_has_one_position_and_there_is_little_padding(self, lengths: tuple[int, ...]) -> None:
        plan = make_blocks(lengths)
        tokens = torch.cat([block.tokens_BS for block in plan.blocks])
        assert torch.equal(tokens[plan.positions_T], torch.arange(sum(lengths)))
        for block in plan.blocks:
            size = block.documents * block.length
            assert len(block.padding) <= (1 - MIN_FILL) * size or block.length <= SHORT_TOKENS
            assert block.documents == 1 or size * block.length <= MAX_CELLS

    def test_padding_never_has_the_position_of_a_token(self) -> None:
        plan = make_blocks((100, 81, 95))
        (block,) = plan.blocks
        assert not set(block.padding.tolist()) & set(plan.positions_T.tolist())
