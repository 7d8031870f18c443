from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from app.domain.catalog import CatalogEntry, describe
from app.domain.estimate import HEADROOM, Correction, Device, place
from app.domain.layout import Lengths
from app.domain.memory import adapter_parameters, base_bytes, cache_bytes, memory
from app.domain.modes import Measurement, Mode
from app.domain.spec import JobSpec
from app.domain.work import Work
from tests.app.domain.test_layout import KNOBS
from tests.tiny import CONFIG, make_tiny_base

LINEAR = {
    "q_proj": (4096, 4096), "k_proj": (1024, 4096), "v_proj": (1024, 4096), "o_proj": (4096, 4096),
    "gate_proj": (14336, 4096), "up_proj": (14336, 4096), "down_proj": (4096, 14336),
}  # fmt: skip
LLAMA_8B = CatalogEntry(
    architecture="LlamaForCausalLM", context_length=8192, hidden_size=4096, vocab_size=128_256,
    parameters=8_030_000_000, size_bytes=16_060_000_000, target_modules=LINEAR, learning_rate=2e-4,
    has_chat_template=True, decoder_layers=32, attention_heads=32, query_size=4096, key_size=1024,
    intermediate_size=14336,
    linear_parameters=32 * sum(rows * columns for rows, columns in LINEAR.values()),
)  # fmt: skip
H100 = Device("cuda", "NVIDIA H100 80GB HBM3", 80 << 30)
L4 = Device("cuda", "NVIDIA L4", 24_152_899_584)


def spec(**changes: object) -> JobSpec:
    lora = {"r": 16, "alpha": 32, "target_modules": sorted(LINEAR)}
    body = {
        "base_model": "m",
        "lora": lora,
        "quantization": {},
        "hyperparameters": KNOBS | {"batch_size": 64},
        "seed": 1,
    }
    return JobSpec.model_validate(body | changes)


def work(job: JobSpec, length: int = 512, examples: int = 640) -> Work:
    lengths = Lengths()
    for _ in range(examples):
        lengths.add([length])
    return Work.of(job, lengths)


class TestMemory:
    def test_the_parts_that_are_known_exactly(self) -> None:
        """QLoRA's 4.127 bits a weight; r (in + out) numbers a layer, 16 bytes each."""
        job = spec()
        rest = 2 * (LLAMA_8B.parameters - LLAMA_8B.linear_parameters)
        assert base_bytes(LLAMA_8B, job.quantization) - rest == pytest.approx(
            LLAMA_8B.linear_parameters * 4.127 / 8, rel=1e-4
        )
        assert adapter_parameters(LLAMA_8B, job.lora) == 41_943_040
        assert cache_bytes(LLAMA_8B, job.quantization) == 2 * LLAMA_8B.linear_parameters
        assert cache_bytes(LLAMA_8B, None) == 0

    def test_a_pattern_gives_the_layers_that_it_fits_a_rank_of_their_own(self) -> None:
        layers = {f"model.layers.{n}.self_attn.q_proj": (64, 64) for n in range(3)}
        entry = LLAMA_8B.model_copy(update={"layers": layers})
        lora = spec(
            lora={"r": 8, "alpha": 16, "target_modules": ["q_proj"], "rank_pattern": {r"layers\.[01]\..*": 2}}
        ).lora
        assert adapter_parameters(entry, lora) == (2 + 2 + 8) * 128

    def test_it_grows_with_the_row_and_shrinks_with_recomputation(self) -> None:
        job, seen = spec(), []
        for mode in ("nothing", "elementwise", "everything"):
            chosen = Mode.model_validate({"row_tokens": 8192, "recompute": mode})
            needed = memory(LLAMA_8B, job, chosen, "cuda", 8192)
            assert needed.total > memory(LLAMA_8B, job, chosen, "cuda", 4096).total
            seen.append(needed.total)
        assert seen == sorted(seen, reverse=True)

    def test_torchtunes_published_peak_is_met_within_a_tenth(self) -> None:
        """8B QLoRA, r 8, 2 x 2,048 tokens, everything recomputed, tensors alone: 7.4 GiB (torchtune's README)."""
        mode = Mode(row_tokens=4096, recompute="everything")
        job = spec(lora={"r": 8, "alpha": 16, "target_modules": sorted(LINEAR)})
        needed = memory(LLAMA_8B, job, mode, "cuda", 4096)
        step = needed.base + needed.adapter + needed.activations + max(needed.live_layer, needed.loss)
        assert step == pytest.approx(7.4 * 2**30, rel=0.1)


class TestPlace:
    def test_with_room_it_takes_the_longest_row_and_recomputes_nothing(self) -> None:
        job = spec()
        placement = place(LLAMA_8B, job, work(job), H100)
        assert placement.fits
        assert placement.mode == Mode(row_tokens=8192, cache_weights=True)
        assert placement.largest_row == 8192

    def test_of_layouts_that_are_as_fast_the_smallest_is_taken(self) -> None:
        """On a CPU it costs next to nothing to make norms and activations again, on a card 3 %."""
        job = spec()
        roomy = Device("cpu", "cpu", 200 << 30)
        placement = place(LLAMA_8B, job, work(job), roomy)
        assert placement.mode == Mode(row_tokens=1024, cache_weights=True, recompute="elementwise")
        assert place(LLAMA_8B, job, work(job), replace(H100, memory_bytes=200 << 30)).mode.recompute == "nothing"

    def test_with_less_room_it_takes_what_costs_least_time(self) -> None:
        job = spec()
        costs = []
        for gigabytes in (80, 40, 24, 16, 12):
            placement = place(LLAMA_8B, job, work(job), replace(L4, memory_bytes=gigabytes << 30))
            assert placement.fits
            assert placement.memory.total <= HEADROOM * (gigabytes << 30)
            costs.append(placement.seconds)
        assert costs == sorted(costs)
        assert len(set(costs)) == len(costs)

    def test_what_fits_nowhere_is_refused_in_a_sentence_that_says_what_to_change(self) -> None:
        job = spec()
        placement = place(LLAMA_8B, job, work(job), replace(L4, memory_bytes=6 << 30))
        assert not placement.fits
        assert placement.mode.recompute == "everything"
        assert "Does not fit NVIDIA L4: it needs" in placement.message
        assert "context_length" in placement.message

    def test_a_row_is_at_least_the_longest_document(self) -> None:
        job = spec()
        placement = place(LLAMA_8B, job, work(job, length=3000, examples=64), replace(L4, memory_bytes=9 << 30))
        assert placement.mode.row_tokens >= 3000

    def test_what_a_trainer_has_loaded_is_not_reckoned_again(self) -> None:
        job = spec()
        placement = place(LLAMA_8B, job, work(job), H100, loaded_bytes=9 << 30)
        assert placement.memory.loaded - placement.memory.cache == pytest.approx(9 << 30, rel=1e-6)

    def test_where_what_is_mapped_counts_each_row_of_a_new_length_costs_more_up_to_what_is_kept(self) -> None:
        cpu, seen = Device("cpu", "EPYC", 64 << 30), []
        for examples in (2, 4, 12, 24):  # rows of two documents
            job = spec(hyperparameters=KNOBS | {"batch_size": 2, "n_epochs": 1})
            touched, mapped = (
                place(LLAMA_8B, job, work(job, examples=examples), cpu, counts_mapped=counts)
                for counts in (False, True)
            )
            seen.append(mapped.memory.kernels - touched.memory.kernels)
        assert seen == [26_000_000, 52_000_000, 130_000_000, 130_000_000]

    def test_a_cache_comes_before_recomputing_nothing_without_one_where_there_is_room(self) -> None:
        job, can = spec(), H100
        assert place(LLAMA_8B, job, work(job), can).mode.cache_weights
        assert not place(LLAMA_8B, job, work(job), replace(can, memory_bytes=16 << 30)).mode.cache_weights
        assert not place(LLAMA_8B, spec(quantization=None), work(job), can).mode.cache_weights


class TestCorrection:
    def measured(self, **changes: object) -> Measurement:
        plain = {"recompute": "nothing", "cache_weights": True, "loaded_ratio": 1.1, "working_ratio": 0.9}
        return Measurement.model_validate(plain | {"flops": 1e14, "other_seconds": 20.0} | changes)

    def test_the_next_plan_is_the_formula_times_the_median_ratio(self) -> None:
        job = spec()
        before = place(LLAMA_8B, job, work(job), H100)
        ratios = [self.measured(loaded_ratio=ratio) for ratio in (1.0, 1.1, 5.0)]
        after = place(LLAMA_8B, job, work(job), H100, ratios)
        assert after.memory.loaded == pytest.approx(1.1 * before.memory.loaded, rel=1e-6)
        assert after.memory.working == pytest.approx(0.9 * before.memory.working, rel=1e-6)
        assert (before.basis, after.basis) == ("formula", "measured")
        computed = after.step_flop * (work(job).tokens + after.largest_row)
        assert after.seconds == pytest.approx(20 + computed / 1e14)

    def test_what_was_measured_in_another_layout_counts_until_there_is_one_like_it(self) -> None:
        other = [self.measured(recompute="everything")]
        found = Correction.of(other, Mode(row_tokens=8192))
        assert (found.loaded, found.working, found.flops, found.jobs) == (1.1, 0.9, 1e14, 0)
        alike = Correction.of([*other, self.measured(flops=2e14, cache_weights=False)], Mode(row_tokens=512))
        assert (alike.flops, alike.jobs) == (2e14, 1)


class TestSizes:
    def test_are_read_from_the_config_and_the_headers(self, tmp_path: Path) -> None:
        entry = describe(make_tiny_base(tmp_path / "base"))
        assert (entry.decoder_layers, entry.query_size, entry.key_size) == (2, 64, 32)
        assert entry.intermediate_size == CONFIG["intermediate_size"]
        assert entry.linear_parameters == 2 * (64 * 64 * 2 + 2 * 32 * 64 + 3 * 64 * 128)

    def test_an_entry_without_them_still_loads(self) -> None:
        old = LLAMA_8B.model_dump(
            exclude={
                "decoder_layers",
                "attention_heads",
                "query_size",
                "key_size",
                "intermediate_size",
                "linear_parameters",
            }
        )
        assert CatalogEntry.model_validate(old).decoder_layers == 0
