from __future__ import annotations

import pytest

from app.api.transport.json_body import parse_json_object
from app.errors import BadRequest


class TestParseJsonObject:
    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            (b"", "not valid JSON"),
            (b"{", "not valid JSON"),
            (b'{"a": NaN}', "NaN is not JSON"),
            (b'{"a": 1e999}', "too large"),
            (b'{"a": 1, "a": 2}', "appears twice"),
            (b'{"a": ' + b"9" * 30 + b"}", "64-bit"),
            (b"\xff", "not valid UTF-8"),
            (b"\xef\xbb\xbf{}", "byte order mark"),
            (b"[1]", "not a JSON array"),
            (b"null", "not a JSON null"),
            (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "deeper than 64"),
            (b"[" * 200_000, "deeper than 64"),
        ],
    )
    def test_refuses_what_is_not_strictly_json(self, body: bytes, reason: str) -> None:
        with pytest.raises(BadRequest, match=reason) as caught:
            parse_json_object(body)
        assert caught.value.code == "invalid_json"

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            (b'{"suffix": "a\\u0000b"}', "suffix"),
            (b'{"metadata": {"k": "\\ud800"}}', "metadata.k"),
            (b'{"metadata": {"k\\u0000": "v"}}', "metadata"),
            (b'{"lora": {"target_modules": ["q", "\\udc00"]}}', "lora.target_modules.1"),
        ],
    )
    def test_names_the_string_that_postgresql_would_refuse(self, body: bytes, param: str) -> None:
        with pytest.raises(BadRequest) as caught:
            parse_json_object(body)
        assert caught.value.param == param
