"""How long a job takes, from what there is to compute and the FLOP a second of earlier jobs."""

from __future__ import annotations

from typing import Any

import pytest

from app.domain.base_models.catalog import CatalogEntry
from app.domain.jobs.spec import JobSpec
from app.domain.planning.duration import JobCost, gpu_peak_flops, relative_token_cost
from app.domain.planning.estimate import Correction, Device, estimate_placement
from app.domain.planning.execution_plan import ExecutionPlan, Measurement
from app.domain.planning.packing import SequenceLengths, Workload, largest_batch, mean_packed_length, pack
from tests.jobs.test_estimate import HYPERPARAMETERS, LLAMA_8B, spec

CPU = Device("cpu", "EPYC", 64 << 30, cores=2)
MODE = ExecutionPlan(row_tokens=1024, cache_weights=True)
PLAIN: dict[str, Any] = {"recompute": "nothing", "cache_weights": True, "loaded_ratio": 1, "working_ratio": 1}


def work(job: JobSpec, length: int = 200, examples: int = 64, labelled: float = 1.0, validation: int = 0) -> Workload:
    lengths = SequenceLengths()
    for _ in range(examples):
        lengths.add([length])
    return Workload.of(job, lengths, int(labelled * length * examples), validation)


def flop(work: Workload, row_tokens: float = 1e12, job: JobSpec | None = None) -> float:
    return JobCost(LLAMA_8B, job or spec(), work, "cuda").of_step(MODE, row_tokens)


class TestStepFlop:
    def test_a_token_takes_four_flop_of_a_frozen_weight_and_six_of_a_trained_one(self) -> None:
        """Everything labelled; attention over 4,096 x 200 numbers a layer, forwards and twice backwards."""
        job = spec(hyperparameters=HYPERPARAMETERS | {"batch_size": 64})
        frozen = 4 * (LLAMA_8B.linear_parameters + LLAMA_8B.vocab_size * 4096)
        trained, attention = 6 * 41_943_040, 3 * 4 * 4096 * 200 * 32
        per_step = flop(work(job), job=job) - (frozen + trained + attention)
        assert per_step == pytest.approx(41_943_040 * 4000 / (64 * 200), rel=1e-3)  # the optimizer's, once a step

    def test_only_labelled_tokens_need_the_head(self) -> None:
        job = spec()
        whole, half = (flop(work(job, labelled=share)) for share in (1.0, 0.5))
        assert whole - half == pytest.approx(0.5 * 4 * LLAMA_8B.vocab_size * 4096)

    def test_a_token_costs_more_in_longer_documents_and_shorter_batches(self) -> None:
        job = spec()
        assert flop(work(job, length=2000)) > flop(work(job, length=200))
        assert flop(work(job), row_tokens=200) > 2 * flop(work(job))
        small = spec(hyperparameters=HYPERPARAMETERS | {"batch_size": 1})
        assert flop(work(small), job=small) > flop(work(job))

    @pytest.mark.parametrize(
        ("method", "loss_type", "forwards"),
        [("dpo", None, 1), ("dpo", "simpo", 0), ("orpo", None, 0), ("kto", None, 3)],
    )
    def test_a_method_adds_its_forwards(self, method: str, loss_type: str | None, forwards: int) -> None:
        values = HYPERPARAMETERS | {"batch_size": 64, "beta": 0.1, "loss_type": loss_type}
        job = spec(method=method, hyperparameters=values)
        added = flop(work(job), job=job) / flop(work(spec())) - 1
        assert 0.3 * forwards - 0.05 < added < 0.6 * forwards + 0.05

    def test_a_validation_is_less_than_half_a_step(self) -> None:
        job = spec()
        cost = JobCost(LLAMA_8B, job, work(job), "cuda")
        assert 0.3 < cost.of_validation(MODE) / cost.of_step(MODE, MODE.row_tokens) < 0.5


class TestCost:
    def test_recomputing_everything_is_another_forward_and_a_layer_is_its_part_of_that(self) -> None:
        def of(**changes: object) -> float:
            plan = ExecutionPlan.model_validate(MODE.model_dump() | changes)
            return relative_token_cost(LLAMA_8B.decoder_layers, plan, "cpu", 1e9)

        assert of(recompute="everything") / of() == pytest.approx(1.45)
        assert of() < of(recompute="elementwise") < of(recompute="layers", recompute_layers=16)
        assert of(recompute="layers", recompute_layers=31) < of(recompute="everything")


class TestConstantCost:
    """Of a packed batch on CUDA."""

    EXPERTS = LLAMA_8B.model_copy(
        update={"expert_parameters": 8 * LLAMA_8B.linear_parameters, "active_experts": 0.125, "linear_parameters": 0}
    )

    def constant(self, entry: CatalogEntry, flops: float = 4e14, bits: int = 4, **changes: Any) -> float:
        plan, job = MODE.model_copy(update=changes), spec(quantization={"bits": 4} if bits == 4 else None)
        return JobCost(entry, job, work(job), "cuda", flops).of_token(plan, 1.0) - 1

    def test_launches_take_as_long_on_every_card_and_for_every_width(self) -> None:
        narrow = LLAMA_8B.model_copy(update={"linear_parameters": LLAMA_8B.linear_parameters // 10})
        assert self.constant(LLAMA_8B, 4e14) == pytest.approx(4 * self.constant(LLAMA_8B, 1e14))
        assert self.constant(narrow) > 3 * self.constant(LLAMA_8B)
        shallow = LLAMA_8B.model_copy(update={"decoder_layers": 16})
        assert self.constant(shallow) == pytest.approx(self.constant(LLAMA_8B) / 2, rel=0.1)

    def test_only_quantized_weights_that_are_not_kept_are_dequantized(self) -> None:
        assert self.constant(LLAMA_8B, cache_weights=False, bits=16) == self.constant(LLAMA_8B)
        assert self.constant(LLAMA_8B, cache_weights=False) == pytest.approx(self.constant(LLAMA_8B) + 230, abs=20)

    def test_all_experts_are_dequantized_and_the_active_ones_computed(self) -> None:
        per_token = [
            JobCost(each, spec(), work(spec()), "cuda").of_step(MODE, 1e12) for each in (self.EXPERTS, LLAMA_8B)
        ]
        assert per_token[0] == pytest.approx(per_token[1], rel=1e-3)
        assert self.constant(self.EXPERTS) > self.constant(LLAMA_8B) + 8 * 250

    @pytest.mark.parametrize("adapted", [{"experts": True}, {"target_parameters": ["mlp.experts.down_proj"]}])
    def test_a_token_trains_the_adapters_of_its_experts_only(self, adapted: dict[str, Any]) -> None:
        job, update = spec(), {"experts": {"model.layers.0.mlp.experts.down_proj": (64, 4096, 1024)}}
        job = job.model_copy(update={"lora": job.lora.model_copy(update=adapted)})
        half, whole = (
            JobCost(LLAMA_8B.model_copy(update=update | {"active_experts": share}), job, work(job), "cpu").of_step(
                MODE, 1e12
            )
            for share in (0.5, 1.0)
        )
        assert whole - half == pytest.approx(0.5 * 6 * job.lora.r * 64 * (4096 + 1024), rel=1e-3)

    def test_fused_kernels_take_less_of_everything(self) -> None:
        eager, fused = (MODE.model_copy(update={"cuda_kernels": fused}) for fused in (False, True))
        costs = [JobCost(LLAMA_8B, spec(), work(spec()), "cuda").of_step(plan, 4096) for plan in (fused, eager)]
        assert costs[0] / costs[1] == pytest.approx(0.85, abs=0.01)

    @pytest.mark.parametrize(
        ("name", "is_fused"),
        [("Tesla V100-SXM2-32GB", False), ("Tesla T4", False), ("NVIDIA GeForce RTX 2080 Ti", False), ("Future", True)],
    )
    def test_a_gpu_before_sm80_has_no_fused_kernels(self, name: str, is_fused: bool) -> None:
        placement = estimate_placement(LLAMA_8B, spec(), work(spec()), Device("cuda", name, 32 << 30))
        assert placement.plan.cuda_kernels is is_fused


class TestSeconds:
    def test_several_gpus_divide_the_steps_but_not_the_validations(self) -> None:
        job = spec(hyperparameters=HYPERPARAMETERS | {"batch_size": 64, "n_epochs": 1})

        def seconds(gpus: int, validation: int) -> float:
            device = Device("cuda", "NVIDIA H100 80GB HBM3", 80 << 30, gpus=gpus)
            of = work(job, length=2000, examples=1280, validation=validation)
            return estimate_placement(LLAMA_8B, job, of, device, [Measurement(**PLAIN, other_seconds=0.0)]).seconds

        assert seconds(1, 0) / seconds(8, 0) == pytest.approx(8, rel=0.1)
        assert seconds(1, 10**7) - seconds(1, 0) == pytest.approx(seconds(8, 10**7) - seconds(8, 0), rel=0.05)

    def placed(self, job: JobSpec, of: Workload, *measurements: Measurement) -> float:
        return estimate_placement(LLAMA_8B, job, of, CPU, measurements).seconds

    def measured(self, flops: float, other_seconds: float) -> Measurement:
        return Measurement(
            recompute="nothing", cache_weights=True, loaded_ratio=1, working_ratio=1, flops=flops,
            other_seconds=other_seconds,
        )  # fmt: skip

    def test_a_job_like_the_one_that_was_measured_takes_as_long(self) -> None:
        """120 s in steps, 20 s in the probe (a sixth of the tokens), 30 s for the rest."""
        job = spec(hyperparameters=HYPERPARAMETERS | {"batch_size": 5, "n_epochs": 1})
        same = work(job, examples=30)
        plan = estimate_placement(LLAMA_8B, job, same, CPU)
        assert (plan.largest_batch_tokens, same.tokens) == (1000, 6000)
        flops = plan.step_flop * 6000 / 120
        assert self.placed(job, same, self.measured(flops, 30.0)) == pytest.approx(120 + 20 + 30)

    def test_shorter_batches_take_longer_per_token(self) -> None:
        """Rows of one document of 200 tokens in place of five: launches are half of that again, not a tenth."""
        many, one = (spec(hyperparameters=HYPERPARAMETERS | {"batch_size": size, "n_epochs": 1}) for size in (5, 1))
        learned = self.measured(1e12, 0.0)
        slow, quick = self.placed(one, work(one), learned), self.placed(many, work(many), learned)
        assert 1.2 < slow / quick < 1.4

    @pytest.mark.parametrize("field", ["flops", "other_seconds"])
    def test_after_a_busy_hour_two_quiet_jobs_determine_the_next_plan(self, field: str) -> None:
        """The newest is first. One quiet job does not outweigh ten others, as it may be the exception."""
        busy, quiet = ({"flops": 1e12, "other_seconds": 60.0}, {"flops": 2e12, "other_seconds": 20.0})
        slow, quick = (Measurement(**PLAIN | busy), Measurement(**PLAIN | quiet))
        found = [Correction.of([quick] * count + [slow] * 10, MODE, 1, 1) for count in range(3)]
        assert [getattr(each, field) for each in found] == [busy[field], busy[field], quiet[field]]

    def test_validations_are_counted_each_time(self) -> None:
        job = spec(hyperparameters=HYPERPARAMETERS | {"batch_size": 8, "n_epochs": 3})
        learned = self.measured(1e12, 0.0)
        without, with_one = (self.placed(job, work(job, validation=tokens), learned) for tokens in (0, 1000))
        often = spec(hyperparameters=HYPERPARAMETERS | {"batch_size": 8, "n_epochs": 3, "eval_steps": 4})
        with_two = self.placed(often, work(often, validation=1000), learned)
        assert with_one > without
        assert with_two - without == pytest.approx(2 * (with_one - without))

    def test_unmeasured_flops_are_those_of_the_data_sheet_or_the_cpu_flags(self) -> None:
        peak = 0.4 * 8.35e14
        assert Device("cuda", "NVIDIA H100 NVL", 0).estimated_flops == pytest.approx(peak)
        assert Device("cuda", "NVIDIA H100 NVL", 0, gpus=4).estimated_flops == pytest.approx(4 * peak)
        assert Device("cuda", "NVIDIA GeForce RTX 4090", 0).estimated_flops == pytest.approx(0.6 * 1.65e14)
        assert Device("cuda", "Another", 0).estimated_flops == pytest.approx(0.4 * 1e14)
        assert Device("cpu", "EPYC", 0, 4, 5e11).estimated_flops == pytest.approx(4 * 0.6 * 5e11)


class TestGpuPeakFlops:
    def test_the_peak_of_a_gpu_is_that_of_its_exact_name(self) -> None:
        teraflops = {
            "NVIDIA B200": 2250, "NVIDIA H200": 990, "NVIDIA H20": 148, "NVIDIA H100 80GB HBM3": 990,
            "NVIDIA H100 PCIe": 756, "cuda (NVIDIA H100 NVL)": 835, "NVIDIA A100-SXM4-80GB": 312, "NVIDIA A40": 150,
            "NVIDIA A10": 125, "NVIDIA A10G": 70, "NVIDIA L40S": 362, "NVIDIA L40": 181, "NVIDIA L4": 121,
            "NVIDIA GeForce RTX 5090": 210, "NVIDIA GeForce RTX 4090": 165, "Tesla T4": 65,
            "NVIDIA RTX PRO 6000 Blackwell Server Edition": 500, "NVIDIA RTX 6000 Ada Generation": 364,
            "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": 440,
        }  # fmt: skip
        assert {name: (gpu_peak_flops(name) or 0) / 1e12 for name in teraflops} == pytest.approx(teraflops)

    def test_another_name_is_unknown(self) -> None:
        for name in (
            "NVIDIA GeForce RTX 4090 Laptop GPU",
            "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
            "NVIDIA T400 4GB",
            "AMD",
        ):
            assert gpu_peak_flops(name) is None


def test_the_workload_is_what_steps_and_validations_process() -> None:
    job = spec(hyperparameters=HYPERPARAMETERS | {"batch_size": 10, "n_epochs": 2})
    of = work(job, length=100, examples=35, labelled=0.25, validation=70)
    assert (of.steps, of.tokens, of.validated_tokens, of.mean_attended_tokens) == (8, 7000, 140, 100)
    assert of.labelled_share == pytest.approx(0.25)
    of_orpo = Workload.of(
        job.model_copy(update={"method": "orpo"}), of.lengths, labelled_tokens=sum(of.lengths.tokens) // 4
    )
    assert of_orpo.labelled_share == pytest.approx(0.625)  # the half of preferred answers is learned as a whole


def test_a_file_without_an_example_is_no_work() -> None:
    job, nothing = spec(), SequenceLengths()
    assert Workload.of(job, nothing, 0, 500) == Workload(0, 0, nothing, 0.0)
    assert largest_batch(nothing, job.hyperparameters, 1, row_tokens=40) == (0, 0)
    assert mean_packed_length(nothing, job.hyperparameters, 1, 100) == 0
    assert list(pack([], 8)) == []
