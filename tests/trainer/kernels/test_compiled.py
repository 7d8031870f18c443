"""Which functions compiled ones replace, and that training stays the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func, nop  # type: ignore[import-untyped]
from torch._dynamo.backends.common import aot_autograd
from torch.autograd.graph import saved_tensors_hooks
from transformers.models.llama import modeling_llama

from tests.gpu_check.checks import make_family
from tests.trainer.helpers import CPU_KERNELS, slow_but
from tests.trainer.kernels.fused_on_cpu import FUSED_ON_CPU, compile_by
from tests.trainer.model.bases import make_base
from worker.trainer.kernels import compiled
from worker.trainer.kernels.compiled import CompiledRMSNorm
from worker.trainer.kernels.modules import GatedMLP, swiglu
from worker.trainer.memory.activation_checkpointing import Recomputation
from worker.trainer.model.base_model import FrozenBase, load_base

ROOT = Path(__file__).parents[3]
VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
PLAIN_ROTARY = modeling_llama.apply_rotary_pos_emb
FAMILIES = ("llama", "qwen3", "gemma3_text")
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2}


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_by(monkeypatch)


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


class TestReplacement:
    @pytest.mark.extended("each kind of module; hidden states of one are compared")
    @pytest.mark.parametrize(
        ("family", "replaced", "norm"),
        [
            ("llama", {"norms": 5, "gated MLPs": 2, "rotary embeddings": 1}, compiled.llama_norm),
            ("qwen3", {"norms": 9, "gated MLPs": 2, "rotary embeddings": 1}, compiled.llama_norm),
            ("gemma3_text", {"norms": 13, "gated MLPs": 2, "rotary embeddings": 1}, compiled.gemma_norm),
        ],
    )
    def test_each_kind_is_replaced(
        self, load: Callable[[str], FrozenBase], family: str, replaced: dict[str, int], norm: compiled.Norm
    ) -> None:
        base = load(family)
        assert (base.fused_modules, base.fused_problem) == (replaced, "")
        layer = base.decoder.layers[0]
        assert isinstance(layer.input_layernorm, CompiledRMSNorm)
        assert layer.input_layernorm._compute is norm
        assert isinstance(layer.mlp, GatedMLP)
        assert layer.mlp.product is not swiglu

    @pytest.mark.extended("each kind of module; hidden states of one are compared")
    @pytest.mark.parametrize("name", ["Qwen3.5 text", "Phi-4-mini", "GLM-4"])
    def test_a_rotary_embedding_of_a_part_of_each_head_or_of_pairs_is_the_models_own(
        self, tmp_path: Path, name: str
    ) -> None:
        directory = make_base(name, tmp_path / "base")
        plain = load_base(name, directory, None, torch.float32, CPU_KERNELS)
        tokens = torch.arange(5, 17).unsqueeze(0)
        options = {"position_ids": torch.arange(12).unsqueeze(0), "document_lengths": (12,), "use_cache": False}
        with torch.no_grad():
            expected = plain.model(tokens, **options).logits
            fused = load_base(name, directory, None, torch.float32, FUSED_ON_CPU)
            assert fused.fused_modules["rotary embeddings"] == 1
            assert torch.allclose(fused.model(tokens, **options).logits, expected, atol=1e-4)
        fused.patches.undo()

    def test_an_error_of_the_compiler_replaces_nothing(
        self, load: Callable[[str], FrozenBase], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As without a C compiler, or on a GPU that Triton does not support; the job trains without."""
        compile_by(monkeypatch, "no_such_backend")
        base = load("llama")
        assert base.fused_modules == {}
        assert "no_such_backend" in base.fused_problem
        assert not isinstance(base.decoder.layers[0].input_layernorm, CompiledRMSNorm)
        assert modeling_llama.apply_rotary_pos_emb is PLAIN_ROTARY

    def test_an_error_of_the_compiler_in_a_later_backward_leaves_the_function_as_it_is(
        self, load: Callable[[str], FrozenBase], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first pass with gradients has inputs of another kind than those of the comparison."""
        is_broken = False

        def compile_backward(graph: Any, _inputs: Any) -> Any:
            if is_broken:
                raise RuntimeError("the compiler fails")
            return make_boxed_func(graph.forward)

        compile_by(monkeypatch, aot_autograd(fw_compiler=nop, bw_compiler=compile_backward))
        norm = load("llama").decoder.layers[0].input_layernorm
        assert isinstance(norm, CompiledRMSNorm)
        is_broken = True
        x = torch.randn(1, 5, 64, requires_grad=True)
        with torch._dynamo.config.patch(suppress_errors=True):
            (dx,) = torch.autograd.grad(norm(x).sum(), x)
        (expected,) = torch.autograd.grad(compiled.llama_norm(x, norm.weight, norm.epsilon).sum(), x)
        assert torch.allclose(dx, expected, atol=1e-6)

    def test_each_width_of_a_norm_has_variants_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """torch counts the variants by code object, and computes those after the eighth as they are."""
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)
        code, other, again = (compiled.compiled_norm(compiled.gemma_norm, width).__code__ for width in (64, 32, 64))
        assert code is again
        assert code is not other

    @pytest.mark.parametrize("text", ["CUDA out of memory", "CUDA error: unknown error"])
    def test_memory_and_a_lost_gpu_end_the_load(
        self, load: Callable[[str], FrozenBase], monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError(text)

        monkeypatch.setattr(compiled, "llama_norm", fail)
        with pytest.raises(RuntimeError, match=text):
            load("llama")

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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch, where it imports its compiler
def test_inductor_compiles_them_for_all_lengths_and_they_keep_their_inputs(
    load: Callable[[str], FrozenBase], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Needs g++, and half a minute of an idle machine."""
    compile_by(monkeypatch, "inductor")
    base = load("gemma3_text")
    assert base.fused_problem == ""
    assert base.fused_modules == {"norms": 13, "gated MLPs": 2, "rotary embeddings": 1}
    norm, kept = base.decoder.layers[0].input_layernorm, []
    for tokens in (5, 9, 33):
        x = torch.randn(1, tokens, 64, requires_grad=True)
        with saved_tensors_hooks(lambda tensor: (kept.append(tensor.numel()), tensor)[1], lambda tensor: tensor):
            y = norm(x)
        (dx,) = torch.autograd.grad(y.sum(), x)
        expected = compiled.gemma_norm(x, norm.weight, norm.epsilon)
        assert torch.allclose(y, expected, atol=1e-5)
        assert torch.allclose(dx, torch.autograd.grad(expected.sum(), x)[0], atol=1e-5)
    assert sum(kept) == sum(64 * tokens + tokens + 64 for tokens in (5, 9, 33))  # the input, its scale and the weight


@pytest.mark.parametrize("operators", [None, "/operators"])
def test_what_is_compiled_outlives_the_job_in_the_users_cache(tmp_path: Path, operators: str | None) -> None:
    environment = {"HOME": str(tmp_path), "PATH": ""} | ({VARIABLE: operators} if operators else {})
    program = f"import os, worker.trainer; print(os.environ[{VARIABLE!r}])"
    done = subprocess.run([sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == (operators or f"{tmp_path}/.cache/tunery/torchinductor"), done.stderr
