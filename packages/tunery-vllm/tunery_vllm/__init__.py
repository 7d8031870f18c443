"""A LoRA resolver plugin for vLLM: adapters that Tunery has trained are found by their names."""

from __future__ import annotations

import os


def register() -> None:
    """Register the resolver; vLLM calls this in each of its processes. Raises SettingsError."""
    from vllm.lora.resolver import LoRAResolverRegistry

    from tunery_vllm.resolver import TuneryResolver
    from tunery_vllm.settings import load_settings

    LoRAResolverRegistry.register_resolver("Tunery", TuneryResolver.from_settings(load_settings(os.environ)))
