"""What a worker reports about its host's data disk."""

from __future__ import annotations

from pathlib import Path

from tests.sentences import Reviewed
from worker.node.disk_space import describe_data_disk


def test_a_disk_with_space_one_that_is_almost_full_and_one_that_fails(tmp_path: Path, reviewed: Reviewed) -> None:
    assert describe_data_disk(tmp_path, 0.0) == {"directory": str(tmp_path), "problem": None}
    assert describe_data_disk(tmp_path, 101.0)["problem"]
    missing = describe_data_disk(tmp_path / "none", 0.0)
    reviewed(missing["problem"])
