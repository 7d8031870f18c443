"""A check of the kernels that no other check compares: quantization, the products of experts, and the loss in chunks.

Each is compared with a plain formula on random numbers, with the formats and on the device of the base. Norms, gated
products and rotary embeddings are compared where they are replaced (kernels/replacement.py), attention in
attention_check.py.

Letters: T tokens, C experts of a token, K inputs and D outputs of a layer, N labelled tokens, V words.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from app.domain.jobs.states import Reason
from app.domain.planning.memory import BLOCK
from worker.trainer.kernels.comparison import difference, run_with_gradients
from worker.trainer.model.base_model import FrozenBase
from worker.trainer.model.bitsandbytes_import import bitsandbytes
from worker.trainer.model.frozen_linear import freeze
from worker.trainer.objective.losses import LogitScaling, linear_cross_entropy
from worker.trainer.runtime.failures import Failure

WEIGHT_SHAPE = (68, 1024)  # more numbers than one chunk of quantize.py
# By the bits, of the largest weight of a block or a row. Double quantization and bfloat16 round by 0.009 and 0.003; the
# next code is 0.08 (NF4) and 0.008 away.
MAX_ROUNDING = {4: 0.02, 8: 0.006}
TOKENS, EXPERTS_OF_A_TOKEN = 6, 2
LOSS_TOKENS, LOSS_CHUNK_TOKENS, LOSS_WORDS = 12, 5, 512
MAX_DIFFERENCE = 3e-2  # of the largest value: rounding in bfloat16 causes 1 %


def check_kernels(base: FrozenBase) -> None:
    """Raises Failure(MODEL_UNAVAILABLE), which names the kernel, if one computes another result than its formula."""
    differences = {
        "quantization": _quantization_difference(base),
        "loss": _loss_difference(base) / MAX_DIFFERENCE,
        "product of experts": _experts_difference(base) / MAX_DIFFERENCE,
    }
    base.margins.update({kernel: (found, 1.0) for kernel, found in differences.items() if found})
    for kernel, found in differences.items():
        if not found <= 1:  # this form is also true for NaN
            text = (
                f"The {kernel} of this worker computes another result than its formula ({found:.1f} times what "
                f"rounding explains). Training {base.name} with it would give a wrong adapter. The operator can "
                "install another version of torch or bitsandbytes."
            )
            raise Failure(Reason.MODEL_UNAVAILABLE, text, "model")


def _quantization_difference(base: FrozenBase) -> float:
    """Return by how much the error of a weight exceeds that of the nearest code, relative to what rounding explains."""
    quantization = base.quantization
    if quantization is None:
        return 0.0
    weight_D_K = torch.randn(WEIGHT_SHAPE, generator=torch.Generator().manual_seed(0)).to(base.device)
    found_D_K = freeze(weight_D_K, quantization, base.compute_dtype).weight_in(base.compute_dtype).float()
    codes = torch.arange(-127, 128) / 127
    if quantization.bits == 4:
        codes = bitsandbytes.functional.get_4bit_type(quantization.type, device="cpu")
        weight_D_K, found_D_K = (each.view(-1, BLOCK) for each in (weight_D_K, found_D_K))
    largest = weight_D_K.abs().amax(1, keepdim=True)
    codes = codes.sort().values.to(base.device)
    scaled, bounds = weight_D_K / largest, (codes[:-1] + codes[1:]) / 2
    nearest = codes[torch.bucketize(scaled, bounds)]
    excess = (found_D_K / largest - scaled).abs() - (nearest - scaled).abs()
    return float(excess.max()) / MAX_ROUNDING[quantization.bits]


def _loss_difference(base: FrozenBase) -> float:
    """Compare value and gradients with the cross entropy of all logits at once, of the first words of the head."""
    generator = torch.Generator().manual_seed(0)
    head_V_D = base.head_V_D[:LOSS_WORDS].float()
    hidden_N_D = torch.randn(LOSS_TOKENS, head_V_D.shape[1], generator=generator).to(base.device, base.compute_dtype)
    targets_N = torch.randint(len(head_V_D), (LOSS_TOKENS,), generator=generator).to(base.device)
    weights_N = torch.rand(LOSS_TOKENS, generator=generator).to(base.device)
    scaling: LogitScaling = base.logit_scaling

    def in_chunks(hidden_N_D: torch.Tensor, head_V_D: torch.Tensor) -> torch.Tensor:
        return linear_cross_entropy(hidden_N_D, head_V_D, targets_N, weights_N, scaling, LOSS_CHUNK_TOKENS)[0]

    def plain(hidden_N_D: torch.Tensor, head_V_D: torch.Tensor) -> torch.Tensor:
        logits_N_V = scaling.factor * (hidden_N_D.float() @ head_V_D.to(base.compute_dtype).float().t())
        if scaling.cap is not None:
            logits_N_V = scaling.cap * (logits_N_V / scaling.cap).tanh()
        return (F.cross_entropy(logits_N_V, targets_N, reduction="none") * weights_N).sum()

    inputs = (hidden_N_D, head_V_D)
    return difference(run_with_gradients(in_chunks, inputs), run_with_gradients(plain, inputs))


def _experts_difference(base: FrozenBase) -> float:
    """Compare a layer with a loop over tokens and their experts in float32; 0 for a base without experts."""
    module: Any = next((each for each in base.model.modules() if hasattr(each, "frozen_experts")), None)
    if module is None:
        return 0.0
    first = "gate_up_proj" if module.has_gate else "up_proj"
    count, width = module.frozen_experts[first].stack.count, module.frozen_experts[first].stack.in_features
    generator, chosen = torch.Generator().manual_seed(0), min(EXPERTS_OF_A_TOKEN, count)
    hidden_T_K = torch.randn(TOKENS, width, generator=generator).to(base.device, base.compute_dtype)
    weights_T_C = torch.rand(TOKENS, chosen, generator=generator).to(base.device, base.compute_dtype)
    first_T_1 = torch.linspace(0, count - 1, TOKENS).long()[:, None]
    experts_T_C = (first_T_1 + torch.arange(chosen)) % count  # the last token has the last expert and the first

    def linear(x_K: torch.Tensor, name: str, expert: int) -> torch.Tensor:
        stack = module.frozen_experts[name].stack
        weight_D_K = stack.weights_in(base.compute_dtype, slice(expert, expert + 1))[0].float()
        bias = getattr(module, f"{name}_bias")[expert].float() if module.has_bias else None
        return F.linear(x_K, weight_D_K, bias)

    def loop(hidden_T_K: torch.Tensor, weights_T_C: torch.Tensor) -> torch.Tensor:
        activate = module._apply_gate if module.has_gate else module.act_fn
        out_T_K = []
        for x_K, experts_C, weights_C in zip(hidden_T_K.float(), experts_T_C.tolist(), weights_T_C, strict=True):
            outs_C_K = [linear(activate(linear(x_K, first, each)), "down_proj", each) for each in experts_C]
            if module.has_post_expert_norm:
                outs_C_K = [module.post_expert_norm(out_K) for out_K in outs_C_K]
            out_T_K.append(weights_C.float() @ torch.stack(outs_C_K))
        return torch.stack(out_T_K)

    def grouped(hidden_T_K: torch.Tensor, weights_T_C: torch.Tensor) -> torch.Tensor:
        out_T_K: torch.Tensor = module(hidden_T_K, experts_T_C.to(base.device), weights_T_C)
        return out_T_K

    inputs = (hidden_T_K, weights_T_C)
    return difference(run_with_gradients(grouped, inputs), run_with_gradients(loop, inputs))
