"""Activation checkpointing: the backward recomputes activations instead of keeping them; equal to the bit.

    nothing       every activation is kept
    elementwise   outputs of matrix products and attention are kept; norms and the gated product are recomputed
    layers        the first k decoder layers keep only their input; the others are element-wise
    everything    every decoder layer keeps only its input (arXiv 1604.06174), on the device or in host memory

A recomputed layer may also tile its gated MLP (arXiv 2506.13996), equal within rounding: gate, up, their product and
the gradients, the largest tensors of the layer, then exist for one chunk of tokens. Dropout draws its masks by chunk,
so they differ from those of the whole. Experts are not tiled: each chunk would dequantize the weights of all of them.

The second forward of a layer needs the same state as the first. Two parts of it are not among its arguments: the active
adapter (`AdapterSwitch.active`), and the state of the dropout generator. The first forward saves both, and the second
restores them. Element-wise recomputation uses neither.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from app.domain.planning.execution_plan import Recompute
from app.domain.planning.memory import GATED_MLP_LAYERS
from worker.trainer.adapter.lora import AdapterSwitch, kept_state
from worker.trainer.adapter.modules_to_save import ModuleToSave
from worker.trainer.kernels.modules import GatedMLP, RMSNorm
from worker.trainer.memory.hosted_embedding import HostedEmbedding
from worker.trainer.model.base_model import FrozenBase

Compute = Callable[..., torch.Tensor]


class Recomputation:
    """Wraps the forward of every decoder layer; `mode` may change between two steps."""

    def __init__(self, base: FrozenBase) -> None:
        self.mode: Recompute = "nothing"
        self.recomputed_layers = 0  # the first so many
        self.offload = False
        self.mlp_chunk_tokens = 0
        self.layers = decoder_layers(base.model)
        self.embedding = HostedEmbedding(base)
        self._switch = base.switch
        self._hooks = _SavedTensorHooks()
        # An autograd function runs its backward only if an input requires a gradient. The input of the first layer does
        # not, although the adapter in the layer does, so this empty tensor is passed as well.
        self._gradient_anchor = torch.empty(0, requires_grad=True)
        names = {module: name for name, module in base.model.named_modules()}
        for index, layer in enumerate(self.layers):
            for module, attribute, function in _elementwise_functions(layer, self._hooks):
                base.patches.put_attribute(module, attribute, function, names[module])
            for mlp in gated_mlps(layer):
                base.patches.put_attribute(mlp, "forward", self._wrap_mlp(index, mlp.forward), names[mlp])
            base.patches.put_attribute(layer, "forward", self._wrap_layer(index, layer.forward), names[layer])

    @property
    def can_tile(self) -> bool:
        """Return whether a layer has a gated MLP, which may run over chunks of tokens."""
        return any(gated_mlps(layer) for layer in self.layers)

    def set(
        self, mode: Recompute, recomputed_layers: int = 0, *, offload: bool = False, mlp_chunk_tokens: int = 0
    ) -> None:
        """Set the mode from the next forward on; `recomputed_layers` counts only in the mode "layers".

        With `offload` the inputs of the recomputed layers wait for the backward in host memory, and the embedding is
        there. The layers' gated MLPs run over `mlp_chunk_tokens` at once; 0: over all.
        """
        self.embedding.set(in_host_memory=offload)
        self.mode, self.offload, self.mlp_chunk_tokens = mode, offload, mlp_chunk_tokens
        self.recomputed_layers = {"layers": recomputed_layers, "everything": len(self.layers)}.get(mode, 0)

    def free(self) -> None:
        """Free the last recomputed tensor, after an error in a step."""
        self._hooks.free()

    def _wrap_layer(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(hidden: torch.Tensor, *inputs: Any, **options: Any) -> Any:
            if self.mode == "nothing" or not torch.is_grad_enabled():
                return forward(hidden, *inputs, **options)
            if index >= self.recomputed_layers:
                with self._hooks.opened():
                    return forward(hidden, *inputs, **options)

            def layer(hidden: torch.Tensor) -> torch.Tensor:
                output = forward(hidden, *inputs, **options)
                hidden_states: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
                return hidden_states

            return self._recomputed(layer, hidden, offload=self.offload)

        return run

    def _wrap_mlp(self, index: int, forward: Compute) -> Compute:
        def run(x: torch.Tensor) -> torch.Tensor:
            if not self.mlp_chunk_tokens or index >= self.recomputed_layers:
                return forward(x)
            compute = recomputed if torch.is_grad_enabled() else forward
            chunks = torch.split(x, self.mlp_chunk_tokens, dim=-2)
            return torch.cat([compute(chunk) for chunk in chunks], dim=-2)

        def recomputed(chunk: torch.Tensor) -> torch.Tensor:
            return self._recomputed(forward, chunk, offload=False)

        return run

    def _recomputed(self, compute: Compute, hidden: torch.Tensor, *, offload: bool) -> torch.Tensor:
        """Return `compute(hidden)`; autograd keeps only `hidden`."""
        as_now = _as_now(self._switch)
        output: torch.Tensor = _RecomputedLayer.apply(hidden, self._gradient_anchor, compute, as_now, offload)  # type: ignore[no-untyped-call]
        return output


def gated_mlps(layer: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the modules of a decoder layer with a gate, an up and a down projection."""
    return [module for module in layer.modules() if all(hasattr(module, name) for name in GATED_MLP_LAYERS)]


def decoder_layers(model: Any) -> Sequence[torch.nn.Module]:
    """Return the decoder layers that can be recomputed. Empty if they are not known.

    Also empty if a layer has other inputs with a gradient than the hidden states, which recomputation would lose:
    embeddings of each layer, or keys and values of an earlier layer (Gemma 3n and 4).
    """
    config = model.config.get_text_config()
    if getattr(config, "hidden_size_per_layer_input", 0) or getattr(config, "num_kv_shared_layers", 0):
        return ()
    return layer_stack(model)


def layer_stack(model: Any) -> Sequence[torch.nn.Module]:
    """Return the module list of the text model that has as many modules as its config has layers; empty without one."""
    config = model.config.get_text_config()
    count = getattr(config, "num_hidden_layers", 0)
    stacks = (each for each in model.get_decoder().modules() if isinstance(each, torch.nn.ModuleList))
    return list(next((stack for stack in stacks if len(stack) == count), ()))


class _RecomputedLayer(torch.autograd.Function):
    """Run a layer, a norm, or the MLP of a layer for a chunk of tokens, and keep only the input.

    torch.utils.checkpoint does the same, but loads the compiler: 40 MB.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        _gradient_anchor: torch.Tensor | None,
        layer: Compute,
        as_in_forward: Callable[[], AbstractContextManager[None]],
        offload: bool,
    ) -> torch.Tensor:
        ctx.layer, ctx.as_in_forward, ctx.device = layer, as_in_forward, hidden.device
        ctx.save_for_backward(_host_copy(hidden) if offload else hidden)
        with torch.enable_grad():  # adapted layers apply dropout only if gradients are enabled
            return layer(hidden.detach()).detach()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None, None]:
        hidden = ctx.saved_tensors[0].detach().to(ctx.device, non_blocking=True)
        hidden.requires_grad_(ctx.needs_input_grad[0])
        with ctx.as_in_forward(), torch.enable_grad():
            output = ctx.layer(hidden)
        torch.autograd.backward(output, gradient)  # accumulates into the adapter's weights and into `hidden`
        return hidden.grad, None, None, None, None


def _host_copy(hidden: torch.Tensor) -> torch.Tensor:
    """Return a copy in host memory: pinned for a GPU, because a copy to other memory has a tenth of the speed.

    It is made on the stream of the computation: for a long document it takes a thirtieth of the layer's time.
    """
    copy = torch.empty_like(hidden, device="cpu", pin_memory=not hidden.is_cpu)
    return copy.copy_(hidden.detach(), non_blocking=copy.is_pinned())


def _as_now(switch: AdapterSwitch) -> Callable[[], AbstractContextManager[None]]:
    """Save the active adapter and its dropout generator's state; return a context that has both for a second run."""
    adapter = switch.active
    generator = adapter.generator if adapter and adapter.dropout else None
    state = generator.get_state() if generator else None

    @contextmanager
    def restored() -> Iterator[None]:
        with switch.on(adapter), kept_state(generator, state) if generator else nullcontext():
            yield

    return restored


# --- element-wise recomputation ---------------------------------------------------------------------------------------


class _RecomputedTensor:
    """A function and its inputs, which autograd keeps in place of the output."""

    def __init__(self, compute: Compute, inputs: Sequence[torch.Tensor], output: torch.Tensor) -> None:
        self.compute = compute
        self.inputs = [each.detach() for each in inputs]
        self.size = output.numel()
        self.pending_uses = 0  # operations that saved it and have not run backward yet
        self._output = weakref.ref(output)

    def matches(self, tensor: torch.Tensor) -> bool:
        """Return whether `tensor`, which has the address of the output, is a view of the complete output.

        Once the output is freed, another tensor may have its address.
        """
        return self._output() is not None and tensor.numel() == self.size and tensor.is_contiguous()


class _SavedTensorHooks:
    """While a layer runs, autograd saves a `_RecomputedTensor` in place of each recomputed output."""

    def __init__(self) -> None:
        self.is_open = False
        self._recomputed: dict[int, _RecomputedTensor] = {}  # by the address of the output
        self._last: tuple[_RecomputedTensor, torch.Tensor] | None = None  # q, k and v need the same tensor in turn

    @contextmanager
    def opened(self) -> Iterator[None]:
        self.is_open, self._last = True, None
        try:
            with saved_tensors_hooks(self._pack, self._unpack):
                yield
        finally:
            self.is_open = False
            self._recomputed.clear()

    def run(self, compute: Compute, *inputs: torch.Tensor, keeps_only_inputs: bool = False) -> torch.Tensor:
        """Return `compute(*inputs)`; autograd keeps only the inputs.

        `keeps_only_inputs` marks operations that do so themselves (kernels/modules.py); others have one input.
        """
        if keeps_only_inputs:
            output: torch.Tensor = compute(*inputs)
        else:
            output = _RecomputedLayer.apply(*inputs, None, compute, nullcontext, False)  # type: ignore[no-untyped-call]
        self._recomputed[output.untyped_storage().data_ptr()] = _RecomputedTensor(compute, inputs, output)
        return output

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor | tuple[_RecomputedTensor, torch.Size]:
        recomputed = self._recomputed.get(tensor.untyped_storage().data_ptr())
        if recomputed is None or not recomputed.matches(tensor):
            return tensor
        recomputed.pending_uses += 1
        return recomputed, tensor.shape

    def _unpack(self, packed: torch.Tensor | tuple[_RecomputedTensor, torch.Size]) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        recomputed, shape = packed
        if self._last is None or self._last[0] is not recomputed:
            self._last = None  # frees the previous tensor before the next is computed
            with torch.no_grad():
                self._last = recomputed, recomputed.compute(*recomputed.inputs)
        output = self._last[1].view(shape)
        recomputed.pending_uses -= 1
        if not recomputed.pending_uses:
            self.free()  # otherwise the last one of a backward would stay until the next forward
        return output

    def free(self) -> None:
        """Free the last recomputed tensor: after an error in a backward, its pending uses do not happen."""
        self._last = None


def _elementwise_functions(
    layer: torch.nn.Module, hooks: _SavedTensorHooks
) -> Iterator[tuple[torch.nn.Module, str, Compute]]:
    """Yield (module, attribute, function) of norms (classes whose name ends with "Norm") and products of `GatedMLP`.

    The functions recompute. modules_to_save are excluded: recomputation would use the frozen weight, and give the
    trained one no gradient.
    """
    trained = {id(module.frozen) for module in layer.modules() if isinstance(module, ModuleToSave)}
    for module in layer.modules():
        if type(module).__name__.endswith("Norm") and id(module) not in trained:
            yield module, "forward", _norm(module.forward, hooks, keeps_only_inputs=isinstance(module, RMSNorm))
        elif isinstance(module, GatedMLP):
            yield module, "product", _product(module.product, hooks)


def _norm(forward: Compute, hooks: _SavedTensorHooks, *, keeps_only_inputs: bool) -> Compute:
    def run(x: torch.Tensor, *others: Any) -> torch.Tensor:
        if hooks.is_open and not others:
            return hooks.run(forward, x, keeps_only_inputs=keeps_only_inputs)
        return forward(x.view_as(x), *others)  # the same order of gradient sums as with recomputation

    return run


def _product(product: Compute, hooks: _SavedTensorHooks) -> Compute:
    def run(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return hooks.run(product, gate, up, keeps_only_inputs=True) if hooks.is_open else product(gate, up)

    return run
