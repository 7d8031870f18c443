"""What the demo decides by itself; the whole of it runs in the end-to-end tests."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from app.cli.commands import demo
from app.cli.errors import CliError
from app.cli.output import compare
from app.cli.output.compare import AnswerComparison, HeldOutExample, read_examples
from app.system.artifact_directory import write_manifest
from tests.commands.conftest import Tunery
from tests.sentences import Reviewed
from tests.tiny import make_tiny_adapter, make_tiny_base


class TestHeldOut:
    def test_the_shipped_ones_are_not_trained_on(self) -> None:
        directory = demo._example_directory()
        trained = (directory / "train.jsonl").read_text()
        for example in read_examples(directory / "heldout.jsonl"):
            assert json.dumps(example.messages[-1]["content"], ensure_ascii=False) not in trained


class TestShow:
    def test_both_answers_are_printed_with_the_expected_one(self, capsys: pytest.CaptureFixture[str]) -> None:
        compare.print_comparison([AnswerComparison("a [bold] question", "wanted-word", "base-word", "wanted-word")] * 7)
        out = capsys.readouterr().out
        assert "a [bold] question" in out
        assert "base-word" in out
        assert [word for word in out.splitlines()[-1].split() if word.strip(",.").isdigit()] == ["7", "0,", "7."]


class TestCompare:
    def test_a_sampler_that_fails_is_a_sentence(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        base, adapter = make_tiny_base(tmp_path / "base"), make_tiny_adapter(tmp_path / "adapter")
        write_manifest(adapter, {"lora": {"r": 4, "alpha": 8, "target_modules": ["q_proj", "down_proj"]}})
        monkeypatch.setattr(compare, "SAMPLER", "no.such.module")
        with pytest.raises(CliError):
            compare.compare(base, adapter, [HeldOutExample([{"role": "user", "content": "x"}], "y")])
        (adapter / "MANIFEST.json").unlink()
        with pytest.raises(CliError):
            compare.compare(base, adapter, [])


class TestPlace:
    def test_a_clone_that_postgres_cannot_work_in_is_left_for_one_that_it_can(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(demo, "REPOSITORY", Path("/" + "a-long-way-down/" * 8))
        place = demo._demo_directory(None)
        assert place.name == "tunery-demo"
        assert str(place) in capsys.readouterr().err


class TestPrintingNewLines:
    def test_new_lines_of_the_log_are_printed_without_the_key(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        log = tmp_path / "up.log"
        log.write_text("of an earlier start\n")
        with demo._printing_new_lines(log), log.open("a") as file:
            file.write("postgres    [dim] runs\nadmin key   tnry_secret\nready\nhalf a li")
        assert capsys.readouterr().out.split("\n") == ["      postgres    [dim] runs", "      ready", ""]


class TestRefusals:
    def test_a_demo_without_its_model_or_dataset_is_refused(
        self, bare_tunery: Tunery, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reviewed: Reviewed
    ) -> None:
        for target, missing in (
            ("local_stack.first_run.BUNDLED_PACKAGE", "none"),
            ("commands.demo.REPOSITORY", tmp_path),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(f"app.cli.{target}", missing)
                done = bare_tunery("demo", "--directory", tmp_path)
            assert (done.exit_code, os.listdir(tmp_path)) == (1, [])
            reviewed(done.err.replace(str(tmp_path), "HERE"))
