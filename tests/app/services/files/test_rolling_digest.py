"""What is known of an upload's SHA-256 before it is complete."""

from __future__ import annotations

import hashlib

import pytest

from app.services.files.upload_completion import RollingDigest, RollingDigestCache, part_digests, piece_digests

ABC = RollingDigest().extend("a", 2, hashlib.sha256(b"AA")).extend("b", 1, hashlib.sha256(b"AAB"))


@pytest.fixture
def digests() -> RollingDigestCache:
    digests = RollingDigestCache(max_uploads=2)
    digests.store("upload_1", ABC)
    return digests


class TestGetAt:
    def test_is_where_the_received_parts_end(self, digests: RollingDigestCache) -> None:
        assert digests.get_at("upload_1", 3) is ABC
        assert digests.get_at("upload_1", 2) is None
        assert digests.get_at("upload_2", 3) is None

    def test_the_beginning_everything_is_known(self, digests: RollingDigestCache) -> None:
        for upload_id in ("upload_1", "upload_2"):
            begun = digests.get_at(upload_id, 0)
            assert begun is not None
            assert (begun.part_ids, begun.digest.hexdigest()) == ((), hashlib.sha256().hexdigest())


class TestMatchingPrefix:
    @pytest.mark.parametrize(
        ("part_ids", "known_bytes"), [(["a", "b"], 3), (["a", "b", "c"], 3), (["a"], 0), (["b", "a"], 0), ([], 0)]
    )
    def test_is_what_the_parts_begin_with_and_in_no_other_order(
        self, digests: RollingDigestCache, part_ids: list[str], known_bytes: int
    ) -> None:
        assert digests.matching_prefix("upload_1", part_ids).size_bytes == known_bytes

    def test_of_another_upload_is_nothing(self, digests: RollingDigestCache) -> None:
        assert digests.matching_prefix("upload_2", ["a", "b"]).size_bytes == 0


class TestMemory:
    def test_holds_the_uploads_that_were_used_last(self, digests: RollingDigestCache) -> None:
        digests.store("upload_2", ABC)
        digests.store("upload_1", ABC)
        digests.store("upload_3", ABC)
        assert [name for name in ("upload_1", "upload_2", "upload_3") if digests.get_at(name, 3)] == [
            "upload_1",
            "upload_3",
        ]

    def test_drops_an_upload_that_is_complete(self, digests: RollingDigestCache) -> None:
        digests.remove("upload_1")
        digests.remove("upload_1")
        assert digests.get_at("upload_1", 3) is None


class TestDigests:
    def test_of_a_part_are_its_own_and_that_of_everything_up_to_its_end(self) -> None:
        found = part_digests(ABC)
        for digest in found:
            digest.update(b"C")
        assert [each.hexdigest() for each in found] == [hashlib.sha256(data).hexdigest() for data in (b"C", b"AABC")]
        assert ABC.digest.hexdigest() == hashlib.sha256(b"AAB").hexdigest()

    @pytest.mark.parametrize("rolling", [None, RollingDigest()])
    def test_of_a_first_part_are_one(self, rolling: RollingDigest | None) -> None:
        assert [digest.hexdigest() for digest in part_digests(rolling)] == [hashlib.sha256().hexdigest()]

    def test_of_a_piece_is_that_of_everything_up_to_its_end_alone(self) -> None:
        (digest,) = piece_digests(ABC)
        assert digest.hexdigest() == hashlib.sha256(b"AAB").hexdigest()
        assert len(piece_digests(None)) == 1
