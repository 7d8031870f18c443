"""Activation checkpointing: what the backward needs is kept, or computed a second time. Results are equal to the bit.

    nothing       everything is kept
    elementwise   outputs of matrix products and attention are kept; norms and the gated product are recomputed
    layers        of the first k decoder layers only the input is kept, the others are element-wise
    everything    of every decoder layer only its input is kept (arXiv 1604.06174)

A layer that runs again must see what it saw the first time. Two things are not among its arguments: the active adapter
(`AdapterSwitch.active`), and the state of the dropout generator. Both are noted in the forward and put back for the
second run. Element-wise recomputation draws nothing, so it has no such need.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from app.domain.planning.execution_plan import Recompute
from worker.trainer.adapter.lora import Adapter, AdapterSwitch
from worker.trainer.adapter.modules_to_save import ModuleToSave
from worker.trainer.model.memory_efficient_modules import GatedMLP, RMSNorm, swiglu

Compute = Callable[..., torch.Tensor]


class Recomputation:
    """Wraps the forward of every decoder layer; `mode` may change between two steps."""

    def __init__(self, model: Any, switch: AdapterSwitch) -> None:
        self.mode: Recompute = "nothing"
        self.recomputed_layers = 0  # how many, from the first
        self.layers = decoder_layers(model)
        self._switch = switch
        self._hooks = _SavedTensorHooks()
        self._anchor = torch.empty(0, requires_grad=True)  # the first layer's input needs no gradient, its adapter does
        for number, layer in enumerate(self.layers):
            _wrap_elementwise_modules(layer, self._hooks)
            layer.forward = self._around(number, layer.forward)

    def set(self, mode: Recompute, recomputed_layers: int = 0) -> None:
        self.mode = mode
        self.recomputed_layers = {"layers": recomputed_layers, "everything": len(self.layers)}.get(mode, 0)

    def free(self) -> None:
        """Free the tensor that was recomputed last, after a step that an error ended."""
        self._hooks.free()

    def _around(self, number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*inputs: Any, **more: Any) -> Any:
            if self.mode == "nothing" or not torch.is_grad_enabled():
                return forward(*inputs, **more)
            if number < self.recomputed_layers:
                return self._recomputed(forward, *inputs, **more)
            with self._hooks:
                return forward(*inputs, **more)

        return run

    def _recomputed(self, forward: Callable[..., Any], hidden: torch.Tensor, *inputs: Any, **more: Any) -> Any:
        def layer(hidden: torch.Tensor) -> torch.Tensor:
            output = forward(hidden, *inputs, **more)
            hidden_states: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
            return hidden_states

        forward_context = _ForwardContext(self._switch)
        output: torch.Tensor = _RecomputedLayer.apply(hidden, self._anchor, layer, forward_context)  # type: ignore[no-untyped-call]
        return output


def decoder_layers(model: Any) -> Sequence[torch.nn.Module]:
    """Return the model's stack of equal layers, as its config counts them; none where it is built otherwise."""
    count = getattr(model.config, "num_hidden_layers", 0)
    stacks = (each for each in model.base_model.modules() if isinstance(each, torch.nn.ModuleList))
    return list(next((stack for stack in stacks if len(stack) == count), ()))


class _RecomputedLayer(torch.autograd.Function):
    """A layer of which only the input is kept. torch.utils.checkpoint does as much, and loads the compiler: 40 MB."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        _anchor: torch.Tensor,
        layer: Compute,
        forward_context: AbstractContextManager[None],
    ) -> torch.Tensor:
        ctx.layer, ctx.forward_context = layer, forward_context
        ctx.save_for_backward(hidden)
        with torch.enable_grad():  # without gradients a layer would take itself for evaluated, and leave out dropout
            return layer(hidden.detach()).detach()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        hidden = ctx.saved_tensors[0].detach().requires_grad_(ctx.needs_input_grad[0])
        with ctx.forward_context, torch.enable_grad():
            output = ctx.layer(hidden)
        torch.autograd.backward(output, gradient)  # into the adapter's weights, and into `hidden`
        return hidden.grad, None, None, None


class _ForwardContext(AbstractContextManager[None]):
    """Put back the active adapter and its dropout generator as a layer's forward had them, while it runs again."""

    def __init__(self, switch: AdapterSwitch) -> None:
        self._switch = switch
        self._adapter = switch.active
        self._generator = self._adapter.generator if self._adapter and self._adapter.dropout else None
        self._state = self._generator.get_state() if self._generator else None
        self._current: tuple[Adapter | None, torch.Tensor | None] = (None, None)

    def __enter__(self) -> None:
        self._current = self._switch.active, self._generator.get_state() if self._generator else None
        self._restore(self._adapter, self._state)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore(*self._current)

    def _restore(self, adapter: Adapter | None, state: torch.Tensor | None) -> None:
        self._switch.active = adapter
        if self._generator is not None and state is not None:
            self._generator.set_state(state)


# --- element by element -----------------------------------------------------------------------------------------------


class _RecomputedTensor:
    """How a tensor was computed, so that autograd can keep the inputs in its place."""

    def __init__(self, compute: Compute, inputs: Sequence[torch.Tensor], output: torch.Tensor) -> None:
        self.compute = compute
        self.inputs = [each.detach() for each in inputs]
        self.size = output.numel()
        self.pending_uses = 0  # operations that kept it and have not run backward yet
        self._output = weakref.ref(output)

    def is_of(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` is a view of all of the output. Once that is freed, its address may be another tensor's."""
        return self._output() is not None and tensor.numel() == self.size and tensor.is_contiguous()


class _SavedTensorHooks(AbstractContextManager[None]):
    """While a layer runs: replaces what autograd would keep of a recomputed tensor by how it was computed."""

    def __init__(self) -> None:
        self.is_open = False
        self._recomputed: dict[int, _RecomputedTensor] = {}  # by the address of the output
        self._last: tuple[_RecomputedTensor, torch.Tensor] | None = None  # q, k and v need the same one in turn
        self._context: saved_tensors_hooks | None = None

    def __enter__(self) -> None:
        self.is_open, self._last = True, None
        self._context = saved_tensors_hooks(self._keep, self._recompute)
        self._context.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._context is not None
        self._context.__exit__(kind, error, trace)
        self.is_open = False
        self._recomputed.clear()

    def run(self, compute: Compute, *inputs: torch.Tensor, keeps_inputs_alone: bool = False) -> torch.Tensor:
        """Return `compute(*inputs)`, of which only the inputs are kept; some operations (lean_modules.py) do so
        themselves."""
        if keeps_inputs_alone:
            output: torch.Tensor = compute(*inputs)
        else:
            output = _RecomputedOperation.apply(compute, *inputs)  # type: ignore[no-untyped-call]
        self._recomputed[output.untyped_storage().data_ptr()] = _RecomputedTensor(compute, inputs, output)
        return output

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor | tuple[_RecomputedTensor, torch.Size]:
        recomputed = self._recomputed.get(tensor.untyped_storage().data_ptr())
        if recomputed is None or not recomputed.is_of(tensor):
            return tensor
        recomputed.pending_uses += 1
        return recomputed, tensor.shape

    def _recompute(self, kept: torch.Tensor | tuple[_RecomputedTensor, torch.Size]) -> torch.Tensor:
        if isinstance(kept, torch.Tensor):
            return kept
        recomputed, shape = kept
        if self._last is None or self._last[0] is not recomputed:
            self._last = None  # before the next is computed: there is never more than one
            with torch.no_grad():
                self._last = recomputed, recomputed.compute(*recomputed.inputs)
        output = self._last[1].view(shape)
        recomputed.pending_uses -= 1
        if not recomputed.pending_uses:
            self.free()  # the last one of a backward would stay, with its inputs, until the next forward
        return output

    def free(self) -> None:
        """Free the tensor that was recomputed last: after an error in a backward its other uses never come."""
        self._last = None


class _RecomputedOperation(torch.autograd.Function):
    """`compute(*inputs)`, of which only the inputs are kept."""

    @staticmethod
    def forward(ctx: Any, compute: Compute, *inputs: torch.Tensor) -> torch.Tensor:
        ctx.compute = compute
        ctx.save_for_backward(*inputs)
        return compute(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        inputs = [
            each.detach().requires_grad_(is_needed) for each, is_needed in zip(ctx.saved_tensors, needed, strict=True)
        ]
        with torch.enable_grad():
            output = ctx.compute(*inputs)
        gradients = iter(torch.autograd.grad(output, [each for each in inputs if each.requires_grad], gradient))
        return None, *(next(gradients) if is_needed else None for is_needed in needed)


def _wrap_elementwise_modules(layer: torch.nn.Module, hooks: _SavedTensorHooks) -> None:
    """Recompute norms, by their class's name, and gated MLPs of the known form (lean_modules.py); no other module.

    modules_to_save are left out: recomputed, they would have the frozen weight, and their own no gradient.
    """
    trained = {id(module.frozen) for module in layer.modules() if isinstance(module, ModuleToSave)}
    modules: list[Any] = [module for module in layer.modules() if id(module) not in trained]
    for module in modules:
        is_gated = isinstance(module, GatedMLP)
        if type(module).__name__.endswith("Norm"):
            module.forward = _norm(module.forward, hooks, keeps_inputs_alone=isinstance(module, RMSNorm))
        elif is_gated:
            module.forward = _gated_mlp(module, hooks)


def _norm(forward: Compute, hooks: _SavedTensorHooks, *, keeps_inputs_alone: bool) -> Compute:
    def run(x: torch.Tensor, *more: Any) -> torch.Tensor:
        if hooks.is_open and not more:
            return hooks.run(forward, x, keeps_inputs_alone=keeps_inputs_alone)
        return forward(x.view_as(x), *more)  # the norm's gradients are summed before they meet the residual's

    return run


def _gated_mlp(layer: GatedMLP, hooks: _SavedTensorHooks) -> Compute:
    def run(x: torch.Tensor) -> torch.Tensor:
        gate, up = layer.gate_proj(x), layer.up_proj(x)
        inner = hooks.run(swiglu, gate, up, keeps_inputs_alone=True) if hooks.is_open else swiglu(gate, up)
        down: torch.Tensor = layer.down_proj(inner)
        return down

    return run
