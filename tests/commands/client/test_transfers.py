"""Unpacking trusts nothing: what is not as the manifest says never appears."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from app.cli.client.transfers import CorruptDownload, unpack
from app.system.artifact_directory import MANIFEST


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


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a//b", "../../here/evil", ""])
def test_a_name_that_leads_out_of_the_directory_is_refused(tmp_path: Path, name: str) -> None:
    archive = tar_of(tmp_path / "bad.tar", {"top/" + MANIFEST: manifest_of(**{name: b"x"}), "top/" + name: b"x"})
    with pytest.raises(CorruptDownload):
        unpack(archive, tmp_path / "out" / "here")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_member_that_the_manifest_does_not_name_is_not_unpacked(tmp_path: Path) -> None:
    members = {"top/" + MANIFEST: manifest_of(a=b"x"), "top/a": b"x", "top/extra": b"y", "../evil": b"z"}
    unpack(tar_of(tmp_path / "more.tar", members), tmp_path / "here")
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == [MANIFEST, "a"]
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("members", "links", "reason"),
    [
        ({"top/" + MANIFEST: manifest_of(a=b"x")}, {"top/a": "/etc/passwd"}, "a is missing"),
        ({"top/" + MANIFEST: manifest_of(a=b"x"), "top/a": b"y"}, {}, "a was altered"),
        ({"top/a": b"x"}, {}, "not a valid"),
        ({"top/" + MANIFEST: b"no json"}, {}, "not a valid"),
        ({"top/" + MANIFEST: b"[]"}, {}, "not a valid"),
        (None, {}, "not a valid"),
    ],
    ids=["link", "altered", "no manifest", "no JSON", "no object", "no archive"],
)
def test_an_archive_that_differs_from_its_manifest_is_refused(
    tmp_path: Path, members: Mapping[str, bytes] | None, links: Mapping[str, str], reason: str
) -> None:
    archive = tmp_path / "bad.tar"
    if members is None:
        archive.write_bytes(b"<html>" * 1000)
    else:
        tar_of(archive, members, links)
    with pytest.raises(CorruptDownload, match=reason):
        unpack(archive, tmp_path / "here")
    assert not (tmp_path / "here").exists()
