"""Which directories `tunery up` accepts, and who may read what in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.cli.local_stack.data_directory import Layout, write_secret
from app.cli.local_stack.machine import CannotStart


@pytest.mark.parametrize("names", [[], ["lost+found"], ["up.lock", "anything"]])
def test_an_empty_directory_a_fresh_volume_and_a_data_directory_are_accepted(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).touch()
    Layout(tmp_path).check_ownership()
    Layout(tmp_path / "new").check_ownership()


def test_a_directory_with_other_files_is_refused_and_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    tmp_path.chmod(0o750)
    with pytest.raises(CannotStart, match=r"'thesis\.tex'.*--data-dir"):
        Layout(tmp_path).check_ownership()
    assert tmp_path.stat().st_mode & 0o777 == 0o750
    with pytest.raises(CannotStart, match="not a directory"):
        Layout(tmp_path / "thesis.tex").check_ownership()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_the_data_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "up.lock").touch()
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(CannotStart, match="as that user"):
        Layout(tmp_path).check_ownership()


@pytest.mark.parametrize(("is_traversable", "mode"), [(True, 0o711), (False, 0o700)])
def test_other_accounts_pass_through_new_directories_at_most(tmp_path: Path, is_traversable: bool, mode: int) -> None:
    tmp_path.chmod(0o705)
    layout = Layout(tmp_path / "a" / "data")
    layout.create_root(is_traversable)
    layout.create_directories(is_traversable)
    assert layout.root.stat().st_mode & 0o777 == mode
    assert layout.root.parent.stat().st_mode & 0o777 == mode
    assert {path.stat().st_mode & 0o777 for path in layout.root.iterdir()} == {0o700}
    assert tmp_path.stat().st_mode & 0o777 == 0o705


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_may_not_be_written_is_refused() -> None:
    with pytest.raises(CannotStart, match="Cannot create"):
        Layout(Path("/proc/tunery")).create_root(is_traversable=False)


def test_a_secret_is_readable_by_its_owner_only_for_any_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_secret(tmp_path / "key", "secret")
    finally:
        os.umask(before)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "key").read_text() == "secret"


def test_runtime_json_is_private_and_none_without_the_file(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert layout.read_runtime() is None
    layout.write_runtime({"base_url": "http://127.0.0.1:1"})
    assert layout.read_runtime() == {"base_url": "http://127.0.0.1:1"}
    assert layout.runtime.stat().st_mode & 0o777 == 0o600
