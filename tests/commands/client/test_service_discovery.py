"""Which service, key and database a command finds: by its options, the environment, or the data directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.cli.client.service_discovery import find_database, find_service
from app.cli.errors import AccessDenied, CliError, ServiceUnreachable, UsageError
from tests.sentences import Reviewed

RUNNING = {"base_url": "http://127.0.0.1:4321", "database_url": "postgresql://here/tunery"}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """What a running `tunery up` leaves for the CLI."""
    (tmp_path / "runtime.json").write_text(json.dumps(RUNNING))
    (tmp_path / "admin-key").write_text("tnry_local\n")
    return tmp_path


def test_a_running_stack_is_found_by_its_data_directory(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_service(None, data_dir)
    assert (found.base_url, found.api_key) == ("http://127.0.0.1:4321", "tnry_local")
    assert find_service("http://127.0.0.1:4321/v1/", data_dir).api_key == "tnry_local"
    assert find_database(data_dir) == RUNNING["database_url"]
    monkeypatch.setenv("TUNERY_API_KEY", "tnry_mine")
    monkeypatch.setenv("DATABASE_URL", "postgresql://there/tunery")
    assert find_service(None, data_dir).api_key == "tnry_mine"
    assert find_database(data_dir) == "postgresql://there/tunery"


def test_a_stopped_stack_is_not_replaced_by_what_listens_on_the_default_port(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data_dir / "runtime.json").unlink()
    (data_dir / "up.lock").touch()
    for _ in range(2):
        with pytest.raises(ServiceUnreachable):
            find_service(None, data_dir)
        monkeypatch.setenv("TUNERY_API_KEY", "tnry_mine")
    assert find_service("https://gpu.example.com", data_dir).api_key == "tnry_mine"


def test_a_local_key_is_never_sent_to_another_server(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_service("https://gpu.example.com", data_dir).api_key is None
    secret = data_dir / "secret"
    secret.write_text("tnry_first\n")
    monkeypatch.setenv("TUNERY_ADMIN_KEY_FILE", str(secret))  # in a container
    assert find_service(None, data_dir).api_key == "tnry_local"
    (data_dir / "runtime.json").unlink()
    (data_dir / "up.lock").touch()  # of an earlier `tunery up`, as its key
    for place in (data_dir, data_dir / "none"):
        found = find_service(None, place)
        assert (found.base_url, found.api_key) == ("http://127.0.0.1:8000", "tnry_first")
        assert found.key_source == str(secret)
    assert find_service("https://gpu.example.com", data_dir / "none").api_key is None


@pytest.mark.parametrize("written", [None, "http://h:1", "http://h:1/", " http://h:1/v1/ "])
def test_an_address_may_have_the_v1_of_the_official_client(written: str | None, tmp_path: Path) -> None:
    assert find_service(written, tmp_path).base_url == ("http://h:1" if written else "http://127.0.0.1:8000")


@pytest.mark.parametrize("written", ["localhost:8000", "ftp://h", "http://", "http://h:99999", "nonsense"])
def test_another_text_than_an_address_is_a_usage_error(written: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        find_service(written, tmp_path)


def test_a_key_that_no_header_can_carry_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNERY_API_KEY", "ключ")
    with pytest.raises(AccessDenied):
        find_service(None, tmp_path)


def test_a_missing_database_is_an_error_that_says_what_to_set(tmp_path: Path, reviewed: Reviewed) -> None:
    with pytest.raises(CliError) as error:
        find_database(tmp_path)
    reviewed(str(error.value).replace(str(tmp_path), "HERE"))
