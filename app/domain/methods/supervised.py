"""Supervised training: the cross entropy of every labelled token."""

from __future__ import annotations

from app.domain.methods.method import Method

SUPERVISED = Method(
    name="supervised",
    title="Supervised: learn the answers",
    rows="answers or text",
    formats=("chat", "completion", "text"),
    metrics=("mean_token_accuracy",),
    untrainable="examples without a token to train on",
    nothing_trainable="No example has a token to train on within {context_length:,} tokens: every answer is empty, has "
    "weight 0, or begins after the truncation. Give an answer weight 1",
)
