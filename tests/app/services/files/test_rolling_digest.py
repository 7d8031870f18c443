"""What is known of an upload's SHA-256 before it is complete."""

from __future__ import annotations

import hashlib

import pytest

from app.services.files.rolling_digest import RollingDigest, RollingDigestCache, digests_of_part, digests_of_piece

ABC = RollingDigest().and_then("a", 2, hashlib.sha256(b"AA")).and_then("b", 1, hashlib.sha256(b"AAB"))


@pytest.fixture
def digests() -> RollingDigestCache:
    digests = RollingDigestCache(most_uploads=2)
    digests.keep("upload_1", ABC)
    return digests


class TestAt:
    def test_is_where_the_parts_end_that_were_seen(self, digests: RollingDigestCache) -> None:
        assert digests.at("upload_1", 3) is ABC
        assert digests.at("upload_1", 2) is None
        assert digests.at("upload_2", 3) is None

    def test_the_beginning_everything_is_known(self, digests: RollingDigestCache) -> None:
        for upload_id in ("upload_1", "upload_2"):
            begun = digests.at(upload_id, 0)
            assert begun is not None
            assert (begun.part_ids, begun.digest.hexdigest()) == ((), hashlib.sha256().hexdigest())


class TestLeading:
    @pytest.mark.parametrize(
        ("part_ids", "known_bytes"), [(["a", "b"], 3), (["a", "b", "c"], 3), (["a"], 0), (["b", "a"], 0), ([], 0)]
    )
    def test_is_what_the_parts_begin_with_and_in_no_other_order(
        self, digests: RollingDigestCache, part_ids: list[str], known_bytes: int
    ) -> None:
        assert digests.leading("upload_1", part_ids).size_bytes == known_bytes

    def test_of_another_upload_is_nothing(self, digests: RollingDigestCache) -> None:
        assert digests.leading("upload_2", ["a", "b"]).size_bytes == 0


class TestMemory:
    def test_holds_the_uploads_that_were_seen_last(self, digests: RollingDigestCache) -> None:
        digests.keep("upload_2", ABC)
        digests.keep("upload_1", ABC)
        digests.keep("upload_3", ABC)
        assert [name for name in ("upload_1", "upload_2", "upload_3") if digests.at(name, 3)] == [
            "upload_1",
            "upload_3",
        ]

    def test_forgets_an_upload_that_is_complete(self, digests: RollingDigestCache) -> None:
        digests.forget("upload_1")
        digests.forget("upload_1")
        assert digests.at("upload_1", 3) is None


class TestDigests:
    def test_of_a_part_are_its_own_and_that_of_everything_up_to_its_end(self) -> None:
        found = digests_of_part(ABC)
        for digest in found:
            digest.update(b"C")
        assert [each.hexdigest() for each in found] == [hashlib.sha256(data).hexdigest() for data in (b"C", b"AABC")]
        assert ABC.digest.hexdigest() == hashlib.sha256(b"AAB").hexdigest()

    @pytest.mark.parametrize("carried", [None, RollingDigest()])
    def test_of_a_first_part_are_one(self, carried: RollingDigest | None) -> None:
        assert [digest.hexdigest() for digest in digests_of_part(carried)] == [hashlib.sha256().hexdigest()]

    def test_of_a_piece_is_that_of_everything_up_to_its_end_alone(self) -> None:
        (digest,) = digests_of_piece(ABC)
        assert digest.hexdigest() == hashlib.sha256(b"AAB").hexdigest()
        assert len(digests_of_piece(None)) == 1
