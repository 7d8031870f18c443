from __future__ import annotations

from pathlib import Path

import pytest
from tunery_vllm import register
from tunery_vllm.settings import SettingsError, load_settings

from tests.sentences import Reviewed

COMPLETE = {"TUNERY_BASE_URL": "http://tunery:8000/v1/", "TUNERY_API_KEY": "tnry_secret"}


def test_the_address_may_be_the_base_url_of_a_client() -> None:
    settings = load_settings(COMPLETE | {"XDG_CACHE_HOME": "/cache"})
    assert settings.base_url == "http://tunery:8000"
    assert settings.cache_directory == Path("/cache/tunery-vllm")
    assert load_settings(COMPLETE | {"TUNERY_ADAPTER_CACHE": "/a"}).cache_directory == Path("/a")


def test_all_problems_are_named_at_once(reviewed: Reviewed) -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings({"TUNERY_BASE_URL": "tunery:8000", "TUNERY_TIMEOUT_SECONDS": "soon"})
    message = str(raised.value)
    reviewed(message)
    assert "TUNERY_BASE_URL is 'tunery:8000'" in message
    assert "TUNERY_TIMEOUT_SECONDS is 'soon'" in message


def test_the_key_is_not_in_the_text_of_the_settings() -> None:
    assert "tnry_secret" not in repr(load_settings(COMPLETE))


def test_vllm_gets_one_resolver_of_two_registrations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (COMPLETE | {"TUNERY_ADAPTER_CACHE": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    register()
    register()
    from vllm.lora.resolver import LoRAResolverRegistry  # type: ignore[import-not-found]

    assert list(LoRAResolverRegistry.resolvers) == ["Tunery"]


def test_a_server_without_the_variables_starts_without_the_plugin(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reviewed: Reviewed
) -> None:
    for name in COMPLETE:
        monkeypatch.delenv(name, raising=False)
    register()
    from vllm.lora.resolver import LoRAResolverRegistry  # type: ignore[import-not-found]

    assert LoRAResolverRegistry.resolvers == {}
    assert "plugin is off" in caplog.text
    monkeypatch.setenv("TUNERY_API_KEY", "tnry_secret")
    with pytest.raises(SettingsError) as caught:
        register()
    reviewed(str(caught.value))
