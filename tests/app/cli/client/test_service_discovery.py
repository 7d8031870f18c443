from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.cli.client.service_discovery import find_database, find_service
from app.cli.errors import AccessDenied, CliError, UsageError

RUNNING = {"base_url": "http://127.0.0.1:4321", "database_url": "postgresql://here/tunery"}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """What a running `tunery up` leaves for the CLI."""
    (tmp_path / "runtime.json").write_text(json.dumps(RUNNING))
    (tmp_path / "admin-key").write_text("tnry_local\n")
    return tmp_path


class TestFindService:
    def test_a_running_stack_is_found_by_its_data_directory(self, data_dir: Path) -> None:
        found = find_service(None, data_dir)
        assert (found.base_url, found.api_key) == ("http://127.0.0.1:4321", "tnry_local")

    def test_the_environment_goes_first(self, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TUNERY_API_KEY", "tnry_mine")
        assert find_service(None, data_dir).api_key == "tnry_mine"

    def test_the_local_key_is_never_sent_to_another_server(self, data_dir: Path) -> None:
        assert find_service("https://gpu.example.com", data_dir).api_key is None

    def test_the_local_key_goes_with_its_own_address(self, data_dir: Path) -> None:
        assert find_service("http://127.0.0.1:4321/v1/", data_dir).api_key == "tnry_local"

    def test_in_a_container_of_the_api_the_key_is_that_of_its_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "secret").write_text("tnry_first\n")
        monkeypatch.setenv("TUNERY_ADMIN_KEY_FILE", str(tmp_path / "secret"))
        found = find_service(None, tmp_path / "none")
        assert (found.api_key, found.key_source) == ("tnry_first", str(tmp_path / "secret"))
        assert find_service("https://gpu.example.com", tmp_path / "none").api_key is None

    def test_the_default_is_the_address_of_tunery_up(self, tmp_path: Path) -> None:
        assert find_service(None, tmp_path / "none").base_url == "http://127.0.0.1:8000"

    @pytest.mark.parametrize("written", ["http://h:1", "http://h:1/", "http://h:1/v1", " http://h:1/v1/ "])
    def test_an_address_may_carry_the_v1_of_the_official_client(self, written: str, tmp_path: Path) -> None:
        assert find_service(written, tmp_path).base_url == "http://h:1"

    @pytest.mark.parametrize("written", ["localhost:8000", "ftp://h", "http://", "http://h:99999", "nonsense"])
    def test_something_else_than_an_address_is_a_usage_error(self, written: str, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="not the URL of a service"):
            find_service(written, tmp_path)

    def test_a_key_that_no_header_can_carry_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TUNERY_API_KEY", "ключ")
        with pytest.raises(AccessDenied):
            find_service(None, tmp_path)


class TestFindDatabase:
    def test_the_environment_goes_first(self, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DATABASE_URL", "postgresql://there/tunery")
        assert find_database(data_dir) == "postgresql://there/tunery"

    def test_else_it_is_the_running_stack(self, data_dir: Path) -> None:
        assert find_database(data_dir) == RUNNING["database_url"]

    def test_without_any_the_error_names_what_to_set(self, tmp_path: Path) -> None:
        with pytest.raises(CliError, match="DATABASE_URL is not set"):
            find_database(tmp_path)
