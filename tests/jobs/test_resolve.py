"""Requests become specs: every alias, every bound, and nothing replaced in silence."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.base_models.catalog import CatalogEntry
from app.domain.jobs.hyperparameters import LEARNING_RATE
from app.domain.jobs.parameters import auto_learning_rate
from app.domain.jobs.resolve import resolve
from app.domain.jobs.spec import JobSpec, QuantizationSpec
from app.domain.methods import OWNERS
from app.errors import BadRequest, UnknownParameter
from tests.sentences import Reviewed

ENTRY = CatalogEntry(
    architecture="LlamaForCausalLM",
    context_length=2048,
    hidden_size=576,
    vocab_size=49152,
    parameters=134_515_008,
    size_bytes=269_060_552,
    target_modules={"q_proj": (576, 576), "k_proj": (192, 576), "v_proj": (192, 576), "up_proj": (1536, 576)},
    learning_rate=1e-3,
    has_chat_template=True,
)


def spec_of(n_examples: int = 100, **body: Any) -> JobSpec:
    return resolve(body, "base", ENTRY, n_examples)


def of(method: str, **values: Any) -> dict[str, Any]:
    return {"method": {"type": method, method: {"hyperparameters": values}}}


hyper, dpo = partial(of, "supervised"), partial(of, "dpo")


def refusal(**body: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        spec_of(**body)
    return caught.value


class TestDefaults:
    def test_the_default_is_qlora_on_every_linear_layer(self) -> None:
        spec = spec_of()
        assert (spec.lora.r, spec.lora.alpha, spec.lora.dropout) == (16, 32.0, 0.0)
        assert spec.lora.target_modules == ("k_proj", "q_proj", "up_proj", "v_proj")
        assert spec.quantization == QuantizationSpec(bits=4, type="nf4", double_quant=True, compute_dtype="bfloat16")

    @pytest.mark.parametrize(
        ("quantization", "is_free"),
        [
            ({}, True),
            ({"bits": 8}, True),
            ({"compute_dtype": "auto"}, True),
            ({"compute_dtype": "bfloat16"}, False),
            ({"compute_dtype": "float32"}, False),
            (None, False),
        ],
    )
    def test_only_a_type_that_the_request_omits_may_become_a_faster_one(self, quantization: Any, is_free: bool) -> None:
        assert spec_of(quantization=quantization).dtype_is_free is is_free
        assert spec_of().dtype_is_free

    def test_alpha_follows_the_rank(self) -> None:
        assert spec_of(lora={"r": 8}).lora.alpha == 16.0

    @given(st.integers(1, 10_000_000))
    def test_automatic_values_are_always_within_their_bounds(self, n_examples: int) -> None:
        hyperparameters = spec_of(n_examples).hyperparameters
        assert 1 <= hyperparameters.n_epochs <= 25
        assert 1 <= hyperparameters.batch_size <= ENTRY.max_auto_batch_size
        assert 0.5 * ENTRY.learning_rate <= hyperparameters.learning_rate <= 1.6 * ENTRY.learning_rate

    def test_auto_says_the_same_as_absence(self) -> None:
        body = hyper(n_epochs="auto", batch_size="auto", learning_rate_multiplier="auto")
        assert spec_of(seed=1, **body) == spec_of(seed=1)

    def test_a_seed_is_made_up_once_and_echoed(self) -> None:
        assert 0 <= spec_of().seed <= 2_147_483_647
        assert spec_of(seed=0).seed == 0

    def test_the_rate_is_that_of_the_steps_the_run_will_take(self) -> None:
        """500 examples by 8 are 63 steps an epoch: three times by OpenAI's rule, or as often as was asked for."""
        wanted = {steps: auto_learning_rate(ENTRY.learning_rate, steps, 63, spec_of().lora) for steps in (63, 189, 900)}
        assert len(set(wanted.values())) == 3
        assert spec_of(500).hyperparameters.learning_rate == wanted[189]
        assert spec_of(500, **hyper(n_epochs=1)).hyperparameters.learning_rate == wanted[63]
        assert spec_of(500, **hyper(max_steps=900)).hyperparameters.learning_rate == wanted[900]

    def test_the_rate_is_lower_for_a_stronger_adapter(self) -> None:
        plain, strong = spec_of(), spec_of(lora={"r": 64})
        assert strong.hyperparameters.learning_rate < plain.hyperparameters.learning_rate

    @pytest.mark.parametrize("parameter", ["lora_r", "lora_alpha", "lora_dropout"])
    def test_a_number_that_came_as_text_is_quoted_as_it_came(self, parameter: str, reviewed: Reviewed) -> None:
        reviewed(refusal(**hyper(**{parameter: "8"})).message)

    @pytest.mark.parametrize("kind", ["supervised", "dpo"])
    def test_what_a_job_shows_may_be_requested_again(self, kind: str) -> None:
        """Scripts copy the `method` of a job; OpenAI's client adds the methods that it knows, as null."""
        nulls = {"supervised": None, "dpo": None, "reinforcement": None}
        first = spec_of(method={**nulls, "type": kind, kind: {"hyperparameters": {"learning_rate_multiplier": 2}}})
        shown = {"hyperparameters": first.hyperparameters.model_dump()}
        again = spec_of(method={**nulls, "type": kind, kind: shown})
        assert again.hyperparameters == first.hyperparameters

    def test_the_multiplier_scales_the_automatic_rate(self) -> None:
        automatic = spec_of().hyperparameters.learning_rate
        assert spec_of(**hyper(learning_rate_multiplier=2)).hyperparameters.learning_rate == 2 * automatic
        absolute = spec_of(**hyper(learning_rate=5e-5)).hyperparameters
        assert (absolute.learning_rate, absolute.learning_rate_multiplier) == (5e-5, None)


WANTED = {"r": 8, "alpha": 24, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}


class TestAliases:
    @pytest.mark.parametrize(
        "body",
        [
            {"lora": WANTED},
            {"lora": {"rank": 8, "lora_alpha": 24, "lora_dropout": 0.1, "target_modules": "q_proj, v_proj"}},
            hyper(lora_r=8, lora_alpha=24, lora_dropout=0.1, lora_target_modules="v_proj,q_proj"),
            hyper(lora=WANTED),
            {"hyperparameters": {"lora_r": 8, "lora_alpha": 24, "lora_dropout": 0.1,
                                 "lora_trainable_modules": "q_proj,v_proj"}},
            {"lora": {"r": 8}, "hyperparameters": {"lora_r": 8, "lora": True, "lora_alpha": 24, "lora_dropout": 0.1},
             **hyper(lora_target_modules=["q_proj", "v_proj"])},
        ],
    )  # fmt: skip
    def test_every_spelling_gives_the_same_adapter(self, body: dict[str, Any]) -> None:
        assert spec_of(seed=1, **body).lora == spec_of(seed=1, lora=WANTED).lora

    def test_every_spelling_of_no_quantization(self) -> None:
        for body in ({"quantization": None}, hyper(load_in_4bit=False), {"hyperparameters": {"quantization": None}}):
            assert spec_of(**body).quantization is None

    def test_one_parameter_with_two_values_names_both_paths(self) -> None:
        error = refusal(lora={"r": 8}, hyperparameters={"lora_r": 16})
        assert error.code == "conflicting_parameters"
        assert "lora.r = 8" in error.message
        assert "hyperparameters.lora_r = 16" in error.message

    def test_quantization_requested_and_declined_is_a_conflict(self) -> None:
        assert refusal(quantization={"bits": 4}, **hyper(load_in_4bit=False)).code == "conflicting_parameters"


BAD_HYPERPARAMETERS: dict[str, list[Any]] = {
    "n_epochs": [0, 51, 1.5, True, "3"],
    "learning_rate": [0, float("nan"), float("inf")],
    "warmup_ratio": [1.1],
    "weight_decay": [-1],
    "context_length": [2049, 1],  # of one token there is nothing to predict
    "lr_scheduler_type": ["polynomial"],
    "packing": ["yes"],
}
BAD_LORA: dict[str, list[Any]] = {
    "r": [0, 257, 193],
    "alpha": [0],
    "dropout": [1, -0.1],
    "target_modules": [[], [1], ["c_attn"]],
    "use_dora": ["yes"],
    "init": ["pissa"],
    "bias": ["all"],
}


class TestRefusals:
    @pytest.mark.parametrize(
        ("path", "bodies"),
        [
            *(
                (f"method.supervised.hyperparameters.{name}", [hyper(**{name: value}) for value in values])
                for name, values in BAD_HYPERPARAMETERS.items()
            ),
            *((f"lora.{name}", [{"lora": {name: value}} for value in values]) for name, values in BAD_LORA.items()),
            ("hyperparameters.batch_size", [{"hyperparameters": {"batch_size": value}} for value in (0, 257)]),
            ("method.supervised.hyperparameters.learning_rate", [hyper(learning_rate=1, learning_rate_multiplier=2)]),
            ("lora", [{"lora": False}, {"lora": "yes"}]),
            ("quantization", [{"quantization": "nf4"}]),
            ("quantization.bits", [{"quantization": {"bits": 3}}]),
            ("quantization.type", [{"quantization": {"bits": 8, "type": "fp4"}}, {"quantization": {"type": "int4"}}]),
            (
                "quantization.double_quant",
                [{"quantization": {"bits": 8, "double_quant": True}}, {"quantization": {"double_quant": 1}}],
            ),
            ("method.type", [{"method": {"type": "reinforcement"}}]),
            ("method.dpo.hyperparameters.beta", [dpo(beta=value) for value in (0, 2.1, "high")]),
            ("method.dpo.hyperparameters.n_epochs", [dpo(n_epochs=0)]),
            ("method.supervised.hyperparameters.beta", [hyper(beta=0.1), hyper(beta="auto")]),
            ("hyperparameters.beta", [{"hyperparameters": {"beta": 0.1}}]),
        ],
    )
    def test_a_bad_value_is_refused_by_its_path(self, path: str, bodies: list[dict[str, Any]]) -> None:
        for body in bodies:
            error = refusal(**body)
            assert error.param == path
            assert path in error.message

    def test_reinforcement_is_refused_with_what_takes_the_place_of_its_graders(self) -> None:
        assert "evaluations" in refusal(method={"type": "reinforcement"}).message

    @pytest.mark.parametrize(
        "parameter",
        [
            "learning_rate_multiplier", "learning_rate", "warmup_ratio", "weight_decay", "max_grad_norm", "lora_alpha",
            "lora_dropout", "beta", "n_epochs", "batch_size", "context_length", "max_steps", "eval_steps", "lora_r",
        ],
    )  # fmt: skip
    def test_an_absurd_number_is_refused(self, parameter: str) -> None:
        as_good_as_0 = {5e-324} if parameter in ("warmup_ratio", "weight_decay", "lora_dropout") else set()
        for value in {1e308, 5e-324, -1e308, 2**62} - as_good_as_0:
            error = refusal(validation_file="file-1", **dpo(**{parameter: value}))
            assert (error.param, error.code) == (f"method.dpo.hyperparameters.{parameter}", "invalid_value")

    def test_a_context_of_one_token_is_refused_with_both_bounds(self, reviewed: Reviewed) -> None:
        reviewed(refusal(**hyper(context_length=1)).message)

    @pytest.mark.parametrize("value", [1e308, 5e-324])
    def test_an_absurd_alpha_of_single_layers_is_refused(self, value: float, reviewed: Reviewed) -> None:
        reviewed(refusal(lora={"alpha_pattern": {"q_proj": value}}).message)

    def test_a_multiplier_whose_product_is_absurd_is_refused_with_the_rate_it_makes(self, reviewed: Reviewed) -> None:
        error = refusal(lora={"alpha": 100_000, "use_rslora": True}, **dpo(learning_rate_multiplier=1e-6))
        assert error.param == "method.dpo.hyperparameters.learning_rate_multiplier"
        reviewed(error.message)

    def test_the_bounds_themselves_and_what_people_use_are_taken(self) -> None:
        numbers = {"learning_rate_multiplier": 0.1, "weight_decay": 0.1, "max_grad_norm": 1e9, "lora_alpha": 1024}
        assert spec_of(**hyper(**numbers)).hyperparameters.max_grad_norm == 1e9
        for rate in (LEARNING_RATE.minimum, 1e-6, 1e-2, LEARNING_RATE.maximum):
            assert spec_of(**hyper(learning_rate=rate)).hyperparameters.learning_rate == rate

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"lora": {"rnk": 8}}, "lora.rnk"),
            (hyper(lora_rnk=8), "method.supervised.hyperparameters.lora_rnk"),
            (hyper(gradient_accumulation_steps=4), "method.supervised.hyperparameters.gradient_accumulation_steps"),
            ({"hyperparameters": {"epochs": 3}}, "hyperparameters.epochs"),
            ({"quantization": {"bit": 4}}, "quantization.bit"),
            ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo"),
            ({"method": {"type": "dpo", "supervised": {}}}, "method.supervised"),
            ({"method": {"type": "dpo", "dpo": {"beta": 0.1}}}, "method.dpo.beta"),
            (dpo(betta=0.1), "method.dpo.hyperparameters.betta"),
            ({"method": {"type": "supervised", "supervised": {"hyperparams": {}}}}, "method.supervised.hyperparams"),
        ],
    )
    def test_an_unknown_key_is_refused_by_its_dotted_path(self, body: dict[str, Any], param: str) -> None:
        error = refusal(**body)
        assert isinstance(error, UnknownParameter)
        assert (error.param, error.code) == (param, "unknown_parameter")

    def test_all_problems_are_reported_at_once(self) -> None:
        lora = {"dropout": 1, "target_modules": ["x"], "rnk": 3}
        error = refusal(lora=lora, quantization={"bits": 3}, **hyper(n_epochs=0, batch_size=0, epochs=1))
        for name in ("lora.dropout", "lora.target_modules", "lora.rnk", "n_epochs", "batch_size", "epochs", "bits"):
            assert name in error.message

    def test_unknown_target_modules_are_answered_with_those_there_are(self, reviewed: Reviewed) -> None:
        reviewed(refusal(lora={"target_modules": ["c_attn"]}).message)

    def test_a_rank_may_be_as_large_as_the_smallest_dimension_of_its_targets(self) -> None:
        assert spec_of(lora={"r": 192}).lora.r == 192
        assert spec_of(lora={"r": 256, "target_modules": ["q_proj"]}).lora.r == 256


def own_values(spec: JobSpec) -> dict[str, Any]:
    """The hyperparameters that not every method has, as they are stored."""
    return {name: value for name, value in spec.hyperparameters.model_dump().items() if name in OWNERS and value}


class TestMethods:
    @pytest.mark.parametrize(
        ("method", "given", "stored"),
        [
            ("supervised", {"beta": None}, {}),
            ("dpo", {}, {"beta": 0.1}),
            ("dpo", {"beta": "auto", "loss_type": "auto"}, {"beta": 0.1}),
            ("dpo", {"loss_type": "ipo"}, {"beta": 0.1, "loss_type": "ipo"}),
            ("dpo", {"loss_type": "simpo"}, {"beta": 2, "loss_type": "simpo", "simpo_gamma": 0.5}),
            ("dpo", {"loss_type": "simpo", "beta": 3, "simpo_gamma": 1}, {
                "beta": 3, "loss_type": "simpo", "simpo_gamma": 1,
            }),
            ("orpo", {}, {"beta": 0.1}),
            ("kto", {}, {"beta": 0.1, "desirable_weight": 1, "undesirable_weight": 1}),
            ("kto", {"desirable_weight": 1.33}, {"beta": 0.1, "desirable_weight": 1.33, "undesirable_weight": 1}),
        ],
    )  # fmt: skip
    def test_a_method_has_the_defaults_of_its_own_hyperparameters(
        self, method: str, given: dict[str, Any], stored: dict[str, Any]
    ) -> None:
        spec = spec_of(**of(method, **given))
        assert (spec.method, own_values(spec)) == (method, stored)
        assert own_values(spec_of(method={"type": method}, hyperparameters=given)) == stored

    @pytest.mark.parametrize(
        ("method", "name", "value", "code"),
        [
            ("supervised", "loss_type", "ipo", "unsupported_value"),
            ("orpo", "loss_type", "ipo", "unsupported_value"),
            ("orpo", "simpo_gamma", 0.5, "unsupported_value"),
            ("dpo", "desirable_weight", 1, "unsupported_value"),
            ("kto", "loss_type", "sigmoid", "unsupported_value"),
            ("dpo", "simpo_gamma", 0.5, "conflicting_parameters"),
            ("dpo", "loss_type", "hinge", "unsupported_value"),
            ("kto", "undesirable_weight", 0, "invalid_value"),
            ("kto", "batch_size", 1, "invalid_value"),
        ],
    )
    def test_what_a_method_lacks_is_refused(self, method: str, name: str, value: Any, code: str) -> None:
        error = refusal(**of(method, **{name: value}))
        assert (error.param, error.code) == (f"method.{method}.hyperparameters.{name}", code)

    def test_a_method_that_compares_examples_has_at_least_two_in_a_step(self) -> None:
        assert spec_of(10).hyperparameters.batch_size == 1
        assert spec_of(10, **of("kto")).hyperparameters.batch_size == 2

    def test_every_hyperparameter_works_as_under_supervised(self) -> None:
        hyperparameters = {"n_epochs": 2, "batch_size": 3, "learning_rate": 1e-5, "packing": False, "lora_r": 8}
        one, other = spec_of(seed=1, **dpo(**hyperparameters, beta=0.5)), spec_of(seed=1, **hyper(**hyperparameters))
        assert one.hyperparameters == other.hyperparameters.model_copy(update={"beta": 0.5})
        assert one.lora == other.lora

    def test_the_rate_is_a_part_of_the_models_unless_one_is_given(self) -> None:
        supervised = spec_of().hyperparameters.learning_rate
        for method, part in (("dpo", 10), ("kto", 10), ("orpo", 4)):
            assert spec_of(**of(method)).hyperparameters.learning_rate == pytest.approx(supervised / part, rel=0.02)
        assert spec_of(**dpo(learning_rate_multiplier=2)).hyperparameters.learning_rate == pytest.approx(supervised / 5)
        assert spec_of(**dpo(learning_rate=3e-4)).hyperparameters.learning_rate == 3e-4
