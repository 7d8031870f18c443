"""The definitions of the request parameters: complete, and the same fields as in the stored spec."""

from __future__ import annotations

import pytest

from app.domain.base_models.catalog import CatalogEntry
from app.domain.jobs.lora_parameters import LoraParameters
from app.domain.jobs.parameters import (
    HYPERPARAMETERS,
    METHOD_HYPERPARAMETERS,
    NEED_VALIDATION_FILE,
    EvaluationParameters,
    Parameters,
    QuantizationParameters,
    ResolutionContext,
    TrainingParameters,
)
from app.domain.jobs.request_parameters import RequestParameters, collect
from app.domain.jobs.spec import Hyperparameters, LoraSpec, QuantizationSpec
from tests.app.domain.jobs.test_resolve import ENTRY

SUBJECTS = (*HYPERPARAMETERS, *METHOD_HYPERPARAMETERS.values(), LoraParameters, QuantizationParameters)
FIELDS = [(model, key) for model in SUBJECTS for key in model.model_fields]


def context(entry: CatalogEntry = ENTRY) -> ResolutionContext:
    return ResolutionContext(entry, 100)


class TestDefinitions:
    def test_have_the_fields_of_the_stored_spec(self) -> None:
        hyperparameters = {
            key for model in (*HYPERPARAMETERS, *METHOD_HYPERPARAMETERS.values()) for key in model.model_fields
        }
        assert hyperparameters == Hyperparameters.model_fields.keys()
        assert LoraParameters.model_fields.keys() == LoraSpec.model_fields.keys()
        assert QuantizationParameters.model_fields.keys() == QuantizationSpec.model_fields.keys()

    @pytest.mark.parametrize(("model", "key"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
    def test_have_a_description_and_an_example_that_is_accepted(self, model: type[Parameters], key: str) -> None:
        field = model.model_fields[key]
        assert field.description
        assert field.examples
        experts = {"model.layers.0.mlp.experts.down_proj": (8, 64, 128)}
        entry = ENTRY.model_copy(update={"whole_modules": ("norm",), "experts": experts})
        for example in field.examples:
            request = RequestParameters()
            request.add(model.prefix + key, example, key)
            assert request.resolved(model, context(entry)) is not None, request.problems

    def test_all_evaluation_parameters_need_a_validation_file(self) -> None:
        assert EvaluationParameters.model_fields.keys() == set(NEED_VALIDATION_FILE)


class TestResolved:
    def test_a_number_without_a_fraction_is_an_integer(self) -> None:
        request = collect({"hyperparameters": {"n_epochs": 3.0}})
        values = request.resolved(TrainingParameters, context())
        assert values is not None
        assert repr(values["n_epochs"]) == "3"

    @pytest.mark.parametrize("value", [None, "auto"])
    def test_null_and_auto_are_what_an_absent_parameter_is(self, value: object) -> None:
        request = collect({"hyperparameters": dict.fromkeys(TrainingParameters.model_fields, value)})
        assert request.resolved(TrainingParameters, context()) == collect({}).resolved(TrainingParameters, context())

    def test_an_inherited_value_takes_the_place_of_auto_alone(self) -> None:
        request = collect({"lora": {"dropout": 0.2}})
        values = request.resolved(LoraParameters, context(), {"dropout": 0.1, "use_dora": True})
        assert values is not None
        assert (values["dropout"], values["use_dora"]) == (0.2, True)

    def test_each_problem_has_the_path_that_the_client_used(self) -> None:
        request = collect({"hyperparameters": {"lora_r": 0}, "lora": {"lora_alpha": "x"}})
        assert request.resolved(LoraParameters, context()) is None
        assert [problem.param for problem in request.problems] == ["hyperparameters.lora_r", "lora.lora_alpha"]
