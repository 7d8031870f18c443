from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.domain.jobs.spec import BaseSpec, QuantizationSpec, RunSpec
from app.system.model_files import hash_directory, stat_signature
from tests.tiny import make_tiny_base
from tests.trainer.helpers import CPU_KERNELS, FLOAT32, change_weights, dataset_of, load_tiny_base
from worker.trainer.data.batch import PackedBatch, pack_batches
from worker.trainer.model import base_model
from worker.trainer.model.base_model import FrozenBase, hidden_states, in_dtype, load_base, open_base, unwrapped
from worker.trainer.model.checkpoint_tensors import CheckpointTensors
from worker.trainer.model.staged_copy import StagedCopy
from worker.trainer.runtime import records
from worker.trainer.runtime.failures import Failure
from worker.trainer.runtime.records import RecordWriter

TOKENS = [5, 80, 33, 7, 200, 41]


def a_batch() -> PackedBatch:
    return next(pack_batches(dataset_of((TOKENS, range(1, 6))), [0], 100))


@torch.no_grad()
def logits(base: FrozenBase) -> torch.Tensor:
    return hidden_states(base, a_batch()) @ base.head_V_D.t()


class TestLoadBase:
    def test_every_linear_layer_but_the_head_is_adapted_in_4_bits_and_everything_is_frozen(self, tiny: Path) -> None:
        base = load_base("tiny", tiny, QuantizationSpec(), torch.bfloat16, CPU_KERNELS)
        assert {parameter.dtype for parameter in base.model.parameters()} == {torch.bfloat16, torch.uint8}
        assert not any(parameter.requires_grad for parameter in base.model.parameters())
        assert len(base.layers) == 2 * 7
        assert all(layer.base.weight.dtype == torch.uint8 for layer in base.layers.values())
        assert base.head_V_D.dtype == torch.bfloat16
        assert base.head_V_D is base.model.get_input_embeddings().weight

    def test_parameters_and_bytes_are_counted_once(self, tiny: Path) -> None:
        base = load_base("tiny", tiny, None, torch.bfloat16, CPU_KERNELS)
        assert base.frozen_parameters == 90_624
        assert base.stored_bytes == 2 * 90_624

    def test_weights_in_several_files_are_found_by_their_index(self, tiny: Path, tmp_path: Path) -> None:
        directory = make_tiny_base(tmp_path / "base")
        tensors = load_file(directory / "model.safetensors")
        (directory / "model.safetensors").unlink()
        parts = {"a.safetensors": sorted(tensors)[::2], "b.safetensors": sorted(tensors)[1::2]}
        for name, keys in parts.items():
            save_file({key: tensors[key] for key in keys}, directory / name)
        index = {"weight_map": {key: name for name, keys in parts.items() for key in keys}}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
        assert torch.equal(logits(load_tiny_base(directory)), logits(load_tiny_base(tiny)))

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"model.extra.weight": torch.ones(2)}, r"contains model\.extra\.weight"),
            ({"model.norm.weight": torch.ones(65)}, r"model\.norm\.weight .*\[65\].*\[64\]"),
        ],
        ids=["unknown", "of another shape"],
    )
    def test_a_weight_that_the_config_does_not_have_is_refused_by_name(
        self, tmp_path: Path, change: dict[str, torch.Tensor], said: str
    ) -> None:
        directory = make_tiny_base(tmp_path / "base")
        change_weights(directory, lambda tensors: tensors.update(change))
        with pytest.raises(Failure, match=said):
            load_tiny_base(directory)

    def test_weights_that_are_copied_in_parts_are_the_same(self, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        log: list[tuple[str, int]] = []

        class Event:
            """In place of a GPU's; each has a number."""

            numbers = itertools.count()

            def __init__(self) -> None:
                self.number = next(self.numbers)

            def record(self) -> None:
                log.append(("record", self.number))

            def synchronize(self) -> None:
                log.append(("synchronize", self.number))

        plain = load_tiny_base(tiny)
        staged = StagedCopy(torch.device("cpu"), 1000, pin=lambda buffer: buffer, event=Event)  # fewer than a layer has
        monkeypatch.setattr(base_model, "copier", lambda _: staged)
        copied = load_tiny_base(tiny)
        assert all(map(torch.equal, copied.model.state_dict().values(), plain.model.state_dict().values()))
        assert len(log) > 2 * len(copied.model.state_dict())
        # No buffer is filled again before its last copy is complete, and the other one is filled meanwhile.
        turn = [("synchronize", 0), ("record", 0), ("synchronize", 1), ("record", 1)]
        assert log == [each for each, _ in zip(itertools.cycle(turn), log, strict=False)]


class TestOpenBase:
    def test_files_that_the_worker_has_hashed_are_not_hashed_again(self, tiny: Path) -> None:
        spec = BaseSpec(name="tiny", directory=tiny, manifest_sha256="of no file", signature=stat_signature(tiny))
        open_base(BaseSpec.model_validate_json(spec.model_dump_json()), FLOAT32, torch.float32, CPU_KERNELS)

    def test_a_file_that_has_changed_since_is_hashed_again(self, tmp_path: Path) -> None:
        directory = make_tiny_base(tmp_path / "base")
        sha256, signature = hash_directory(directory)[1], stat_signature(directory)
        weights = directory / "model.safetensors"
        stat, content = weights.stat(), bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # size, mtime and inode are those of before
        spec = BaseSpec(name="tiny", directory=directory, manifest_sha256=sha256, signature=signature)
        with pytest.raises(Failure, match="has changed"):
            open_base(spec, FLOAT32, torch.float32, CPU_KERNELS)

    def test_a_slow_directory_gives_records_until_a_file_hangs(
        self, tiny: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A tensor takes 100 s, the one after the tenth an hour: the watchdog kills after 600 s of silence."""
        now, emitted = [0.0], [0.0]
        monkeypatch.setattr(records, "time", SimpleNamespace(monotonic=lambda: now[0]))
        read = CheckpointTensors.__iter__

        def read_slowly(tensors: CheckpointTensors) -> Iterator[tuple[str, torch.Tensor]]:
            for number, each in enumerate(read(tensors)):
                now[0] += 100 if number < 10 else 3600
                yield each

        monkeypatch.setattr(CheckpointTensors, "__iter__", read_slowly)
        writer = RecordWriter(lambda _: emitted.append(now[0]), RunSpec.model_construct(run_id="a"))
        spec = BaseSpec(name="tiny", directory=tiny, manifest_sha256=hash_directory(tiny)[1])
        open_base(spec, FLOAT32, torch.float32, CPU_KERNELS, keepalive=writer.keepalive)
        assert emitted[:6] == [0, 200, 400, 600, 800, 1000]
        assert emitted[6] - emitted[5] == 3600

    def test_a_large_file_is_hashed_with_signs_of_progress(self, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("app.system.files.CHUNK_BYTES", 4096)
        beats: list[str] = []
        spec = BaseSpec(name="tiny", directory=tiny, manifest_sha256=hash_directory(tiny)[1])
        open_base(spec, FLOAT32, torch.float32, CPU_KERNELS, keepalive=beats.append)
        assert (
            sum(beat.startswith("hashing") for beat in beats)
            >= (tiny / "model.safetensors").stat().st_size // 4096
            > 10
        )


class TestContexts:
    def test_float32_uses_the_same_weights_and_restores_them(self, tiny: Path) -> None:
        base = load_base("tiny", tiny, QuantizationSpec(), torch.bfloat16, CPU_KERNELS)
        before = [parameter.data.clone() for parameter in base.model.parameters()]
        with torch.no_grad(), in_dtype(base, torch.float32):
            exact = hidden_states(base, a_batch(), dtype=torch.float32)
        rough = hidden_states(base, a_batch())
        assert exact.dtype == torch.float32
        torch.testing.assert_close(exact, rough.float(), rtol=0.05, atol=0.05)
        after = [parameter.data for parameter in base.model.parameters()]
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))

    def test_an_unwrapped_base_has_the_frozen_layers_and_restores_the_adapted_ones(self, tiny: Path) -> None:
        base = load_tiny_base(tiny)
        with unwrapped(base) as model:
            assert not any(layer in list(model.modules()) for layer in base.layers.values())
        assert all(base.model.get_submodule(name) is layer for name, layer in base.layers.items())
