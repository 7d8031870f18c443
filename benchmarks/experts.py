"""Time and operations of one layer of experts, forward and backward, beside transformers' own eager loop.

    nice python -m benchmarks.experts            64 experts, 8 a token, 2,048 tokens, rank 16, in float32

It prints the ratio of the processor times of one thread (the shortest of three each, alternating), and the operations
that the layer calls: on a GPU each is a kernel or a few, and a grouped product is one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from app.domain.jobs.spec import LoraSpec, QuantizationSpec
from worker.trainer.adapter.lora import AdapterSwitch, make_adapter
from worker.trainer.kernels.kernels import choose_kernels
from worker.trainer.model.experts import NAME, freeze_experts

EXPERTS, CHOSEN, TOKENS, HIDDEN, INNER, RANK = 64, 8, 2048, 256, 128, 16
FORMATS = {"16 bits": None, "nf4": QuantizationSpec(compute_dtype="float32")}


def layer() -> Any:
    config = Qwen3MoeConfig(num_experts=EXPERTS, hidden_size=HIDDEN, moe_intermediate_size=INNER)
    torch.manual_seed(0)
    module = Qwen3MoeExperts(config)
    module.config._experts_implementation = "eager"
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0, 0.02)
        parameter.requires_grad_(False)
    return module


def frozen_layer(quantization: QuantizationSpec | None, *, adapted: bool) -> tuple[Any, AdapterSwitch]:
    module, switch = layer(), AdapterSwitch()
    module.config._experts_implementation = NAME
    names = [name for name, _ in module.named_parameters()]
    frozen = {
        name: freeze_experts(module, name, name, module._parameters[name].data, switch, quantization, torch.float32)
        for name in names
    }
    if adapted:
        lora = LoraSpec(r=RANK, alpha=RANK, target_modules=(), target_parameters=tuple(names))
        switch.active = make_adapter(lora, 0, {}, choose_kernels(torch.device("cpu")), frozen)
    return module, switch


def step(module: Any) -> Callable[[], None]:
    generator = torch.Generator().manual_seed(0)
    hidden_T_K = torch.randn(TOKENS, HIDDEN, generator=generator).requires_grad_()
    weights_T_C, experts_T_C = torch.rand(TOKENS, EXPERTS, generator=generator).topk(CHOSEN)

    def run() -> None:
        module(hidden_T_K, experts_T_C, weights_T_C).square().sum().backward()

    return run


def seconds(run: Callable[[], None]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations in the block, without those that an operation of torch calls itself."""

    count: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(run: Callable[[], None]) -> int:
    counter = Counter()  # type: ignore[no-untyped-call]
    with counter:
        run()
    return counter.count


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.experts", description=__doc__).parse_args()
    torch.set_num_threads(1)
    plain = step(layer())
    for name, quantization in FORMATS.items():
        for adapted in (False, True):
            run = step(frozen_layer(quantization, adapted=adapted)[0])
            run(), plain()
            times = [(seconds(run), seconds(plain)) for _ in range(3)]
            ours, theirs = map(min, zip(*times, strict=True))
            kind = "adapted" if adapted else "frozen"
            print(
                f"{name:8}{kind:8} {ours:.2f} s, {ours / theirs:.2f} of transformers' eager loop in float32 "
                f"({theirs:.2f} s); {operations(run):,} operations, transformers {operations(plain):,}"
            )


if __name__ == "__main__":
    main()
