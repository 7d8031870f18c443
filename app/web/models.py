"""The base models that the key of a session may fine-tune."""

from __future__ import annotations

from typing import Any

from app.web.api_client import ApiClient


async def base_models(api: ApiClient) -> list[dict[str, Any]]:
    models = await api.get("models")
    return [model for model in models["data"] if not model["id"].startswith("ft:")]


async def base_model_names(api: ApiClient) -> list[str]:
    return [str(model["id"]) for model in await base_models(api)]
