"""Attention on a CPU for short documents: those of like length become one padded batch, a block.

    row       | doc 0 ......... | doc 1 ... | doc 2 .......... | doc 3 ... |
    blocks    | doc 0 .........  |          | doc 1 ... |       padding behind a document's end
              | doc 2 .......... |          | doc 3 ... |       is seen by nobody: attention is causal

Two batched products in 16 bits with a float32 softmax between them, and its gradient by hand. In place of torch's own
kernel, called once a document, it took 5 % off a step's CPU time at 1,519 tokens; beyond LONGEST its tiles win.

Letters: T tokens of the row, B documents of a block, S its length, H query heads, G key/value heads, N = H / G, D per
head.
"""
# ruff: noqa: N815  shapes stand in names

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch

LONGEST = 512  # tokens of a document
LEAST_FILL = 0.8  # a document as long as this part of the block's longest may join it
SHORT = 64  # documents up to this length are never worth a block of their own
MAX_CELLS = 1 << 20  # B x S x S of one block: a temporary of 4 bytes x H for each, near the cache


@dataclass(frozen=True)
class Block:
    """Some documents of a row, the longest first, each padded to `length` tokens."""

    documents: int
    length: int
    tokens_BS: torch.Tensor  # where each token of the block stands in the row; padding repeats a document's last one
    padding: torch.Tensor  # positions in the block that are padding


@dataclass(frozen=True)
class Blocks:
    blocks: tuple[Block, ...]
    places_T: torch.Tensor  # where each token of the row stands in the blocks, one after the other


def block_attention(
    query_T_H_D: torch.Tensor,
    key_T_G_D: torch.Tensor,
    value_T_G_D: torch.Tensor,
    lengths: tuple[int, ...],
    scale: float,
) -> torch.Tensor:
    """Causal attention within documents of `lengths` tokens that lie end to end, as T x H x D."""
    out_T_H_D: torch.Tensor = _BlockAttention.apply(query_T_H_D, key_T_G_D, value_T_G_D, in_blocks(lengths), scale)  # type: ignore[no-untyped-call]
    return out_T_H_D


@lru_cache(maxsize=8)
def in_blocks(lengths: tuple[int, ...]) -> Blocks:
    """Asked for once a layer with the same row."""
    starts = [0, *accumulate(lengths)]
    places_T = torch.empty(starts[-1], dtype=torch.int64)
    blocks, begin = [], 0
    for documents in _of_like_length(lengths):
        blocks.append(_block(documents, starts, begin, places_T))
        begin += blocks[-1].documents * blocks[-1].length
    return Blocks(tuple(blocks), places_T)


def _of_like_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    waiting: list[int] = []
    for document in sorted(range(len(lengths)), key=lambda document: -lengths[document]):
        longest = lengths[waiting[0]] if waiting else 0
        is_like = longest <= SHORT or lengths[document] >= LEAST_FILL * longest
        if waiting and not (is_like and (len(waiting) + 1) * longest**2 <= MAX_CELLS):
            yield waiting
            waiting = []
        waiting.append(document)
    yield waiting


def _block(documents: Sequence[int], starts: Sequence[int], begin: int, places_T: torch.Tensor) -> Block:
    length = starts[documents[0] + 1] - starts[documents[0]]
    tokens: list[int] = []
    padding: list[int] = []
    for document in documents:
        start, end = starts[document], starts[document + 1]
        places_T[start:end] = torch.arange(begin + len(tokens), begin + len(tokens) + end - start)
        padding += range(len(tokens) + end - start, len(tokens) + length)
        tokens += [*range(start, end), *([end - 1] * (length - (end - start)))]
    return Block(len(documents), length, torch.tensor(tokens), torch.tensor(padding, dtype=torch.int64))


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_T_H_D: torch.Tensor,
        key_T_G_D: torch.Tensor,
        value_T_G_D: torch.Tensor,
        blocks: Blocks,
        scale: float,
    ) -> torch.Tensor:
        heads, groups = query_T_H_D.shape[1], key_T_G_D.shape[1]
        outs, kept = [], []
        for block in blocks.blocks:
            query_BG_NS_D, key_BG_S_D, value_BG_S_D = (
                _gather(tensor, block, groups) for tensor in (query_T_H_D, key_T_G_D, value_T_G_D)
            )
            scores_BG_NS_S = torch.bmm(query_BG_NS_D, key_BG_S_D.transpose(1, 2)).float()
            scores_BG_N_S_S = scores_BG_NS_S.view(-1, heads // groups, block.length, block.length)
            mask_S_S = _causal_mask()[: block.length, : block.length]
            torch.add(mask_S_S, scores_BG_N_S_S, alpha=scale, out=scores_BG_N_S_S)
            probs_BG_NS_S = torch.softmax(scores_BG_N_S_S, -1).to(query_T_H_D.dtype).view_as(scores_BG_NS_S)
            outs.append(torch.bmm(probs_BG_NS_S, value_BG_S_D))
            kept += [query_BG_NS_D, key_BG_S_D, value_BG_S_D, probs_BG_NS_S]
        ctx.blocks, ctx.scale, ctx.groups = blocks, scale, groups
        ctx.save_for_backward(*kept)
        return _scatter(outs, blocks, groups, query_T_H_D.shape)

    @staticmethod
    def backward(ctx: Any, dout_T_H_D: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        kept = iter(ctx.saved_tensors)
        dqueries, dkeys, dvalues = [], [], []
        for block in ctx.blocks.blocks:
            query_BG_NS_D, key_BG_S_D, value_BG_S_D, probs_BG_NS_S = (next(kept) for _ in range(4))
            dout_BG_NS_D = _gather(dout_T_H_D, block, ctx.groups, without_padding=True)
            dvalues.append(torch.bmm(probs_BG_NS_S.transpose(1, 2), dout_BG_NS_D))
            dprobs_BG_NS_S = torch.bmm(dout_BG_NS_D, value_BG_S_D.transpose(1, 2))
            dscores_BG_NS_S = torch._softmax_backward_data(  # sums in float32, whatever goes in and out
                dprobs_BG_NS_S, probs_BG_NS_S, -1, probs_BG_NS_S.dtype
            ).mul_(ctx.scale)
            dqueries.append(torch.bmm(dscores_BG_NS_S, key_BG_S_D))
            dkeys.append(torch.bmm(dscores_BG_NS_S.transpose(1, 2), query_BG_NS_D))
        shape_T_G_D = (dout_T_H_D.shape[0], ctx.groups, dout_T_H_D.shape[2])
        return (
            _scatter(dqueries, ctx.blocks, ctx.groups, dout_T_H_D.shape),
            _scatter(dkeys, ctx.blocks, ctx.groups, shape_T_G_D),
            _scatter(dvalues, ctx.blocks, ctx.groups, shape_T_G_D),
            None,
            None,
        )


def _gather(x_T_H_D: torch.Tensor, block: Block, groups: int, *, without_padding: bool = False) -> torch.Tensor:
    """A block's part of the row as (B x G) x (N x S) x D: heads that share a key lie behind each other."""
    tokens, heads, width = x_T_H_D.shape
    x_BS_HD = x_T_H_D.reshape(tokens, heads * width).index_select(0, block.tokens_BS)
    if without_padding:
        x_BS_HD.index_fill_(0, block.padding, 0)
    x_B_S_G_N_D = x_BS_HD.view(block.documents, block.length, groups, heads // groups, width)
    return x_B_S_G_N_D.permute(0, 2, 3, 1, 4).reshape(block.documents * groups, -1, width)


def _scatter(
    parts_BG_NS_D: Sequence[torch.Tensor], blocks: Blocks, groups: int, shape_T_H_D: Sequence[int]
) -> torch.Tensor:
    """The blocks' results back in the order of the row, without their padding."""
    _, heads, width = shape_T_H_D
    flat = [
        part.view(block.documents, groups, heads // groups, block.length, width)
        .permute(0, 3, 1, 2, 4)
        .reshape(-1, heads * width)
        for part, block in zip(parts_BG_NS_D, blocks.blocks, strict=True)
    ]
    return torch.cat(flat).index_select(0, blocks.places_T).view(*shape_T_H_D)


@lru_cache(maxsize=1)
def _causal_mask() -> torch.Tensor:
    """One for all: a corner of it is that of a shorter block. One for each length took up to 179 MB."""
    return torch.full((LONGEST, LONGEST), -math.inf).triu_(1)
