"""The URL of storage."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.domain.storage_location import parse_storage_url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket", ("bucket", "")),
        ("s3://bucket/", ("bucket", "")),
        ("s3://my.bucket-1/team_a/tunery/", ("my.bucket-1", "team_a/tunery")),
        ("file:///srv/tunery", Path("/srv/tunery")),
        ("file:///srv/a%20b", Path("/srv/a b")),
    ],
)
def test_names_a_bucket_with_a_prefix_or_a_directory(url: str, expected: object) -> None:
    assert parse_storage_url(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "bucket",
        "/srv/tunery",
        "file:relative",
        "file://host/srv",
        "s3://",
        "s3://b",
        "s3:///prefix",
        "s3://bucket/../other",
        "s3://bucket/a b",
        "s3://bucket/a//b",
        "s3://bucket?region=x",
        "gs://bucket",
        "https://s3.example.com/bucket",
    ],
)
def test_every_other_url_is_refused_with_the_allowed_forms(url: str) -> None:
    with pytest.raises(ValueError, match="file:///DIRECTORY"):
        parse_storage_url(url)
