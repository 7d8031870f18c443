"""The plugin's environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

REQUIRED = ("TUNERY_BASE_URL", "TUNERY_API_KEY")


class SettingsError(ValueError):
    """Environment variables are missing or wrong; the message names each."""


@dataclass(frozen=True)
class Settings:
    base_url: str  # without /v1
    api_key: str = field(repr=False)
    cache_directory: Path
    base_model: str | None = None  # the registered name of the served base model
    timeout_seconds: float = 10.0


def load_settings(environment: Mapping[str, str]) -> Settings:
    """Raises SettingsError."""
    problems = [f"{name} is not set" for name in REQUIRED if not environment.get(name)]
    base_url = environment.get("TUNERY_BASE_URL", "").rstrip("/").removesuffix("/v1")
    if base_url and not base_url.startswith(("http://", "https://")):
        problems.append(f"TUNERY_BASE_URL is {base_url!r}; it must begin with http:// or https://")
    timeout = environment.get("TUNERY_TIMEOUT_SECONDS") or "10"
    try:
        timeout_seconds = float(timeout)
    except ValueError:
        timeout_seconds = 0.0
    if not timeout_seconds > 0:
        problems.append(f"TUNERY_TIMEOUT_SECONDS is {timeout!r}; it must be a number above 0")
    if problems:
        raise SettingsError("; ".join(problems))
    cache = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tunery-vllm"
    return Settings(
        base_url=base_url,
        api_key=environment["TUNERY_API_KEY"],
        cache_directory=Path(environment.get("TUNERY_ADAPTER_CACHE") or cache),
        base_model=environment.get("TUNERY_BASE_MODEL") or None,
        timeout_seconds=timeout_seconds,
    )
