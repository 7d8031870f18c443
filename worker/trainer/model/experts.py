"""Mixture-of-experts layers: frozen experts, and LoRA on them where the request asks for it.

transformers 5 has one parameter for the experts of a layer (experts x out x in). Here it is a stack of frozen experts
(frozen_experts.py; NF4, 8 or 16 bits). The tokens are sorted by expert once for a layer, so each product of all experts
is one grouped product, and the host reads nothing of the device, except where the dequantized weights of all experts
would exceed a bound. LoRA on experts has PEFT's form (`target_parameters`): for E experts A is (R E) x K and B is
D x (R E).

Letters: T tokens, C chosen experts of a token, S the rows of a token and one of its experts (T C), K inputs and D
outputs of an expert's layer, E experts, N those of a group, R the rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  the usual name
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from app.domain.jobs.spec import QuantizationSpec
from app.domain.planning.memory import EXPERT_WEIGHTS
from worker.trainer.adapter.lora import AdapterSwitch
from worker.trainer.model.frozen_experts import ExpertStack, Selection, freeze_stack
from worker.trainer.model.patches import DOCUMENTS

NAME = "tunery_experts"
ALIGNMENT_BYTES = 16  # of the rows of every matrix in torch's grouped product


def is_experts_parameter(module: torch.nn.Module, parameter: str) -> bool:
    """Return whether the parameter is the stacked weight of all experts of a layer."""
    weight = module._parameters.get(parameter)
    return (
        hasattr(module, "num_experts") and hasattr(module, "is_transposed") and weight is not None and weight.ndim == 3
    )


def freeze_experts(
    module: Any,
    parameter: str,
    name: str,
    weights: torch.Tensor,
    switch: AdapterSwitch,
    quantization: QuantizationSpec | None,
    compute_dtype: torch.dtype,
) -> ExpertStack:
    """Put the frozen experts into `module`, in place of the stacked parameter; return them.

    A parameter of the same shape that needs no memory takes its place: PEFT finds names and shapes by it, and adds its
    own update to it when it loads an adapter (checkpoint/verify.py).
    """
    stacked = weights.transpose(1, 2) if module.is_transposed else weights  # E x D x K
    stack = freeze_stack(stacked, quantization, compute_dtype)
    placeholder = torch.zeros(1, 1, 1, device=weights.device).expand(weights.shape)
    module._parameters[parameter] = torch.nn.Parameter(placeholder, requires_grad=False)
    vars(module).setdefault("frozen_experts", {})[parameter] = _FrozenParameter(name, stack, switch)
    return stack


@dataclass(frozen=True)
class _FrozenParameter:
    """The frozen weights of one parameter of an experts module, such as `model.layers.0.mlp.experts.down_proj`."""

    name: str
    stack: ExpertStack
    switch: AdapterSwitch


def experts_forward(
    module: Any, hidden_T_K: torch.Tensor, experts_T_C: torch.Tensor, weights_T_C: torch.Tensor
) -> torch.Tensor:
    """Return the weighted sum of the outputs of the C experts that the router has chosen for each token."""
    first, activate = ("gate_up_proj", module._apply_gate) if module.has_gate else ("up_proj", module.act_fn)
    up, down = (_Projection(module, name) for name in (first, "down_proj"))
    tokens, chosen = experts_T_C.shape
    expert_S, order_S = torch.sort(experts_T_C.flatten(), stable=True)
    groups = _groups(expert_S, up.stack, down.stack)
    # Copies and a permutation: the gradient is summed in a fixed order, as that of an index is not on a GPU.
    x_S_K = hidden_T_K.unsqueeze(1).expand(-1, chosen, -1).flatten(0, 1).index_select(0, order_S)
    outs = []
    rows = (torch.split(each, [group.size for group in groups]) for each in (x_S_K, expert_S))
    for group, x, expert in zip(groups, *rows, strict=True):
        out = down(activate(up(x, expert, group)), expert, group)
        outs.append(module.post_expert_norm(out) if module.has_post_expert_norm else out)
    y_S_K = outs[0] if len(outs) == 1 else torch.cat(outs)
    y_T_C_K = y_S_K.index_select(0, torch.argsort(order_S)).view(tokens, chosen, -1)
    return (y_T_C_K * weights_T_C.unsqueeze(2)).sum(1).to(hidden_T_K.dtype)


@dataclass(frozen=True)
class Group:
    """Experts whose weights are dequantized at once, and their rows: `size` of them, expert by expert."""

    experts: Selection
    size: int
    ends_N: torch.Tensor  # noqa: N815  int32: the row after the last one of each expert


def _groups(expert_S: torch.Tensor, *stacks: ExpertStack) -> list[Group]:
    """Return the groups of experts for these rows, which are sorted by expert.

    On a GPU one group of all experts, if their weights fit. Otherwise the numbers of rows are read, once for a layer,
    and experts without rows are left out: a generated token has few of them.
    """
    count, device = stacks[0].count, expert_S.device
    most = max(1, EXPERT_WEIGHTS[device.type] // max(stack.in_features * stack.out_features for stack in stacks))
    ends_E = torch.searchsorted(expert_S, torch.arange(count, device=device), right=True, out_int32=True)
    if device.type != "cpu" and count <= min(most, len(expert_S)):
        return [Group(slice(None), len(expert_S), ends_E)]
    ends = [0, *ends_E.tolist()]
    used = [expert for expert in range(count) if ends[expert + 1] > ends[expert]]
    groups = []
    for part in (used[start : start + most] for start in range(0, len(used), most)):
        is_range = part[-1] - part[0] + 1 == len(part)  # a view of the stack instead of a copy of its codes
        experts = slice(part[0], part[-1] + 1) if is_range else torch.tensor(part, device=device)
        ends_N = torch.tensor([ends[expert + 1] - ends[part[0]] for expert in part], dtype=torch.int32, device=device)
        groups.append(Group(experts, ends[part[-1] + 1] - ends[part[0]], ends_N))
    return groups


class _Projection:
    """One linear layer of every expert, with the active adapter's factors by expert."""

    def __init__(self, module: Any, parameter: str) -> None:
        frozen: _FrozenParameter = module.frozen_experts[parameter]
        self.stack = frozen.stack
        self.bias_E_D = getattr(module, f"{parameter}_bias") if module.has_bias else None
        adapter = frozen.switch.active
        self.weights = adapter.layers.get(frozen.name) if adapter else None
        self.peft_update: torch.Tensor | None = None  # E x D x K: what PEFT adds to the placeholder
        if torch.nn.utils.parametrize.is_parametrized(module, parameter):  # PEFT has loaded an adapter
            update: torch.Tensor = getattr(module, parameter)
            self.peft_update = update.transpose(1, 2) if module.is_transposed else update

    def __call__(self, x_S_K: torch.Tensor, expert_S: torch.Tensor, group: Group) -> torch.Tensor:
        stack, scale, A_N_R_K, B_N_R_D = self.stack, 1.0, None, None
        if weights := self.weights:
            scale = weights.scale
            A_N_R_K = weights.A_R_K.view(stack.count, -1, stack.in_features)[group.experts]
            B_N_R_D = weights.B_D_R.view(stack.out_features, -1, stack.count).permute(2, 1, 0)[group.experts]
        y_S_D: torch.Tensor = _GroupedLinear.apply(x_S_K, stack, group, scale, A_N_R_K, B_N_R_D)  # type: ignore[no-untyped-call]
        if self.peft_update is not None:
            update_N_K_D = self.peft_update[group.experts].transpose(1, 2).to(x_S_K.dtype)
            y_S_D = y_S_D + grouped_product(x_S_K, update_N_K_D, group.ends_N)
        return y_S_D if self.bias_E_D is None else y_S_D + self.bias_E_D[expert_S].to(y_S_D.dtype)


class _GroupedLinear(torch.autograd.Function):
    """x W^T + scale * (x A^T) B^T with the W, A and B of each row's expert, as _LoraLinear for one (adapter/lora.py).

    Gradients of x, and of the float32 masters A and B; W gets none, and is dequantized again for the backward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_S_K: torch.Tensor,
        stack: ExpertStack,
        group: Group,
        scale: float,
        A_N_R_K: torch.Tensor | None,
        B_N_R_D: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.stack, ctx.group, ctx.scale = stack, group, scale
        weights_N_D_K = stack.weights_in(x_S_K.dtype, group.experts)
        y_S_D = grouped_product(x_S_K, weights_N_D_K.transpose(1, 2), group.ends_N)
        if A_N_R_K is not None and B_N_R_D is not None:
            A_N_R_K, B_N_R_D = (factor.to(x_S_K.dtype).contiguous() for factor in (A_N_R_K, B_N_R_D))
            u_S_R = grouped_product(x_S_K, A_N_R_K.transpose(1, 2), group.ends_N)
            y_S_D.add_(grouped_product(u_S_R, B_N_R_D, group.ends_N), alpha=scale)
            ctx.save_for_backward(x_S_K, A_N_R_K, B_N_R_D, u_S_R)
        return y_S_D

    @staticmethod
    def backward(ctx: Any, dy_S_D: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dy_S_D, ends_N = dy_S_D.contiguous(), ctx.group.ends_N
        dx_S_K = None
        if ctx.needs_input_grad[0]:
            dx_S_K = grouped_product(dy_S_D, ctx.stack.weights_in(dy_S_D.dtype, ctx.group.experts), ends_N)
        if not ctx.saved_tensors:
            return dx_S_K, None, None, None, None, None
        x_S_K, A_N_R_K, B_N_R_D, u_S_R = ctx.saved_tensors
        du_S_R = grouped_product(dy_S_D, B_N_R_D.transpose(1, 2), ends_N).mul_(ctx.scale)
        dA_N_R_K = _sums_of_products(du_S_R, x_S_K, ends_N)
        dB_N_R_D = _sums_of_products(u_S_R, dy_S_D, ends_N).mul_(ctx.scale)
        if dx_S_K is not None:
            dx_S_K.add_(grouped_product(du_S_R, A_N_R_K, ends_N))
        return dx_S_K, None, None, None, dA_N_R_K, dB_N_R_D


def grouped_product(left: torch.Tensor, right: torch.Tensor, ends_N: torch.Tensor) -> torch.Tensor:
    """Return the products of the rows of each expert (S x K) with its matrix (N x K x D), S x D.

    With `left` K x S and `right` S x D: the sum of products over the rows of each expert, N x K x D.

    torch's kernel reads nothing back on sm90 and newer in bfloat16; elsewhere torch itself runs a loop over experts. It
    has no matrices whose rows are not whole units of 16 bytes; these are multiplied here, one expert after the other.
    """
    if _is_aligned(left) and _is_aligned(right):
        return F.grouped_mm(left, right, offs=ends_N)
    bounds = list(pairwise([0, *ends_N.tolist()]))
    if right.ndim == 3:
        return torch.cat([left[start:end] @ matrix for matrix, (start, end) in zip(right, bounds, strict=True)])
    return torch.stack([left[:, start:end] @ right[start:end] for start, end in bounds])


def _is_aligned(matrix: torch.Tensor) -> bool:
    inner, outer = sorted(matrix.stride()[-2:])
    return inner == 1 and outer * matrix.element_size() % ALIGNMENT_BYTES == 0


def _sums_of_products(left_S_M: torch.Tensor, right_S_L: torch.Tensor, ends_N: torch.Tensor) -> torch.Tensor:
    """Return left^T right of each expert (N x M x L) in float32; zero for one without rows.

    In float16 the sum over rows may exceed the largest number, 65,504. What a kernel writes for a sum of nothing is not
    documented, so it is set.
    """
    if left_S_M.dtype == torch.float16:
        left_S_M, right_S_L = left_S_M.float(), right_S_L.float()
    sums_N_M_L = grouped_product(left_S_M.t(), right_S_L, ends_N).float()
    is_empty_N = ends_N.diff(prepend=ends_N.new_zeros(1)) == 0
    return sums_N_M_L.masked_fill_(is_empty_N[:, None, None], 0)


DOCUMENTS.put(f"experts: {NAME}", ALL_EXPERTS_FUNCTIONS, NAME, experts_forward)
