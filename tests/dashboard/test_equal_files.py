"""Files of equal content, and the common base model that a name is."""

from __future__ import annotations

import pytest

from app.web.pages.base_models import usual_model
from app.web.pages.jobs.wording import distinct_files, file_options


def test_files_of_equal_content_are_one_and_the_newest_stands_for_all() -> None:
    contents = {"newest": "a", "other": "b", "older": "a", "oldest": "a"}
    files = [{"id": one, "filename": f"{one}.jsonl", "bytes": 10, "sha256": sha} for one, sha in contents.items()]
    assert [(one["id"], one["copies"]) for one in distinct_files(files)] == [("newest", 3), ("other", 1)]
    assert [one["id"] for one in distinct_files(files, [None, "older"])] == ["older", "other"]
    assert "3 equal files" in file_options(files)["newest"]
    split = {"id": "split", "filename": "split.jsonl", "bytes": 10, "sha256": "a", "held_out_file_id": "rest"}
    assert [one["id"] for one in distinct_files([*files, split])] == ["newest", "other", "split"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Qwen/Qwen3-4B", True),
        ("/models/qwen3-4b/", True),
        ("Qwen/Qwen3-4B-Base", True),
        ("Qwen/Qwen3-4B-AWQ", False),
        ("", False),
    ],
)
def test_a_common_base_model_is_known_by_its_id_or_directory(name: str, found: bool) -> None:
    assert (usual_model(name, [{"id": "Qwen3-8B"}, {"id": "Qwen3-4B"}]) == {"id": "Qwen3-4B"}) is found
