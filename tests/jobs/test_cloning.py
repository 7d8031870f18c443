"""A clone's request asks for exactly what the original was; overrides come in any place that a create body knows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.base_models import catalog
from app.domain.jobs.create_job import apply_overrides, settings_of_spec, vary
from app.domain.jobs.resolve import resolve
from app.domain.jobs.spec import JobSpec
from app.errors import BadRequest
from app.system import model_files
from tests.sentences import Reviewed
from tests.tiny import make_tiny_base


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> catalog.CatalogEntry:
    return model_files.read_catalog_entry(make_tiny_base(tmp_path_factory.mktemp("cloning") / "base"))


def spec_of(entry: catalog.CatalogEntry, body: dict[str, Any]) -> JobSpec:
    return resolve(body, "tiny", entry, 12)


def cloned(entry: catalog.CatalogEntry, spec: JobSpec, overrides: dict[str, Any], validation: str | None) -> JobSpec:
    body = apply_overrides(settings_of_spec(spec, training_file="file-t", validation_file=validation), overrides)
    return spec_of(entry, body)


BODY: dict[str, Any] = {"training_file": "file-t", "model": "tiny", "seed": 5}
HYPERPARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "n_epochs": st.integers(1, 50),
        "batch_size": st.integers(1, 256),
        "warmup_ratio": st.floats(0, 1),
        "max_steps": st.integers(1, 1000),
        "packing": st.booleans(),
        "lr_scheduler_type": st.sampled_from(["linear", "cosine", "constant"]),
        "context_length": st.integers(2, 512),
        "eval_steps": st.integers(1, 9),
        "early_stopping": st.sampled_from([True, {"patience": 2, "threshold": 0.1}]),
        "learning_rate_multiplier": st.floats(0.01, 10),
    },
)
LORA = st.fixed_dictionaries(
    {},
    optional={
        "r": st.integers(1, 32),
        "alpha": st.floats(0.5, 64),
        "dropout": st.floats(0, 0.9),
        "target_modules": st.sampled_from([["q_proj"], ["q_proj", "v_proj"], "all-linear"]),
        "use_rslora": st.booleans(),
        "use_dora": st.booleans(),
        "rank_pattern": st.just({"q_proj": 2}),
        "modules_to_save": st.just(["norm"]),
    },
)
QUANTIZATION = st.sampled_from(
    [None, {}, {"bits": 8}, {"bits": 4, "type": "fp4", "double_quant": False}, {"compute_dtype": "float32"}]
)
METHOD = st.sampled_from(["supervised", "dpo"])


class TestTheSame:
    @settings(max_examples=60, deadline=None)
    @given(hyperparameters=HYPERPARAMETERS, lora=LORA, quantization=QUANTIZATION, method=METHOD)
    def test_a_clone_without_overrides_trains_the_same(
        self, entry: catalog.CatalogEntry, hyperparameters: Any, lora: Any, quantization: Any, method: str
    ) -> None:
        kind = {"type": method, method: {"hyperparameters": hyperparameters}}
        asked = BODY | {"method": kind, "lora": lora, "quantization": quantization, "validation_file": "file-v"}
        spec = spec_of(entry, asked)
        again = cloned(entry, spec, {}, "file-v")
        # The rate is written out as a number, which is all that training reads.
        hyperparameters_again = again.hyperparameters.model_copy(
            update={"learning_rate_multiplier": spec.hyperparameters.learning_rate_multiplier}
        )
        assert again.model_copy(update={"hyperparameters": hyperparameters_again}) == spec
        assert again.hyperparameters.learning_rate_multiplier is None
        assert cloned(entry, again, {}, "file-v") == again

    def test_what_auto_would_be_today_changes_nothing(self, entry: catalog.CatalogEntry) -> None:
        spec = spec_of(entry, BODY)
        today = entry.model_copy(update={"learning_rate": entry.learning_rate * 3, "max_auto_batch_size": 1})
        again = cloned(today, spec, {}, None)
        assert again.hyperparameters.learning_rate == spec.hyperparameters.learning_rate
        assert again.hyperparameters.batch_size == spec.hyperparameters.batch_size


class TestOverrides:
    def test_overrides_in_every_place_replace_the_original(self, entry: catalog.CatalogEntry) -> None:
        spec = spec_of(entry, BODY)
        for overrides in (
            {"lora": {"r": 32}},
            {"lora": {"rank": 32}},
            {"hyperparameters": {"lora_r": 32}},
            {"method": {"supervised": {"hyperparameters": {"lora": {"r": 32}}}}},
        ):
            lora = cloned(entry, spec, overrides, None).lora
            assert lora == spec.lora.model_copy(update={"r": 32}), overrides

    def test_an_auto_is_decided_anew(self, entry: catalog.CatalogEntry) -> None:
        spec = spec_of(entry, BODY | {"lora": {"r": 4}})
        assert cloned(entry, spec, {"lora": {"r": 8, "alpha": "auto"}}, None).lora.alpha == 16

    def test_a_multiplier_takes_the_place_of_the_rate(self, entry: catalog.CatalogEntry) -> None:
        spec = spec_of(entry, BODY)
        again = cloned(entry, spec, {"hyperparameters": {"learning_rate_multiplier": 2}}, None)
        assert again.hyperparameters.learning_rate == pytest.approx(2 * spec.hyperparameters.learning_rate)

    def test_overrides_of_the_quantization_replace_it(self, entry: catalog.CatalogEntry) -> None:
        rows: list[tuple[Any, dict[str, Any], int | None]] = [
            ({"bits": 4}, {"quantization": None}, None),
            ({"bits": 4}, {"hyperparameters": {"load_in_4bit": False}}, None),
            (None, {"hyperparameters": {"load_in_4bit": True}}, 4),
            ({"bits": 4}, {"quantization": {"bits": 8}}, 8),
            ({"bits": 8}, {"quantization": {"bits": 4}}, 4),
            (None, {}, None),
        ]
        for before, overrides, after in rows:
            found = cloned(entry, spec_of(entry, BODY | {"quantization": before}), overrides, None).quantization
            assert (found.bits if found else None) == after, overrides

    def test_another_key_of_the_quantization_leaves_the_others(self, entry: catalog.CatalogEntry) -> None:
        spec = spec_of(entry, BODY | {"quantization": {"type": "fp4"}})
        again = cloned(entry, spec, {"quantization": {"compute_dtype": "float32"}}, None)
        assert again.quantization is not None
        assert (again.quantization.type, again.quantization.compute_dtype) == ("fp4", "float32")

    def test_another_method_has_a_rate_of_its_own(self, entry: catalog.CatalogEntry) -> None:
        spec = spec_of(entry, BODY)
        again = cloned(entry, spec, {"method": {"type": "dpo"}}, None)
        assert (again.method, again.hyperparameters.beta) == ("dpo", 0.1)
        assert again.hyperparameters.learning_rate == pytest.approx(spec.hyperparameters.learning_rate / 10)
        judged = cloned(entry, again, {"method": {"type": "kto"}, "hyperparameters": {"batch_size": 2}}, None)
        assert (judged.method, judged.hyperparameters.desirable_weight) == ("kto", 1)
        back = cloned(entry, judged, {"method": {"type": "supervised"}}, None)
        assert (back.method, back.hyperparameters.beta) == ("supervised", None)

    def test_a_parameter_of_the_originals_method_needs_no_method(self, entry: catalog.CatalogEntry) -> None:
        spec = spec_of(entry, BODY | {"method": {"type": "dpo"}})
        assert cloned(entry, spec, {"hyperparameters": {"beta": 0.3}}, None).hyperparameters.beta == 0.3

    def test_another_loss_has_a_beta_of_its_own(self, entry: catalog.CatalogEntry) -> None:
        spec = spec_of(entry, BODY | {"method": {"type": "dpo"}, "hyperparameters": {"loss_type": "simpo"}})
        same = cloned(entry, spec, {"hyperparameters": {"loss_type": "simpo"}}, None).hyperparameters
        assert (same.beta, same.simpo_gamma) == (2, 0.5)
        other = cloned(entry, spec, {"hyperparameters": {"loss_type": "ipo"}}, None).hyperparameters
        assert (other.beta, other.simpo_gamma) == (0.1, None)

    @pytest.mark.parametrize("loss_type", [None, "auto", "sigmoid"])
    def test_the_default_loss_keeps_the_beta_of_the_original(
        self, entry: catalog.CatalogEntry, loss_type: str | None
    ) -> None:
        spec = spec_of(entry, BODY | {"method": {"type": "dpo"}, "hyperparameters": {"beta": 0.3}})
        assert cloned(entry, spec, {"hyperparameters": {"loss_type": loss_type}}, None).hyperparameters.beta == 0.3

    def test_without_an_argument_of_the_template_none_is_stored(self, entry: catalog.CatalogEntry) -> None:
        spec = spec_of(entry, BODY | {"chat_template_kwargs": {"enable_thinking": False}})
        again = cloned(entry, spec, {"chat_template_kwargs": {"enable_thinking": None}}, None)
        assert again.chat_template_kwargs is None


def deep_merged(old: Any, new: Any) -> Any:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return old | {name: deep_merged(old.get(name), value) for name, value in new.items()}


BODIES = st.fixed_dictionaries(
    {"hyperparameters": HYPERPARAMETERS},
    optional={
        "lora": LORA,
        "quantization": st.sampled_from([None, {}, {"bits": 8}, {"compute_dtype": "float32"}]),
        "metadata": st.dictionaries(st.sampled_from("ab"), st.sampled_from("xy")),
        "suffix": st.sampled_from([None, "one"]),
    },
)


class TestVariants:
    @settings(max_examples=100, deadline=None)
    @given(job=BODIES, variant=BODIES)
    def test_a_variant_trains_what_a_create_with_the_merged_body_trains(
        self, entry: catalog.CatalogEntry, job: dict[str, Any], variant: dict[str, Any]
    ) -> None:
        job = BODY | {"validation_file": "file-v"} | job
        body, problems = vary(job, variant)
        merged = deep_merged(job, variant)
        assert problems == []
        assert spec_of(entry, body) == spec_of(entry, merged)
        others = merged.keys() - {"hyperparameters", "lora", "quantization"}
        assert {name: body[name] for name in others} == {name: merged[name] for name in others}

    @pytest.mark.parametrize(
        ("of_job", "variant"),
        [
            ({"lora": {"rank": 4}}, {"lora": {"r": 8}}),
            ({"hyperparameters": {"lora_r": 4}}, {"lora": {"rank": 8}}),
            ({"lora": {"r": 4}}, {"method": {"supervised": {"hyperparameters": {"lora": {"r": 8}}}}}),
        ],
    )
    def test_another_name_of_a_parameter_replaces_it(
        self, entry: catalog.CatalogEntry, of_job: dict[str, Any], variant: dict[str, Any]
    ) -> None:
        body, _ = vary(BODY | of_job, variant)
        assert spec_of(entry, body).lora == spec_of(entry, BODY | {"lora": {"r": 8}}).lora

    def test_a_rate_replaces_the_other_kind_of_rate(self, entry: catalog.CatalogEntry) -> None:
        rates = {"hyperparameters": {"learning_rate": 1e-4}}, {"hyperparameters": {"learning_rate_multiplier": 2}}
        for old, new in (rates, rates[::-1]):
            assert spec_of(entry, vary(BODY | old, new)[0]) == spec_of(entry, BODY | new)

    def test_what_a_variant_leaves_out_stays_auto(self, entry: catalog.CatalogEntry) -> None:
        """Unlike in a clone, whose original is resolved."""
        job = BODY | {"lora": {"r": 4, "alpha": "auto"}}
        assert spec_of(entry, vary(job, {"lora": {"r": 32}})[0]).lora.alpha == 64


def test_a_clone_must_change_a_number_that_is_refused_today(entry: catalog.CatalogEntry, reviewed: Reviewed) -> None:
    stored = spec_of(entry, BODY).model_dump(mode="json")
    stored["hyperparameters"] |= {"learning_rate": 1e300, "learning_rate_multiplier": 1e303}
    spec = JobSpec.model_validate(stored)
    assert spec.hyperparameters.learning_rate == 1e300
    with pytest.raises(BadRequest) as caught:
        cloned(entry, spec, {}, None)
    reviewed(str(caught.value))
    assert cloned(entry, spec, {"hyperparameters": {"learning_rate": 1e-4}}, None).hyperparameters.learning_rate == 1e-4
