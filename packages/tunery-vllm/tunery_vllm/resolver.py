"""The resolver that vLLM asks for a model that it has not loaded."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from vllm.lora.request import LoRARequest
from vllm.lora.resolver import LoRAResolver

from tunery_vllm.adapters import AdapterCache, DamagedAdapter, read_manifest
from tunery_vllm.service import AccessRefused, Service, ServiceUnavailable, UnknownModel
from tunery_vllm.settings import Settings

PREFIX = "ft:"
MAX_NAME_CHARACTERS = 512

log = logging.getLogger("vllm.tunery")  # below vLLM's own logger, which has the handlers


class OtherBaseModel(Exception):
    """The adapter was trained on another base model than the served one."""


class TuneryResolver(LoRAResolver):
    """None stands for vLLM's 404; the log says why."""

    def __init__(self, service: Service, cache: AdapterCache, base_model: str | None = None) -> None:
        self._service = service
        self._cache = cache
        self._base_model = base_model

    @classmethod
    def from_settings(cls, settings: Settings) -> TuneryResolver:
        service = Service(settings.base_url, settings.api_key, settings.timeout_seconds)
        return cls(service, AdapterCache(settings.cache_directory), settings.base_model)

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """The request that loads the adapter. vLLM calls this once at a time for each name."""
        if not lora_name.startswith(PREFIX) or len(lora_name) > MAX_NAME_CHARACTERS:
            return None
        directory = await asyncio.to_thread(self._resolve, base_model_name, lora_name)
        if directory is None:
            return None
        return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(directory))  # vLLM sets its own id

    def _resolve(self, served_model: str, name: str) -> Path | None:
        try:
            directory = self._fetch(name)
            if directory is not None:
                self._require_base(directory, served_model)
        except (OtherBaseModel, DamagedAdapter, OSError) as error:
            log.error("%s is not served: %s", name, error)
            return None
        return directory

    def _fetch(self, name: str) -> Path | None:
        """The adapter's directory: as Tunery names it now, or from the cache while Tunery is unavailable."""
        try:
            archive = self._service.find(name)
            directory = self._cache.directory_of(archive.sha256, lambda path: self._service.download(archive, path))
        except UnknownModel as error:
            self._cache.forget(name)
            log.info("%s is not an adapter of Tunery: %s", name, error)
        except AccessRefused as error:
            log.error("%s is not served, because Tunery refuses the key: %s", name, error)
        except ServiceUnavailable as error:
            directory = self._cache.remembered(name)
            source = "not served" if directory is None else "served from the cache"
            log.warning("%s is %s, because Tunery is unavailable: %s", name, source, error)
            return directory
        else:
            self._cache.remember(name, archive.sha256)
            return directory
        return None

    def _require_base(self, directory: Path, served_model: str) -> None:
        """Raises OtherBaseModel, OSError."""
        trained_on = read_manifest(directory).get("base_model", {})
        if self._base_model is not None:
            if trained_on.get("name") != self._base_model:
                raise OtherBaseModel(
                    f"it was trained on {trained_on.get('name')!r}, but TUNERY_BASE_MODEL is {self._base_model!r}"
                )
            return
        if not Path(served_model).is_dir():
            raise OtherBaseModel(
                f"--model {served_model!r} is not a directory, so its files cannot be compared with those of the "
                f"training: set TUNERY_BASE_MODEL to its name in Tunery, here {trained_on.get('name')!r}"
            )
        sha256 = self._cache.base_manifest_sha256(Path(served_model))
        if sha256 != trained_on.get("manifest_sha256"):
            raise OtherBaseModel(
                f"it was trained on {trained_on.get('name')!r}, whose files are not those of {served_model} (SHA-256 "
                f"{str(trained_on.get('manifest_sha256'))[:12]} and {sha256[:12]}); if the directory only has "
                "additional files, set TUNERY_BASE_MODEL"
            )
