"""The GPUs that a worker may use."""

from __future__ import annotations

import pytest

from worker.node.device import visible_gpus


@pytest.mark.parametrize(
    ("setting", "visible"),
    [(None, "abc"), ("1", "b"), ("2,0", "ca"), ("b", "b"), ("0,7,1", "a"), ("", ""), ("MIG-1", "abc")],
)
def test_the_gpus_of_a_worker_are_those_that_cuda_visible_devices_names(
    monkeypatch: pytest.MonkeyPatch, setting: str | None, visible: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if setting is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    assert "".join(gpu["uuid"] for gpu in visible_gpus([{"uuid": name} for name in "abc"])) == visible
