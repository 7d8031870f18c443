from __future__ import annotations

import sys

import pytest

from tests.packages.tunery_vllm import vllm_interface


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in vllm_interface.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "tunery_vllm.resolver", raising=False)
