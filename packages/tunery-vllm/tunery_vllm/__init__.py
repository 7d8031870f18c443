"""A LoRA resolver plugin for vLLM: adapters that Tunery has trained are found by their names."""

from __future__ import annotations

import logging
import os


def register() -> None:
    """Register the resolver; vLLM calls this in each of its processes. Raises SettingsError.

    vLLM loads every installed plugin unless VLLM_PLUGINS names some, so a server without any of the required variables
    starts without the resolver.
    """
    from tunery_vllm.settings import REQUIRED, load_settings

    if not any(os.environ.get(name) for name in REQUIRED):
        logging.getLogger("vllm.tunery").warning("the Tunery plugin is off: %s are not set", " and ".join(REQUIRED))
        return
    from vllm.lora.resolver import LoRAResolverRegistry

    from tunery_vllm.resolver import TuneryResolver

    LoRAResolverRegistry.register_resolver("Tunery", TuneryResolver.from_settings(load_settings(os.environ)))
