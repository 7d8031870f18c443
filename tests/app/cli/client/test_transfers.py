"""Unpacking trusts nothing: what is not as the manifest says never appears."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from app.cli.client.transfers import CorruptDownload, unpack, verify_archive
from app.system.artifact_directory import MANIFEST, sha256_file, verify
from tests.app.cli.trained import WEIGHTS, pack, write_adapter


def tar_of(path: Path, members: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return path


def manifest_of(**files: bytes) -> bytes:
    import hashlib

    described = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }
    return json.dumps({"files": described}).encode()


class TestUnpack:
    def test_what_a_worker_packed_comes_out_as_it_was(self, tmp_path: Path) -> None:
        source = write_adapter(tmp_path / "made")
        manifest = unpack(pack(source), tmp_path / "here")
        assert verify(tmp_path / "here") == manifest
        assert {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()} == {
            path.name: path.read_bytes() for path in source.iterdir()
        }

    def test_nothing_is_left_beside_it(self, tmp_path: Path) -> None:
        unpack(pack(write_adapter(tmp_path / "made")), tmp_path / "out" / "here")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["here"]

    @pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a//b", "../../here/evil", ""])
    def test_a_name_that_leads_out_is_refused(self, tmp_path: Path, name: str) -> None:
        archive = tar_of(tmp_path / "bad.tar", {"top/" + MANIFEST: manifest_of(**{name: b"x"}), "top/" + name: b"x"})
        with pytest.raises(CorruptDownload, match="not a valid adapter archive"):
            unpack(archive, tmp_path / "out" / "here")
        assert list((tmp_path / "out").iterdir()) == []

    def test_a_member_that_the_manifest_does_not_name_stays_in_the_archive(self, tmp_path: Path) -> None:
        members = {"top/" + MANIFEST: manifest_of(a=b"x"), "top/a": b"x", "top/extra": b"y", "../evil": b"z"}
        unpack(tar_of(tmp_path / "more.tar", members), tmp_path / "here")
        assert sorted(path.name for path in (tmp_path / "here").iterdir()) == [MANIFEST, "a"]
        assert not (tmp_path / "evil").exists()

    def test_a_link_in_the_place_of_a_file_is_refused(self, tmp_path: Path) -> None:
        archive = tar_of(tmp_path / "l.tar", {"top/" + MANIFEST: manifest_of(a=b"x")}, {"top/a": "/etc/passwd"})
        with pytest.raises(CorruptDownload, match="a is missing"):
            unpack(archive, tmp_path / "here")

    def test_an_altered_file_is_refused(self, tmp_path: Path) -> None:
        archive = tar_of(tmp_path / "bad.tar", {"top/" + MANIFEST: manifest_of(a=b"x"), "top/a": b"y"})
        with pytest.raises(CorruptDownload, match="a was altered"):
            unpack(archive, tmp_path / "here")
        assert not (tmp_path / "here").exists()

    @pytest.mark.parametrize(
        "members", [{"top/a": b"x"}, {"top/" + MANIFEST: b"no json"}, {"top/" + MANIFEST: b"[]"}], ids=str
    )
    def test_an_archive_without_a_readable_manifest_is_refused(
        self, tmp_path: Path, members: Mapping[str, bytes]
    ) -> None:
        with pytest.raises(CorruptDownload, match="not a valid adapter archive"):
            unpack(tar_of(tmp_path / "bad.tar", members), tmp_path / "here")

    def test_something_else_than_a_tar_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "page.tar").write_bytes(b"<html>" * 1000)
        with pytest.raises(CorruptDownload):
            unpack(tmp_path / "page.tar", tmp_path / "here")


class TestCheck:
    def test_the_promised_bytes_pass(self, tmp_path: Path) -> None:
        archive = pack(write_adapter(tmp_path / "made"))
        verify_archive(archive, archive.stat().st_size, sha256_file(archive))

    def test_wrong_bytes_are_deleted_so_that_the_next_download_starts_over(self, tmp_path: Path) -> None:
        archive = tmp_path / "a.part"
        archive.write_bytes(WEIGHTS)
        with pytest.raises(CorruptDownload, match="It was deleted"):
            verify_archive(archive, len(WEIGHTS), "0" * 64)
        assert not archive.exists()
