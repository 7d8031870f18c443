"""The catalog entry of a base model: its context length and its learning rate."""

from __future__ import annotations

from typing import Any

import pytest

from app.domain.base_models import catalog


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({}, None),
        ({"max_position_embeddings": 4096, "rope_scaling": None}, 4096),
        ({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "llama3",
          "original_max_position_embeddings": 128}}, 4096),
        ({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "longrope",
          "original_max_position_embeddings": 128}}, 128),
        ({"max_position_embeddings": 4096, "original_max_position_embeddings": 128,
          "rope_scaling": {"type": "su"}}, 128),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 4096),
        ({"max_position_embeddings": 4096, "rope_parameters": {"full_attention": {"rope_type": "longrope",
          "original_max_position_embeddings": 64}, "sliding_attention": {"rope_type": "default"}}}, 64),
    ],
)  # fmt: skip
def test_documents_stay_where_the_rope_does_not_depend_on_the_row(config: dict[str, Any], longest: int | None) -> None:
    assert catalog.max_document_tokens(config) == longest


@pytest.mark.parametrize(("hidden_size", "rate"), [(576, 1.3e-3), (2048, 4.9e-4), (4096, 2.9e-4)])
def test_the_default_learning_rate_falls_with_the_hidden_size(hidden_size: int, rate: float) -> None:
    assert catalog.default_learning_rate(hidden_size) == rate


@pytest.mark.parametrize(("hidden_size", "rate"), [(896, 5.3e-4), (4096, 4.7e-4)])
def test_the_learning_rate_of_qwen_models_hardly_depends_on_their_size(hidden_size: int, rate: float) -> None:
    assert catalog.default_learning_rate(hidden_size, "Qwen3ForCausalLM") == rate
