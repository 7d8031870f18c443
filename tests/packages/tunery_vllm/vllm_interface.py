"""The parts of vLLM's interface that the plugin uses, as in vLLM 0.32: `vllm.lora.request` and `vllm.lora.resolver`.

The real vLLM has an environment of its own (`make test-serving`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from types import ModuleType


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""

    def __post_init__(self) -> None:
        if self.lora_int_id < 1:
            raise ValueError(f"id must be > 0, got {self.lora_int_id}")
        assert self.lora_path, "lora_path cannot be empty"


class LoRAResolver(ABC):
    @abstractmethod
    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None: ...


@dataclass
class Registry:
    resolvers: dict[str, LoRAResolver] = field(default_factory=dict)

    def register_resolver(self, resolver_name: str, resolver: LoRAResolver) -> None:
        self.resolvers[resolver_name] = resolver


def modules() -> dict[str, ModuleType]:
    """The modules by name, for `sys.modules`."""
    names = ("vllm", "vllm.lora", "vllm.lora.request", "vllm.lora.resolver")
    made = {name: ModuleType(name) for name in names}
    made["vllm.lora.request"].LoRARequest = LoRARequest  # type: ignore[attr-defined]
    made["vllm.lora.resolver"].LoRAResolver = LoRAResolver  # type: ignore[attr-defined]
    made["vllm.lora.resolver"].LoRAResolverRegistry = Registry()  # type: ignore[attr-defined]
    return made
