from __future__ import annotations

import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from app.domain.jobs.layer_patterns import scale_of
from app.domain.jobs.spec import LoraSpec, QuantizationSpec
from app.domain.jobs.states import Reason
from tests.trainer.helpers import CPU_KERNELS
from worker.trainer.adapter.lora import AdaptedLinear, AdapterSwitch, LoraAdapter, make_adapter
from worker.trainer.model.frozen_linear import freeze
from worker.trainer.runtime.failures import Failure

T, K, D = 6, 16, 12


def lora(**changes: object) -> LoraSpec:
    return LoraSpec.model_validate({"r": 4, "alpha": 6, "target_modules": ["q_proj"]} | changes)


def layer(
    quantization: QuantizationSpec | None = None, rows: int = D, columns: int = K, bias: bool = False
) -> AdaptedLinear:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    frozen = freeze(weight, quantization, torch.float32)
    if bias:
        frozen.bias = torch.nn.Parameter(torch.arange(float(rows)), requires_grad=False)
    return AdaptedLinear("model.q_proj", frozen, AdapterSwitch())


def adapt(adapted: AdaptedLinear, spec: LoraSpec, seed: int = 1) -> LoraAdapter:
    """Return an adapter with a B that is not zero."""
    adapter = make_adapter(spec, seed, {adapted.name: adapted}, CPU_KERNELS)
    with torch.no_grad():
        for weights in adapter.layers.values():
            weights.B_D_R.normal_(generator=torch.Generator().manual_seed(seed))
    return adapter


def x(seed: int = 3) -> torch.Tensor:
    return torch.randn(T, K, generator=torch.Generator().manual_seed(seed))


class TestAdaptedLinear:
    @pytest.mark.parametrize("quantization", [None, QuantizationSpec(compute_dtype="float32")])
    @pytest.mark.parametrize("bias", [False, True])
    def test_h_is_w_x_plus_alpha_over_r_times_b_a_x(self, quantization: QuantizationSpec | None, bias: bool) -> None:
        adapted = layer(quantization, bias=bias)
        adapter = adapt(adapted, lora(r=4, alpha=6))
        A, B = adapter.parameters()
        W = adapted.base.weight_in(torch.float32)
        with adapted._switch.on(adapter):
            h = adapted(x())
        want = x() @ W.t() + (6 / 4) * (x() @ A.t() @ B.t())
        torch.testing.assert_close(h, want + (adapted.base.bias if bias else 0))

    @pytest.mark.parametrize("draws_masks_again", [False, True])
    @pytest.mark.parametrize("dropout", [0.0, 0.3])
    def test_gradients_equal_those_of_autograd(self, dropout: float, draws_masks_again: bool) -> None:
        adapted = layer(QuantizationSpec(compute_dtype="float32"))
        adapter = adapt(adapted, lora(dropout=dropout))
        adapter.kernels = replace(CPU_KERNELS, is_fused=draws_masks_again)
        A, B = adapter.parameters()
        mine, theirs = x().requires_grad_(), x().requires_grad_()
        keep = torch.empty(T, K, dtype=torch.bool).bernoulli_(1 - dropout, generator=torch.Generator().manual_seed(1))
        with adapted._switch.on(adapter):
            adapted(mine).square().sum().backward()
        got = [mine.grad, A.grad, B.grad]
        A.grad = B.grad = None
        dropped = theirs * keep / (1 - dropout)
        W = adapted.base.weight_in(torch.float32)
        (theirs @ W.t() + adapter.layers["model.q_proj"].scale * (dropped @ A.t() @ B.t())).square().sum().backward()
        for one, other in zip(got, [theirs.grad, A.grad, B.grad], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)

    def test_a_mask_that_is_drawn_again_is_not_kept_and_leaves_the_generator_as_it_was(self) -> None:
        adapted = layer()
        adapter = adapt(adapted, lora(dropout=0.3))
        states, kept_masks = [], []

        def keep(saved: torch.Tensor) -> torch.Tensor:
            if saved.dtype == torch.bool and saved.numel():
                kept_masks.append(adapter.kernels.is_fused)
            return saved

        for adapter.kernels in (CPU_KERNELS, replace(CPU_KERNELS, is_fused=True)):
            adapter.generator.manual_seed(1)
            with adapted._switch.on(adapter), torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
                both = adapted(x().requires_grad_()) + adapted(x().requires_grad_())
            states.append(adapter.generator.get_state())
            both.sum().backward()
            assert torch.equal(adapter.generator.get_state(), states[-1])
        assert torch.equal(*states)
        assert kept_masks == [False, False]

    def test_a_gradient_above_the_largest_float16_is_finite(self) -> None:
        """One channel of 150 and 8,192 gradients of 0.1: the sum over tokens is 122,880 times a factor of B."""
        tokens = 8192
        adapted = layer()
        adapted.base.weight.data = adapted.base.weight.data.half()
        adapter = adapt(adapted, lora())
        A, B = adapter.parameters()
        gradients = []
        for dtype in (torch.float16, torch.float32):
            A.grad = B.grad = None
            inputs = torch.ones(tokens, K, dtype=dtype)
            inputs[:, 0] = 150
            with adapted._switch.on(adapter):
                adapted(inputs).backward(torch.full((tokens, D), 0.1, dtype=dtype))
            gradients.append([A.grad, B.grad])
        for in_float16, in_float32 in zip(*gradients, strict=True):
            assert in_float16 is not None
            assert in_float16.dtype == torch.float32
            torch.testing.assert_close(in_float16, in_float32, rtol=5e-3, atol=5e-3 * float(in_float32.abs().max()))
        assert gradients[0][0].abs().max() > torch.finfo(torch.float16).max

    def test_dropout_is_off_without_gradients(self) -> None:
        adapted = layer()
        adapter = adapt(adapted, lora(dropout=0.5))
        with torch.no_grad(), adapted._switch.on(adapter):
            assert torch.equal(adapted(x()), adapted(x()))

    def test_it_applies_the_active_adapter_and_none_afterwards(self) -> None:
        adapted = layer()
        adapters = [adapt(adapted, lora(), seed) for seed in (1, 2)]
        plain = F.linear(x(), adapted.base.weight)
        for adapter in adapters:
            A, B = adapter.parameters()
            with adapted._switch.on(adapter):
                torch.testing.assert_close(adapted(x()), plain + (6 / 4) * (x() @ A.t() @ B.t()))
            assert torch.equal(adapted(x()), plain)


class TestMakeAdapter:
    def test_masters_are_float32_for_every_dtype_of_the_base(self) -> None:
        frozen = freeze(torch.ones(D, K), QuantizationSpec(), torch.bfloat16)
        adapted = AdaptedLinear("q_proj", frozen, AdapterSwitch())
        adapter = make_adapter(lora(), 1, {"q_proj": adapted}, CPU_KERNELS)
        assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float32}

    def test_a_is_uniform_within_one_over_root_k_as_in_peft_and_b_is_zero(self) -> None:
        adapted = layer(rows=64, columns=400)
        A, B = make_adapter(lora(r=32), 1, {adapted.name: adapted}, CPU_KERNELS).parameters()
        assert A.abs().max() <= 1 / 20
        assert A.std().item() == pytest.approx(1 / 20 / math.sqrt(3), rel=0.05)
        assert not B.any()

    def test_scale_is_alpha_over_r_or_over_its_root_with_rslora(self) -> None:
        assert scale_of(lora(r=4, alpha=6), "q_proj") == 1.5
        assert scale_of(lora(r=4, alpha=6, use_rslora=True), "q_proj") == 3.0

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"target_parameters": ["experts.up_proj"]}, "experts.down_proj"),
            ({"target_parameters": ["wn_proj"]}, "experts.down_proj"),
            ({"target_parameters": ["down_proj"], "dropout": 0.1}, "without DoRA"),
            ({"target_parameters": ["down_proj"], "use_dora": True}, "without DoRA"),
            ({"experts": True, "dropout": 0.1}, "without DoRA"),
            ({"rank_pattern": {"v_proj": 2}}, "'v_proj'"),
            ({"rank_pattern": {".*": 2}}, "'.*'"),
            ({"rank_pattern": {"q_proj": 13}}, "q_proj is 12"),
            ({"alpha_pattern": {"(": 13}}, "'('"),
        ],
    )
    def test_what_no_layer_can_have_is_refused(self, changes: dict[str, object], said: str) -> None:
        experts = {"model.layers.0.mlp.experts.down_proj": SimpleNamespace(in_features=K, out_features=D, count=0)}
        with pytest.raises(Failure, match=re.escape(said)) as caught:
            make_adapter(lora(**changes), 1, {"q_proj": layer()}, CPU_KERNELS, experts)
        assert (caught.value.reason, caught.value.param) == (Reason.INVALID_SPEC, f"lora.{next(iter(changes))}")
