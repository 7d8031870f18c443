"""What a data directory may be, and who may read what in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.cli.local_stack.data_directory import Layout, write_secret
from app.cli.local_stack.machine import CannotStart


class TestRefuseForeign:
    @pytest.mark.parametrize("names", [[], ["lost+found"], ["up.lock", "anything"]])
    def test_an_empty_directory_a_fresh_volume_and_our_own_are_welcome(self, tmp_path: Path, names: list[str]) -> None:
        for name in names:
            (tmp_path / name).touch()
        Layout(tmp_path).check_ownership()

    def test_a_directory_that_is_not_there_yet_is_welcome(self, tmp_path: Path) -> None:
        Layout(tmp_path / "new").check_ownership()

    def test_a_directory_with_other_files_is_refused_and_keeps_its_permissions(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").touch()
        tmp_path.chmod(0o750)
        with pytest.raises(CannotStart, match=r"neither empty nor .*'thesis.tex'.*another --data-dir"):
            Layout(tmp_path).check_ownership()
        assert tmp_path.stat().st_mode & 0o777 == 0o750

    def test_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(CannotStart, match="not a directory"):
            Layout(tmp_path / "file").check_ownership()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
    def test_the_data_directory_of_another_user_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "up.lock").touch()
        os.chown(tmp_path, 65534, 65534)
        with pytest.raises(CannotStart, match=r"data directory of .*Start Tunery as that user"):
            Layout(tmp_path).check_ownership()


class TestCreateDirectories:
    @pytest.mark.parametrize(("passable", "mode"), [(True, 0o711), (False, 0o700)])
    def test_others_may_at_most_pass_through(self, tmp_path: Path, passable: bool, mode: int) -> None:
        layout = Layout(tmp_path / "a" / "data")
        layout.create_root(passable)
        layout.create_directories(passable)
        assert layout.root.stat().st_mode & 0o777 == mode
        assert layout.root.parent.stat().st_mode & 0o777 == mode
        assert {path.stat().st_mode & 0o777 for path in layout.root.iterdir()} == {0o700}

    def test_parents_that_exist_are_left_as_they_are(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o705)
        Layout(tmp_path / "data").create_root(is_traversable=True)
        assert tmp_path.stat().st_mode & 0o777 == 0o705

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_place_that_may_not_be_written_is_refused_in_a_sentence(self) -> None:
        with pytest.raises(CannotStart, match="Cannot create"):
            Layout(Path("/proc/tunery")).create_root(is_traversable=False)


class TestSecrets:
    def test_a_secret_is_readable_by_its_owner_only_for_any_umask(self, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            write_secret(tmp_path / "key", "secret")
        finally:
            os.umask(before)
        assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "key").read_text() == "secret"

    def test_the_runtime_is_none_unless_something_runs(self, tmp_path: Path) -> None:
        layout = Layout(tmp_path)
        assert layout.read_runtime() is None
        layout.write_runtime({"base_url": "http://127.0.0.1:1"})
        assert layout.read_runtime() == {"base_url": "http://127.0.0.1:1"}
        assert layout.runtime.stat().st_mode & 0o777 == 0o600
