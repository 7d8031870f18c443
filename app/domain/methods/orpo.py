"""ORPO (arXiv 2403.07691): supervised training on the preferred answer, plus the log odds ratio of both answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from app.domain.jobs.definitions import Auto, Parameters
from app.domain.methods.dpo import DPO
from app.domain.methods.method import Beta


class OrpoParameters(Parameters):
    beta: Annotated[Beta, Auto(0.1)]  # TRL's default, and the paper's lambda


ORPO = replace(
    DPO,
    name="orpo",
    title="ORPO: learn the preferred answer, and prefer it",
    parameters=OrpoParameters,
    # It learns the answer too, without a reference that holds it back: its loss is mostly the supervised one. Zephyr
    # 141B has 5e-6, where Zephyr 7B has 2e-5 in supervised training.
    rate_factor=0.25,
    extra_forwards=lambda _: 0,
)
