"""`tunery login`, profiles and `tunery whoami`, in a terminal and without one."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from app.cli.client import profiles
from app.cli.client.service_discovery import find_service
from app.cli.errors import UsageError
from app.settings import Settings
from tests.commands.conftest import Tunery
from tests.serving import LiveServer
from tests.terminal import COLOR, in_terminal

PROD = profiles.ServiceProfile("https://gpu.example.com", "tnry_prod")


@pytest.fixture
def settings(settings: Settings) -> Settings:
    secret_keys = type(settings.secret_keys)(Fernet.generate_key().decode())
    return settings.model_copy(update={"secret_keys": secret_keys})


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "tunery" / "config.toml"


@pytest.fixture
def stored(config: Path) -> Path:
    profiles.store_profile("default", profiles.ServiceProfile("http://127.0.0.1:7777", "tnry_default"))
    profiles.store_profile("prod", PROD)
    return config


def test_login_asks_for_url_and_key_and_shows_no_key(
    live_server: LiveServer, api_key: str, config: Path, bare_tunery: Tunery, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = in_terminal(["login"], [("URL of the service", f"{live_server.root}/v1/"), ("API key", api_key)])
    assert shown.exit_code == 0, shown.text
    assert api_key not in shown.text
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert [path.name for path in config.parent.iterdir()] == ["config.toml"]
    monkeypatch.delenv("TUNERY_DATA_DIR")
    who = bare_tunery("whoami", "--json").json
    assert (who["server"], who["project"], who["profile"]) == (live_server.root, "default", "default")
    assert (who["scopes"] != [], who["key"] in api_key.replace("tnry_", "key_")) == (True, True)


def test_a_key_that_the_service_refuses_is_not_stored(
    live_server: LiveServer, api_key: str, config: Path, bare_tunery: Tunery
) -> None:
    done = bare_tunery("login", "--base-url", live_server.root, env={"TUNERY_API_KEY": "tnry_wrong"})
    assert (done.exit_code, config.exists()) == (4, False)
    done = bare_tunery("login", "--base-url", "http://127.0.0.1:1", env={"TUNERY_API_KEY": api_key})
    assert (done.exit_code, config.exists()) == (1, False)


def test_without_a_terminal_nothing_is_asked_and_all_that_is_missing_is_named(
    live_server: LiveServer, api_key: str, config: Path, bare_tunery: Tunery
) -> None:
    done = bare_tunery("login", input="http://127.0.0.1:1\nkey\n")
    assert (done.exit_code, "--base-url" in done.err, "TUNERY_API_KEY" in done.err) == (2, True, True)
    named = bare_tunery("login", "--base-url", live_server.root, "--profile", "ci", env={"TUNERY_API_KEY": api_key})
    assert named.exit_code == 0, named.err
    assert api_key not in named.out + named.err
    assert profiles.read_profiles() == {"ci": profiles.ServiceProfile(live_server.root, api_key)}


@pytest.mark.parametrize("name", ["a b", "", "x" * 65, "a.b", "a]\n[profiles.default"])
def test_a_name_that_the_file_cannot_hold_is_refused(config: Path, bare_tunery: Tunery, name: str) -> None:
    done = bare_tunery("login", "--base-url", "http://h", "--profile", name, env={"TUNERY_API_KEY": "k"})
    if name:
        assert (done.exit_code, "--profile" in done.err) == (2, True)
    assert not config.exists()


def test_an_option_precedes_the_environment_a_profile_and_the_local_service(
    stored: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TUNERY_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    found = find_service(None, None)
    assert (found.base_url, found.api_key, found.profile) == ("http://127.0.0.1:7777", "tnry_default", "default")
    found = find_service(None, None, "prod")
    assert (found.base_url, found.api_key) == PROD
    assert find_service(None, tmp_path).base_url == "http://127.0.0.1:8000"  # a data directory is named
    assert find_service("https://other.example.com", None, "prod").api_key is None
    monkeypatch.setenv("TUNERY_API_KEY", "tnry_environment")
    monkeypatch.setenv("TUNERY_BASE_URL", "https://staging.example.com")
    found = find_service("https://staging.example.com", None)
    assert (found.base_url, found.api_key) == ("https://staging.example.com", "tnry_environment")
    found = find_service("https://staging.example.com", None, "prod")
    assert (found.base_url, found.api_key) == PROD
    monkeypatch.setenv("TUNERY_PROFILE", "prod")  # of the environment, as the URL
    found = find_service("https://staging.example.com", None, "prod")
    assert (found.base_url, found.api_key) == ("https://staging.example.com", "tnry_environment")


def test_an_unknown_profile_is_a_usage_error_that_names_those_stored(stored: Path, bare_tunery: Tunery) -> None:
    done = bare_tunery("whoami", "--profile", "nope")
    assert (done.exit_code, "--profile" in done.err, "prod" in done.err) == (2, True, True)
    assert bare_tunery("whoami", env={"TUNERY_PROFILE": "nope"}).exit_code == 2


def test_secrets_of_a_profile_are_rotated_at_its_service_and_not_in_the_database_of_this_machine(
    operator: Tunery, live_server: LiveServer, api_key: str, config: Path, tmp_path: Path
) -> None:
    profiles.store_profile("remote", profiles.ServiceProfile(live_server.root, api_key))
    runtime = {"base_url": "http://127.0.0.1:1", "database_url": "postgresql://127.0.0.1:1/none"}
    (tmp_path / "runtime.json").write_text(json.dumps(runtime))
    environment = {"TUNERY_BASE_URL": "", "TUNERY_API_KEY": ""}
    done = operator("secrets", "rotate", "--profile", "remote", "--data-dir", tmp_path, env=environment)
    assert done.exit_code == 0, done.err


def test_the_rotated_key_of_a_profile_replaces_the_stored_one(
    operator: Tunery, live_server: LiveServer, api_key: str, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TUNERY_DATA_DIR", "TUNERY_BASE_URL", "TUNERY_API_KEY"):
        monkeypatch.delenv(name)
    for name, profile in {"default": profiles.ServiceProfile(live_server.root, api_key), "prod": PROD}.items():
        profiles.store_profile(name, profile)
    other = operator("keys", "create", "--project", "default", "--json").json["id"]
    assert operator("keys", "rotate", other).exit_code == 0
    assert profiles.read_profiles()["default"].api_key == api_key
    rotated = operator("keys", "rotate", operator("whoami", "--json").json["key"], "--overlap", "0s", "--json").json
    stored = profiles.ServiceProfile(live_server.root, rotated["value"])
    assert profiles.read_profiles() == {"default": stored, "prod": PROD}
    assert operator("whoami").exit_code == 0


@pytest.mark.parametrize(
    "text",
    [
        "[profiles",
        "x = 1",
        "profiles = 3",
        "[profiles]\ndefault = 1",
        "[profiles.default]\napi_key = 'k'",
        "#" * 70_000,
    ],
)
def test_a_damaged_file_is_named_and_never_overwritten(config: Path, text: str) -> None:
    config.parent.mkdir(parents=True)
    config.write_text(text)
    with pytest.raises(UsageError, match=r"config\.toml"):
        profiles.store_profile("default", PROD)
    assert config.read_text() == text


def test_a_profile_is_stored_whole_or_not_at_all(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stored.read_text()

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        profiles.store_profile("new", PROD)
    assert stored.read_text() == before


def test_colours_are_shown_in_a_terminal_and_not_with_no_color() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm-256color"}
    wrong = ["jobs", "list", "--limit", "0"]
    shown = in_terminal(wrong, environment=environment)
    assert (shown.exit_code, "--limit" in COLOR.sub("", shown.text), bool(COLOR.search(shown.text))) == (2, True, True)
    plain = in_terminal(wrong, environment=environment | {"NO_COLOR": "1"})
    assert (plain.exit_code, "--limit" in COLOR.sub("", plain.text)) == (2, True)
    assert not colours(plain.text)


def colours(text: str) -> list[str]:
    """The escape sequences that set a colour; bold, dim and the reset are none."""
    return [code for code in COLOR.findall(text) if any(30 <= int(n or 0) <= 107 for n in code[2:-1].split(";"))]
