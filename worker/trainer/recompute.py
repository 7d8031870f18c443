"""Activation checkpointing: what the backward needs is kept, or made a second time. Results are equal to the bit.

    nothing       everything is kept
    elementwise   kept is what a matrix product or attention made; norms and the gated product are made again
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

from app.domain.execution_plan import Recompute
from worker.trainer.lean_modules import GatedMLP, RMSNorm, swiglu
from worker.trainer.lora import Adapter, AdapterSwitch
from worker.trainer.modules_to_save import ModuleToSave

Maker = Callable[..., torch.Tensor]


class Recomputation:
    """Stands in the forward of every decoder layer; `mode` may change between two steps."""

    def __init__(self, model: Any, switch: AdapterSwitch) -> None:
        self.mode: Recompute = "nothing"
        self.recomputed_layers = 0  # how many, from the first
        self.layers = decoder_layers(model)
        self._switch = switch
        self._notes = _Notes()
        self._anchor = torch.empty(0, requires_grad=True)  # the first layer's input needs no gradient, its adapter does
        for number, layer in enumerate(self.layers):
            _make_remakable(layer, self._notes)
            layer.forward = self._around(number, layer.forward)

    def set(self, mode: Recompute, recomputed_layers: int = 0) -> None:
        self.mode = mode
        self.recomputed_layers = {"layers": recomputed_layers, "everything": len(self.layers)}.get(mode, 0)

    def forget(self) -> None:
        """After a step that came to no end: what it made again is held no longer."""
        self._notes.forget()

    def _around(self, number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*inputs: Any, **more: Any) -> Any:
            if self.mode == "nothing" or not torch.is_grad_enabled():
                return forward(*inputs, **more)
            if number < self.recomputed_layers:
                return self._recomputed(forward, *inputs, **more)
            with self._notes:
                return forward(*inputs, **more)

        return run

    def _recomputed(self, forward: Callable[..., Any], hidden: torch.Tensor, *inputs: Any, **more: Any) -> Any:
        def layer(hidden: torch.Tensor) -> torch.Tensor:
            made = forward(hidden, *inputs, **more)
            only: torch.Tensor = made if isinstance(made, torch.Tensor) else made[0]
            return only

        as_in_forward = _AsInForward(self._switch)
        made: torch.Tensor = _RecomputedLayer.apply(hidden, self._anchor, layer, as_in_forward)  # type: ignore[no-untyped-call]
        return made


def decoder_layers(model: Any) -> Sequence[torch.nn.Module]:
    """The model's stack of equal layers, as its config counts them; none where it is built otherwise."""
    count = getattr(model.config, "num_hidden_layers", 0)
    stacks = (each for each in model.base_model.modules() if isinstance(each, torch.nn.ModuleList))
    return list(next((stack for stack in stacks if len(stack) == count), ()))


class _RecomputedLayer(torch.autograd.Function):
    """A layer of which only the input is kept. torch.utils.checkpoint does as much, and loads the compiler: 40 MB."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, _anchor: torch.Tensor, layer: Maker, as_in_forward: AbstractContextManager[None]
    ) -> torch.Tensor:
        ctx.layer, ctx.as_in_forward = layer, as_in_forward
        ctx.save_for_backward(hidden)
        with torch.enable_grad():  # without gradients a layer would take itself for evaluated, and leave out dropout
            return layer(hidden.detach()).detach()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        hidden = ctx.saved_tensors[0].detach().requires_grad_(ctx.needs_input_grad[0])
        with ctx.as_in_forward, torch.enable_grad():
            made = ctx.layer(hidden)
        torch.autograd.backward(made, gradient)  # into the adapter's factors, and into `hidden`
        return hidden.grad, None, None, None


class _AsInForward(AbstractContextManager[None]):
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


class _Recipe:
    """How a tensor was made, so that its inputs can be kept in its place."""

    def __init__(self, make: Maker, inputs: Sequence[torch.Tensor], made: torch.Tensor) -> None:
        self.make = make
        self.inputs = [each.detach() for each in inputs]
        self.size = made.numel()
        self.awaited = 0  # by so many operations that kept it
        self._made = weakref.ref(made)

    def is_of(self, tensor: torch.Tensor) -> bool:
        """A view of all of it. Once the tensor is gone, its address may be another's: then it is not."""
        return self._made() is not None and tensor.numel() == self.size and tensor.is_contiguous()


class _Notes(AbstractContextManager[None]):
    """While a layer runs: what was made how; what autograd wants to keep of that, is kept as its recipe."""

    def __init__(self) -> None:
        self.is_open = False
        self._recipes: dict[int, _Recipe] = {}
        self._last: tuple[_Recipe, torch.Tensor] | None = None  # q, k and v ask for the same one after the other
        self._hooks: saved_tensors_hooks | None = None

    def __enter__(self) -> None:
        self.is_open, self._last = True, None
        self._hooks = saved_tensors_hooks(self._keep, self._make_again)
        self._hooks.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._hooks is not None
        self._hooks.__exit__(kind, error, trace)
        self.is_open = False
        self._recipes.clear()

    def make(self, make: Maker, *inputs: torch.Tensor, is_lean: bool = False) -> torch.Tensor:
        """What is lean (lean_modules.py) keeps but its inputs by itself; of anything else only those are kept."""
        made: torch.Tensor = make(*inputs) if is_lean else _Remade.apply(make, *inputs)  # type: ignore[no-untyped-call]
        self._recipes[made.untyped_storage().data_ptr()] = _Recipe(make, inputs, made)
        return made

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor | tuple[_Recipe, torch.Size]:
        recipe = self._recipes.get(tensor.untyped_storage().data_ptr())
        if recipe is None or not recipe.is_of(tensor):
            return tensor
        recipe.awaited += 1
        return recipe, tensor.shape

    def _make_again(self, kept: torch.Tensor | tuple[_Recipe, torch.Size]) -> torch.Tensor:
        if isinstance(kept, torch.Tensor):
            return kept
        recipe, shape = kept
        if self._last is None or self._last[0] is not recipe:
            self._last = None  # before the next is made: there is never more than one
            with torch.no_grad():
                self._last = recipe, recipe.make(*recipe.inputs)
        made = self._last[1].view(shape)
        recipe.awaited -= 1
        if not recipe.awaited:
            self.forget()  # the last one of a backward would stay, with its inputs, until the next forward
        return made

    def forget(self) -> None:
        """What was made last. After an error in a backward somebody still awaits it, and nobody will come."""
        self._last = None


class _Remade(torch.autograd.Function):
    """`make(*inputs)`, of which only the inputs are kept."""

    @staticmethod
    def forward(ctx: Any, make: Maker, *inputs: torch.Tensor) -> torch.Tensor:
        ctx.make = make
        ctx.save_for_backward(*inputs)
        return make(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        inputs = [
            each.detach().requires_grad_(is_needed) for each, is_needed in zip(ctx.saved_tensors, needed, strict=True)
        ]
        with torch.enable_grad():
            made = ctx.make(*inputs)
        wanted = torch.autograd.grad(made, [each for each in inputs if each.requires_grad], gradient)
        found = iter(wanted)
        return None, *(next(found) if is_needed else None for is_needed in needed)


def _make_remakable(layer: torch.nn.Module, notes: _Notes) -> None:
    """Norms by their class's name, and gated MLPs of the form we know (lean_modules.py); others stay.

    So do modules_to_save: made again, they would have the frozen weight, and their own no gradient.
    """
    trained = {id(module.frozen) for module in layer.modules() if isinstance(module, ModuleToSave)}
    remakable: list[Any] = [module for module in layer.modules() if id(module) not in trained]
    for module in remakable:
        is_gated = isinstance(module, GatedMLP)
        if type(module).__name__.endswith("Norm"):
            module.forward = _norm(module.forward, notes, is_lean=isinstance(module, RMSNorm))
        elif is_gated:
            module.forward = _gated_mlp(module, notes)


def _norm(forward: Maker, notes: _Notes, *, is_lean: bool) -> Maker:
    def run(x: torch.Tensor, *more: Any) -> torch.Tensor:
        if notes.is_open and not more:
            return notes.make(forward, x, is_lean=is_lean)
        return forward(x.view_as(x), *more)  # the norm's gradients are summed before they meet the residual's

    return run


def _gated_mlp(layer: GatedMLP, notes: _Notes) -> Maker:
    def run(x: torch.Tensor) -> torch.Tensor:
        gate, up = layer.gate_proj(x), layer.up_proj(x)
        inner = notes.make(swiglu, gate, up, is_lean=True) if notes.is_open else swiglu(gate, up)
        down: torch.Tensor = layer.down_proj(inner)
        return down

    return run
