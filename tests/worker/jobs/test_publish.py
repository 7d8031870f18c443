from __future__ import annotations

import pytest

from worker.jobs.publish import model_name


class TestModelName:
    def test_the_name_has_base_organization_suffix_and_eight_characters(self) -> None:
        start, last = model_name("tiny", "acme", "demo").rsplit(":", 1)
        assert (start, len(last)) == ("ft:tiny:acme:demo", 8)
        assert model_name("Qwen/Qwen3-4B", "acme", None).startswith("ft:Qwen-Qwen3-4B:acme::")

    @pytest.mark.parametrize(
        ("suffix", "expected"),
        [
            ("my model/v1: x", "my-model-v1--x"),
            ("50%25 what?#x", "50-25-what--x"),
            ("a\\b\tc\nd\x7fe\xa0f", "a-b-c-d-e-f"),
            ("größe.大_1+2", "größe.大_1+2"),
        ],
    )
    def test_characters_that_are_unsafe_in_urls_are_replaced(self, suffix: str, expected: str) -> None:
        assert model_name("tiny", "acme", suffix).split(":")[3] == expected
