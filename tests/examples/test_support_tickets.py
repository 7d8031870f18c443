from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from app.domain.datasets.examples import Example, read_examples

HERE = Path(__file__).parents[2] / "examples" / "support-tickets"
FILES = ("train.jsonl", "valid.jsonl", "heldout.jsonl")


def conversations(name: str) -> list[tuple[str, dict[str, object]]]:
    """(mail, ticket) of each line."""
    lines = (HERE / name).read_text(encoding="utf-8").split("\n")
    messages = [json.loads(line)["messages"] for line in lines if line]
    return [(user["content"], json.loads(assistant["content"])) for user, assistant in messages]


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_support_tickets", HERE / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


class TestSupportTickets:
    @pytest.mark.parametrize("name", FILES)
    def test_every_line_is_one_that_a_job_accepts(self, name: str) -> None:
        with (HERE / name).open("rb") as file:
            examples = list(read_examples(file))
        assert all(isinstance(example, Example) for example in examples)
        assert len(examples) >= 10  # fewer than OpenAI's minimum is no dataset

    @pytest.mark.parametrize("name", FILES)
    def test_a_ticket_can_be_read_off_its_mail(self, name: str) -> None:
        for mail, ticket in conversations(name):
            assert all(str(ticket[key]) in mail for key in ("product", "order", "customer"))

    def test_held_out_examples_are_not_in_the_training_file(self) -> None:
        seen = conversations("train.jsonl")
        for name in ("valid.jsonl", "heldout.jsonl"):
            for key in ("product", "order", "customer"):
                assert {t[key] for _, t in seen}.isdisjoint({t[key] for _, t in conversations(name)})
        assert {mail for mail, _ in conversations("valid.jsonl")}.isdisjoint(
            {mail for mail, _ in conversations("heldout.jsonl")}
        )

    def test_the_files_are_what_their_maker_makes(
        self, maker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(maker, "HERE", tmp_path)
        maker.main()
        for name in FILES:
            assert (tmp_path / name).read_bytes() == (HERE / name).read_bytes()
