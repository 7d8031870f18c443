"""The definitions of the request parameters: complete, and the same fields as in the stored spec."""

from __future__ import annotations

import pytest
from annotated_types import Ge, Le

from app.domain.base_models.catalog import CatalogEntry
from app.domain.jobs.definitions import AtMost, Parameters, ResolutionContext
from app.domain.jobs.lora_parameters import LoraParameters
from app.domain.jobs.parameters import (
    HYPERPARAMETERS,
    NEED_VALIDATION_FILE,
    EvaluationParameters,
    QuantizationParameters,
)
from app.domain.jobs.request_parameters import RequestParameters
from app.domain.jobs.spec import Hyperparameters, LoraSpec, QuantizationSpec
from app.domain.methods import METHOD_PARAMETERS
from tests.jobs.test_resolve import ENTRY

SUBJECTS = (*HYPERPARAMETERS, *METHOD_PARAMETERS, LoraParameters, QuantizationParameters)
FIELDS = [(model, key) for model in SUBJECTS for key in model.model_fields]


def context(entry: CatalogEntry = ENTRY) -> ResolutionContext:
    return ResolutionContext(entry, 100)


class TestDefinitions:
    def test_parameters_have_the_fields_of_the_stored_spec(self) -> None:
        hyperparameters = {key for model in (*HYPERPARAMETERS, *METHOD_PARAMETERS) for key in model.model_fields}
        assert hyperparameters == Hyperparameters.model_fields.keys()
        assert LoraParameters.model_fields.keys() == LoraSpec.model_fields.keys()
        assert QuantizationParameters.model_fields.keys() == QuantizationSpec.model_fields.keys()

    @pytest.mark.parametrize(("model", "key"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
    def test_a_parameter_has_a_description_and_a_valid_example(self, model: type[Parameters], key: str) -> None:
        field = model.model_fields[key]
        assert field.description
        assert field.examples
        experts = {"model.layers.0.mlp.experts.down_proj": (8, 64, 128)}
        entry = ENTRY.model_copy(update={"whole_modules": ("norm",), "experts": experts})
        for example in field.examples:
            request = RequestParameters()
            request.add(model.prefix + key, example, key)
            if key == "simpo_gamma":
                request.add("loss_type", "simpo", "loss_type")
            assert request.resolved(model, context(entry)) is not None, request.problems

    @pytest.mark.parametrize(("model", "key"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
    def test_every_number_has_both_bounds(self, model: type[Parameters], key: str) -> None:
        field = model.model_fields[key]
        kinds = {type(item) for item in field.metadata}
        assert field.annotation not in (int, float) or ({Ge} <= kinds and kinds & {Le, AtMost})

    def test_all_evaluation_parameters_need_a_validation_file(self) -> None:
        assert EvaluationParameters.model_fields.keys() == set(NEED_VALIDATION_FILE)
