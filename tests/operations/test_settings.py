"""Settings of storage."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import REMOVED, Settings, load_settings, load_web_settings, removed_settings

REQUIRED = {"database_url": "postgresql://nowhere/x", "redis_url": "redis://nowhere"}
BUCKET = {"storage_url": "s3://bucket/prefix", "storage_access_key_id": "id", "storage_secret_access_key": "hidden"}


def test_storage_is_a_directory_of_the_data_directory_unless_a_url_names_another_place(tmp_path: Path) -> None:
    assert Settings(**REQUIRED, data_dir=tmp_path).storage_dir == tmp_path / "storage"
    elsewhere = Settings(**REQUIRED, data_dir=tmp_path, storage_url="file:///srv/files")
    assert (elsewhere.storage_dir, elsewhere.s3_location) == (Path("/srv/files"), None)


def test_a_bucket_has_its_staging_in_the_data_directory_and_redirects_only_if_they_are_set(tmp_path: Path) -> None:
    endpoint = {"storage_endpoint": "http://s3.internal:9000"}
    settings = Settings(**REQUIRED, **BUCKET, **endpoint, data_dir=tmp_path)
    location = settings.s3_location
    assert location is not None
    assert (location.bucket, location.prefix, location.secret_access_key) == ("bucket", "prefix", "hidden")
    assert (settings.storage_dir, location.redirect_endpoint) == (tmp_path / "storage", None)
    for names, expected in (
        ({}, "http://s3.internal:9000"),
        ({"storage_redirect_endpoint": "https://s3"}, "https://s3"),
    ):
        location = Settings(**REQUIRED, **BUCKET, **endpoint, **names, storage_redirects=True).s3_location
        assert location is not None
        assert location.redirect_endpoint == expected


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"storage_url": "bucket"}, "is no storage URL; allowed"),
        ({"storage_endpoint": "s3.internal"}, "'s3.internal' must begin with https:"),
        ({"storage_access_key_id": None}, "belong together"),
        ({"delivery_poll_seconds": 31}, "less than or equal to 30"),
    ],
)
def test_an_invalid_value_is_refused_without_showing_a_secret(changed: dict[str, str], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem) as caught:
        Settings(**(REQUIRED | BUCKET | changed))
    assert "hidden" not in str(caught.value)


def test_the_secret_is_in_no_text_of_the_settings() -> None:
    settings = Settings(**REQUIRED, **BUCKET)
    assert "hidden" not in repr(settings) + repr(settings.s3_location) + settings.model_dump_json()


@pytest.mark.parametrize(
    ("variables", "problems"),
    [
        ({"TUNERY_ENDPOINTS": "{old"}, ["TUNERY_ENDPOINTS: it is no JSON (", 'Write TUNERY_ENDPOINTS like {"judge"']),
        ({"TUNERY_ENDPOINTS": "[1]"}, ["TUNERY_ENDPOINTS must be a JSON object."]),
        (
            {"TUNERY_ENDPOINTS": '{"a": {"api_key": "hidden"}, "b": "hidden"}'},
            ["TUNERY_ENDPOINTS.a.base_url is not set; TUNERY_ENDPOINTS.b must be a JSON object."],
        ),
        (
            {"TUNERY_ENDPOINTS": '{"a": {"base_url": "hidden", "key": "hidden", "concurrency": 65}}'},
            [
                "a.base_url must begin with https:// or",
                'a.concurrency must be at most 64, not "65"',
                "a.key is not allowed",
            ],
        ),
        (
            {"TUNERY_METRICS_PORT": "x", "TUNERY_LABELS": "a b", "TUNERY_KEEP_ALIVE_SECONDS": "0"},
            ['_PORT must be a whole number, not "x"', "TUNERY_LABELS: 'a b': a label has", 'greater than 0, not "0"'],
        ),
        ({"TUNERY_OTLP_ENDPOINT": ""}, ["TUNERY_OTLP_ENDPOINT: '' must begin with https:// or http://"]),
        ({"DATABASE_URL": ""}, ["DATABASE_URL must begin with postgresql://, such as"]),
        ({"REDIS_URL": ""}, ["REDIS_URL is empty"]),
        ({"DATABASE_URL": "mysql://me:hidden@x/y"}, ["DATABASE_URL must begin with postgresql://, such as"]),
        ({"TUNERY_STORAGE_SECRET_ACCESS_KEY": "hidden"}, [": TUNERY_STORAGE_ACCESS_KEY_ID and TUNERY_STORAGE_SECRET"]),
    ],
)
def test_a_process_ends_with_the_variable_the_entry_and_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], problems: list[str]
) -> None:
    for name, value in ({"DATABASE_URL": "postgresql://x", "REDIS_URL": "redis://x"} | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        load_settings()
    text = str(caught.value)
    assert [problem for problem in problems if problem not in text] == [], text
    assert "hidden" not in text


def test_missing_variables_and_those_of_the_dashboard_have_their_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with pytest.raises(SystemExit, match="DATABASE_URL is"):
        load_settings()
    monkeypatch.setenv("TUNERY_WEB_PORT", "0")
    with pytest.raises(SystemExit, match="TUNERY_WEB_PORT must"):
        load_web_settings()


def test_settings_without_effect_are_named_with_what_replaces_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not {name.removeprefix("TUNERY_").lower() for name in REMOVED} & Settings.model_fields.keys()
    assert removed_settings({"TUNERY_DATA_DIR": "/x"}) == []
    (text,) = removed_settings({"TUNERY_HEADER_TIMEOUT_SECONDS": "5"})
    assert "client_header_timeout" in text
