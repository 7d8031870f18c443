"""What the trainer finds out about a model directory, and how the catalog entry takes it over."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class TrainerReport(BaseModel):
    """Printed by `python -m worker.trainer.model.check_model` as one line of JSON. Shapes are [out, in]."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    problems: tuple[str, ...] = ()  # clauses; not empty: the model cannot be trained, and the rest is not known
    notes: tuple[str, ...] = ()  # sentences for the operator
    text_config: dict[str, Any] = {}  # config.json's part of the text model, with the defaults of its class
    layers: dict[str, tuple[int, int]] = {}  # that an adapter may have, by full name in the model
    experts: dict[str, tuple[int, int, int]] = {}  # [experts, out, in] of stacked weights, by full name
    whole_modules: tuple[str, ...] = ()  # last names of the modules that can be fully trained
    parameters: int = 0  # of the text model
    linear_parameters: int = 0
    expert_parameters: int = 0
    activation_bytes: dict[str, float] = {}  # as in CatalogEntry
