from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.datasets.jsonl import MAX_LINE_BYTES
from app.domain.jobs.spec import DataParameters
from app.domain.jobs.states import Reason
from app.system.tokenizer_files import load_renderer
from tests.trainer.helpers import dataset_of, no_keepalive
from worker.trainer.data.batch import TokenizedDataset, pack_batches, read_dataset
from worker.trainer.runtime.failures import Failure


class TestPackBatches:
    def test_documents_are_end_to_end_and_positions_restart_with_each(self) -> None:
        dataset = dataset_of(([5, 6, 7], [1, 2]), ([8, 9], [1]))
        (batch,) = pack_batches(dataset, [0, 1], 10)
        assert batch.tokens_T.tolist() == [5, 6, 7, 8, 9]
        assert batch.positions_T.tolist() == [0, 1, 2, 0, 1]
        assert batch.document_lengths == (3, 2)

    def test_the_token_before_a_label_predicts_it(self) -> None:
        dataset = dataset_of(([5, 6, 7, 4], [2]), ([8, 9], [1]))
        (batch,) = pack_batches(dataset, [0, 1], 10)
        assert batch.logit_positions_N.tolist() == [1, 4]
        assert batch.targets_N.tolist() == [7, 9]

    def test_a_document_longer_than_the_budget_is_a_batch_by_itself(self) -> None:
        dataset = dataset_of(([1] * 9, [3]), ([2] * 3, [1]), ([3] * 3, [1]))
        assert [batch.document_lengths for batch in pack_batches(dataset, [0, 1, 2], 6)] == [(9,), (3, 3)]

    def test_without_packing_every_batch_is_one_document(self) -> None:
        dataset = dataset_of(([1] * 3, [1]), ([2] * 3, [1]))
        assert [batch.document_lengths for batch in pack_batches(dataset, [0, 1], 100, packing=False)] == [(3,), (3,)]
        assert [batch.document_lengths for batch in pack_batches(dataset, [0, 1], 100)] == [(3, 3)]

    @settings(deadline=None)
    @given(st.lists(st.integers(2, 20), min_size=1, max_size=30), st.integers(1, 50))
    def test_every_document_is_in_exactly_one_batch_and_no_batch_is_padded(
        self, lengths: list[int], budget: int
    ) -> None:
        dataset = dataset_of(*(([number] * length, [1]) for number, length in enumerate(lengths)))
        batches = list(pack_batches(dataset, range(len(lengths)), budget))
        assert [length for batch in batches for length in batch.document_lengths] == lengths
        for batch in batches:
            assert len(batch.tokens_T) == sum(batch.document_lengths)
            assert len(batch.tokens_T) <= budget or len(batch.document_lengths) == 1


class TestReadDataset:
    def read(self, tiny: Path, path: Path, context_length: int = 512) -> TokenizedDataset:
        return read_dataset(
            load_renderer(tiny),
            path,
            DataParameters(context_length=context_length),
            Reason.INVALID_TRAINING_FILE,
            no_keepalive,
        )

    def test_labels_are_the_assistants_message_and_its_end_token(self, tiny: Path, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text(
            '{"messages": [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "xyz"}]}\n'
        )
        tokens, labelled = self.read(tiny, tmp_path / "a.jsonl").tokens_and_labels(0)
        renderer = load_renderer(tiny)
        labelled_tokens = [token for token, is_labelled in zip(tokens, labelled, strict=True) if is_labelled]
        assert renderer.tokenizer.decode(labelled_tokens, skip_special_tokens=False) == "xyz<|im_end|>"

    def test_lines_are_read_by_the_line_rules_of_the_job(self, tiny: Path, tmp_path: Path) -> None:
        path, renderer = tmp_path / "a.jsonl", load_renderer(tiny)
        path.write_text(
            '{"messages": [{"role": "user", "content": "a"}, '
            '{"role": "assistant", "content": "b", "refusal": "c"}]}\n\x0c\n'
        )
        reason = Reason.INVALID_TRAINING_FILE
        with pytest.raises(Failure, match="message 2 "):
            read_dataset(renderer, path, DataParameters(context_length=512), reason, no_keepalive)
        assert (
            len(read_dataset(renderer, path, DataParameters(line_rules=1, context_length=512), reason, no_keepalive))
            == 1
        )

    def test_a_line_longer_than_the_default_limit_of_uploads_is_read(self, tiny: Path, tmp_path: Path) -> None:
        answer = '{"role": "assistant", "content": "yes"}'
        padding = " " * MAX_LINE_BYTES
        (tmp_path / "a.jsonl").write_text(f'{{"messages": [{{"role": "user", "content": "q"}}, {answer}]{padding}}}\n')
        assert len(self.read(tiny, tmp_path / "a.jsonl")) == 1

    def test_documents_are_cut_at_the_context_length(self, tiny: Path, examples: Path) -> None:
        dataset = self.read(tiny, examples, context_length=60)
        assert all(dataset.length(document) <= 60 for document in range(len(dataset)))

    def test_an_example_without_a_label_within_the_cut_contributes_nothing(self, tiny: Path, tmp_path: Path) -> None:
        line = '{{"messages": [{{"role": "user", "content": "{}"}}, {{"role": "assistant", "content": "yes"}}]}}\n'
        (tmp_path / "a.jsonl").write_text(line.format("q" * 500) + line.format("short"))
        dataset = self.read(tiny, tmp_path / "a.jsonl", context_length=64)
        assert len(dataset) == 1
        assert list(dataset.lines) == [2]

    def test_each_piece_of_a_long_text_is_an_example_of_its_own(self, tiny: Path, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"text": "abcdefghij"}\n{"text": "xyz"}\n')
        dataset = self.read(tiny, tmp_path / "a.jsonl", context_length=6)
        assert list(dataset.lines) == [1, 1, 2]
        texts = [load_renderer(tiny).decode(dataset.tokens_and_labels(document)[0]) for document in range(3)]
        assert texts == ["abcdef", "fghij", "xyz"]
        assert [list(dataset.tokens_and_labels(document)[1]) for document in range(3)] == [
            [0] + [1] * 5,
            [0] + [1] * 5,
            [0, 1, 1, 1],
        ]
        assert dataset.labelled_tokens == 10 + 3
