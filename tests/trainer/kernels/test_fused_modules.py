"""Which modules fused kernels replace, and that training stays the same, with a stand-in for Liger Kernel."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tests.gpu_check.checks import make_family
from tests.trainer.helpers import CPU_KERNELS, slow_but
from tests.trainer.kernels import fake_liger_kernel
from tests.trainer.kernels.fake_liger_kernel import FUSED_ON_CPU
from tests.trainer.model.bases import make_base
from worker.trainer.kernels.cuda.fused_modules import FusedRMSNorm, FusedRotary
from worker.trainer.kernels.modules import GatedMLP, swiglu
from worker.trainer.memory.activation_checkpointing import Recomputation
from worker.trainer.model.base_model import FrozenBase, load_base

FAMILIES = ("llama", "qwen3", "gemma3_text")
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2}


@pytest.fixture
def liger_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in fake_liger_kernel.modules().items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Callable[[str], FrozenBase]]:
    loaded: list[FrozenBase] = []

    def load(family: str) -> FrozenBase:
        directory = make_family(family, tmp_path / family, **SMALL)
        loaded.append(load_base(family, directory, None, torch.float32, FUSED_ON_CPU))
        return loaded[-1]

    yield load
    for base in loaded:
        base.patches.undo()


@pytest.mark.usefixtures("liger_kernel")
class TestReplacement:
    @pytest.mark.extended("each kind of module; hidden states of one are compared")
    @pytest.mark.parametrize(
        ("family", "replaced", "offset"),
        [
            ("llama", {"norms": 5, "gated MLPs": 2, "rotary embeddings": 1}, 0.0),
            ("qwen3", {"norms": 9, "gated MLPs": 2, "rotary embeddings": 1}, 0.0),
            ("gemma3_text", {"norms": 13, "gated MLPs": 2, "rotary embeddings": 1}, 1.0),
        ],
    )
    def test_each_kind_is_replaced(
        self, load: Callable[[str], FrozenBase], family: str, replaced: dict[str, int], offset: float
    ) -> None:
        base = load(family)
        assert (base.fused_modules, base.fused_problem) == (replaced, "")
        layer = base.decoder.layers[0]
        assert isinstance(layer.input_layernorm, FusedRMSNorm)
        assert layer.input_layernorm._offset == offset
        assert isinstance(layer.mlp, GatedMLP)
        assert layer.mlp.product is not swiglu

    @pytest.mark.extended("each kind of module; hidden states of one are compared")
    def test_an_interleaved_rotary_embedding_stays(self, load: Callable[[str], FrozenBase]) -> None:
        assert "rotary embeddings" not in load("glm4").fused_modules

    @pytest.mark.extended("each kind of module; hidden states of one are compared")
    @pytest.mark.parametrize("name", ["Qwen3.5 text", "Phi-4-mini"])
    def test_a_rotary_embedding_of_a_part_of_each_head_stays(self, tmp_path: Path, name: str) -> None:
        """Cosines have fewer columns than a head there, and the kernel would read beyond them."""
        directory = make_base(name, tmp_path / "base")
        plain = load_base(name, directory, None, torch.float32, CPU_KERNELS)
        tokens = torch.arange(5, 17).unsqueeze(0)
        options = {"position_ids": torch.arange(12).unsqueeze(0), "document_lengths": (12,), "use_cache": False}
        with torch.no_grad():
            expected = plain.model(tokens, **options).logits
            fused = load_base(name, directory, None, torch.float32, FUSED_ON_CPU)
            assert fused.fused_modules
            assert torch.allclose(fused.model(tokens, **options).logits, expected, atol=1e-4)
        fused.patches.undo()

    def test_a_call_with_options_is_transformers_own(self) -> None:
        query = torch.randn(1, 3, 2, 8)  # T before H, as Gemma 4 has it
        cos, sin = (torch.randn(1, 3, 8) for _ in range(2))
        expected = apply_rotary_pos_emb(query, query, cos, sin, unsqueeze_dim=2)
        rotate = FusedRotary(apply_rotary_pos_emb, lambda *_: pytest.fail("the kernel was called"))
        assert torch.equal(rotate(query, query, cos, sin, unsqueeze_dim=2)[0], expected[0])

    @pytest.mark.extended("each kind of module; hidden states of one are compared")
    def test_another_load_replaces_transformers_own_rotary_function(self, load: Callable[[str], FrozenBase]) -> None:
        base = load("llama")
        load_base("llama", base.directory, None, torch.float32, FUSED_ON_CPU)
        rotate = sys.modules[type(base.model).__module__].apply_rotary_pos_emb  # type: ignore[attr-defined]
        assert isinstance(rotate, FusedRotary)
        assert not isinstance(rotate.original, FusedRotary)

    def test_a_kernel_that_fails_replaces_nothing(
        self, load: Callable[[str], FrozenBase], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As Triton fails without a C compiler or on a GPU that it does not support; the job trains without."""
        monkeypatch.setattr(
            sys.modules["liger_kernel.ops"], "LigerRMSNormFunction", failing("Failed to find\nC compiler")
        )
        base = load("llama")
        assert base.fused_modules == {}
        assert "C compiler" in base.fused_problem
        assert not isinstance(base.decoder.layers[0].input_layernorm, FusedRMSNorm)
        modeling = sys.modules[type(base.model).__module__]
        assert not isinstance(modeling.apply_rotary_pos_emb, FusedRotary)  # type: ignore[attr-defined]

    @pytest.mark.parametrize("text", ["CUDA out of memory", "CUDA error: unknown error"])
    def test_memory_and_a_lost_gpu_end_the_load(
        self, load: Callable[[str], FrozenBase], monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        monkeypatch.setattr(sys.modules["liger_kernel.ops"], "LigerRMSNormFunction", failing(text))
        with pytest.raises(RuntimeError, match=text):
            load("llama")

    @pytest.mark.extended("each kind of module; hidden states of one are compared")
    def test_the_kernel_for_many_rows_is_compared_too(
        self, load: Callable[[str], FrozenBase], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ops = sys.modules["liger_kernel.ops"]
        norm = ops.LigerRMSNormFunction.apply

        def wrong_for_many_rows(x: torch.Tensor, *rest: object) -> torch.Tensor:
            result: torch.Tensor = norm(x, *rest)
            return 1.01 * result if x.shape[:-1].numel() >= 32_768 else result

        function = type("Norm", (), {"apply": staticmethod(wrong_for_many_rows)})
        monkeypatch.setattr(ops, "LigerRMSNormFunction", function)
        assert load("qwen3").fused_modules == {"gated MLPs": 2, "rotary embeddings": 1}

    @pytest.mark.parametrize("family", slow_but(["qwen3"], FAMILIES, FAMILIES))
    def test_hidden_states_and_gradients_equal_the_plain_ones(
        self, load: Callable[[str], FrozenBase], family: str
    ) -> None:
        """Also where a norm makes the queries, which the kernel rotates in place, and with recomputation."""
        fused = load(family)
        for mode in ("nothing", "elementwise", "everything"):
            ours = gradient(fused, mode)
            with fused.patches.undone():
                plain = gradient(load_base(family, fused.directory, None, torch.float32, CPU_KERNELS), mode)
            assert (ours - plain).norm() < 1e-4 * plain.norm(), mode


def failing(text: str) -> type:
    def apply(*_arguments: object) -> None:
        raise RuntimeError(text)

    return type("Failing", (), {"apply": staticmethod(apply)})


def gradient(base: FrozenBase, mode: str) -> torch.Tensor:
    """The gradient of the embedded tokens of two documents."""
    if not hasattr(base, "recomputation"):
        base.recomputation = Recomputation(base)  # type: ignore[attr-defined]
    base.recomputation.set(mode)  # type: ignore[attr-defined]
    tokens = torch.arange(5, 17).unsqueeze(0)
    embedded = base.model.get_input_embeddings()(tokens).detach().requires_grad_()
    hidden = base.decoder(
        inputs_embeds=embedded,
        position_ids=torch.tensor([[*range(7), *range(5)]]),
        use_cache=False,
        document_lengths=(7, 5),
    ).last_hidden_state
    (hidden * torch.linspace(-1, 1, hidden.shape[-1])).sum().backward()
    assert embedded.grad is not None
    return embedded.grad


def test_a_missing_package_replaces_nothing_and_the_reason_is_known(
    load: Callable[[str], FrozenBase], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    base = load("llama")
    assert base.fused_modules == {}
    assert "liger-kernel" in base.fused_problem
