"""The exports that the form of the dashboard can request."""

from __future__ import annotations

from app.domain.artifacts.exports import UNFINISHED, ExportState, ExportType, Quantization
from app.web.pages.jobs.panels import exports


def test_every_type_quantization_and_state_has_a_text() -> None:
    assert exports.TYPES.keys() == exports.NAMES.keys() == set(ExportType)
    assert exports.QUANTIZATIONS.keys() == set(Quantization)
    assert exports.TONES.keys() == set(ExportState) - {ExportState.CANCELLED}  # which is hidden from clients
    assert set(exports.UNFINISHED) == UNFINISHED
