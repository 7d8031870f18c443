from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.transport.file_response import ByteRange, matches_etag, requested_range
from app.errors import RangeNotSatisfiable

ETAG = '"sha256-ab"'


class TestRequestedSpan:
    @pytest.mark.parametrize(
        ("asked", "span"),
        [
            ("bytes=10-19", ByteRange(10, 20, 100)),
            ("bytes=90-1000", ByteRange(90, 100, 100)),
            ("bytes=-10", ByteRange(90, 100, 100)),
            (f"bytes=90-{'9' * 60_000}", ByteRange(90, 100, 100)),
            (f"bytes=-{'9' * 60_000}", ByteRange(0, 100, 100)),
            (f"bytes={'0' * 60_000}10-{'0' * 60_000}19", ByteRange(10, 20, 100)),
            ("Bytes = 0-9", ByteRange(0, 10, 100)),
            ("bytes=\t0-9 ", ByteRange(0, 10, 100)),
            ("bytes=,0-9 ,", ByteRange(0, 10, 100)),
        ],
    )
    def test_one_range_is_read(self, asked: str, span: ByteRange) -> None:
        assert requested_range({"range": asked}, ETAG, 100) == span

    @pytest.mark.parametrize(
        "asked", ["", "items=0-1", "items=x", "bytes", "bytes=0-1,5-6", "bytes=0-1 , 0-1", "bytes=0-,-5", "bytes=x,0-1"]
    )
    def test_an_unsupported_range_means_the_whole_object(self, asked: str) -> None:
        assert requested_range({"range": asked}, ETAG, 100) is None

    @pytest.mark.parametrize(
        "asked",
        [
            "bytes=100-", "bytes=99999999999999999999-", "bytes=5-4", "bytes=99999999999999999999-4", "bytes=-0",
            "bytes=-000", "bytes=-", "bytes=a-b", "bytes=", "bytes=,", "bytes=-1-2", "bytes=0 - 9", "bytes=+1-2",
            "bytes=1e3-", "bytes=\u0661-\u0662",
        ],
    )  # fmt: skip
    def test_a_range_that_selects_nothing_is_refused(self, asked: str) -> None:
        with pytest.raises(RangeNotSatisfiable) as caught:
            requested_range({"range": asked}, ETAG, 100)
        assert caught.value.size_bytes == 100

    def test_a_suffix_of_an_empty_object_means_the_whole(self) -> None:
        """RFC 9110, 14.1.2: it is satisfiable, whatever its length."""
        assert requested_range({"range": "bytes=-5"}, ETAG, 0) is None
        with pytest.raises(RangeNotSatisfiable):
            requested_range({"range": "bytes=-0"}, ETAG, 0)

    @given(st.from_regex(r"\A[0-9]{0,25}-[0-9]{0,25}\Z"), st.integers(0, 1_000))
    def test_ranges_agree_with_their_definition(self, text: str, total: int) -> None:
        first, _, last = text.partition("-")
        if first:
            start, end = int(first), min(total, int(last or total) + 1)
        else:
            start, end = max(0, total - int(last or 0)), total
        is_whole = not first and total == 0 and int(last or 0) > 0
        try:
            span = requested_range({"range": f"bytes={text}"}, ETAG, total)
        except RangeNotSatisfiable:
            assert start >= end
            assert not is_whole
        else:
            assert span == (None if is_whole else ByteRange(start, end, total))

    def test_if_range_with_an_older_etag_means_the_whole_object(self) -> None:
        assert requested_range({"range": "bytes=0-1", "if-range": '"old"'}, ETAG, 100) is None
        assert requested_range({"range": "bytes=0-1", "if-range": ETAG}, ETAG, 100) == ByteRange(0, 2, 100)


class TestMatchesEtag:
    def test_if_none_match_compares_weakly_and_reads_lists(self) -> None:
        assert matches_etag({"if-none-match": ETAG}, ETAG)
        assert matches_etag({"if-none-match": f'"x", W/{ETAG}'}, ETAG)
        assert matches_etag({"if-none-match": "*"}, ETAG)
        assert not matches_etag({"if-none-match": '"x"'}, ETAG)
        assert not matches_etag({}, ETAG)
