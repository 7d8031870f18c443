from __future__ import annotations

import pytest

from app.api.ranges import Span, is_known, requested_span
from app.errors import RangeNotSatisfiable

ETAG = '"sha256-ab"'


class TestRequestedSpan:
    @pytest.mark.parametrize(
        ("asked", "span"),
        [
            ("bytes=0-0", Span(0, 1, 100)),
            ("bytes=10-19", Span(10, 20, 100)),
            ("bytes=90-", Span(90, 100, 100)),
            ("bytes=90-1000", Span(90, 100, 100)),
            ("bytes=-10", Span(90, 100, 100)),
            ("bytes=-1000", Span(0, 100, 100)),
            ("Bytes = 0-9", Span(0, 10, 100)),
        ],
    )
    def test_reads_one_range(self, asked: str, span: Span) -> None:
        assert requested_span({"range": asked}, ETAG, 100) == span

    @pytest.mark.parametrize("asked", ["", "items=0-1", "bytes", "bytes=0-1,5-6"])
    def test_means_the_whole_object_by_anything_it_does_not_serve(self, asked: str) -> None:
        assert requested_span({"range": asked}, ETAG, 100) is None

    @pytest.mark.parametrize(
        "asked", ["bytes=100-", "bytes=5-4", "bytes=-0", "bytes=-", "bytes=a-b", "bytes=", "bytes=-1-2"]
    )
    def test_refuses_what_selects_nothing(self, asked: str) -> None:
        with pytest.raises(RangeNotSatisfiable) as caught:
            requested_span({"range": asked}, ETAG, 100)
        assert caught.value.size_bytes == 100

    def test_refuses_every_range_of_an_empty_object(self) -> None:
        with pytest.raises(RangeNotSatisfiable):
            requested_span({"range": "bytes=0-"}, ETAG, 0)

    def test_sends_the_whole_object_when_if_range_names_an_older_one(self) -> None:
        assert requested_span({"range": "bytes=0-1", "if-range": '"old"'}, ETAG, 100) is None
        assert requested_span({"range": "bytes=0-1", "if-range": ETAG}, ETAG, 100) == Span(0, 2, 100)


class TestIsKnown:
    def test_compares_weakly_and_with_lists(self) -> None:
        assert is_known({"if-none-match": ETAG}, ETAG)
        assert is_known({"if-none-match": f'"x", W/{ETAG}'}, ETAG)
        assert is_known({"if-none-match": "*"}, ETAG)
        assert not is_known({"if-none-match": '"x"'}, ETAG)
        assert not is_known({}, ETAG)
