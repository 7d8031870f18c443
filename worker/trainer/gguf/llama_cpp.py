"""llama.cpp's C API: quantize GGUF files; load one, with or without a LoRA adapter, and compute logits.

The functions are those of llama.h, through the CFFI bindings of the package `llama-cpp-py-sync`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp_py_sync import _version
from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib
from numpy.typing import NDArray

RELEASE: str = _version.__llama_cpp_tag__

LOG_LEVEL_ERROR = 4  # ggml_log_level


class LlamaCppError(Exception):
    """llama.cpp refuses a file; the message has its own error lines."""


class _Library:
    """The loaded library with the error lines that it has logged."""

    def __init__(self) -> None:
        self.ffi: Any = get_ffi()
        self.lib: Any = get_lib()
        self.errors: list[str] = []
        self._log_callback = self.ffi.callback("ggml_log_callback", self._log)  # kept: C holds no reference
        self.lib.llama_log_set(self._log_callback, self.ffi.NULL)
        self.lib.llama_backend_init()

    def _log(self, level: int, text: Any, _data: Any) -> None:
        if level == LOG_LEVEL_ERROR:
            self.errors.append(self.ffi.string(text).decode("utf-8", "replace").strip())

    def error(self, what: str) -> LlamaCppError:
        lines, self.errors = self.errors, []
        return LlamaCppError(f"{what}: {'; '.join(filter(None, lines)) or 'it gives no reason'}")


_load = cache(_Library)


def quantize(source: Path, destination: Path, quantization: str, threads: int) -> None:
    """Quantize a GGUF file with 16-bit weights. Raises LlamaCppError."""
    library = _load()
    parameters = library.lib.llama_model_quantize_default_params()
    parameters.ftype = getattr(library.lib, f"LLAMA_FTYPE_MOSTLY_{quantization}")  # Q8_0, Q4_K_M
    parameters.nthread = threads
    code = library.lib.llama_model_quantize(
        str(source).encode(), str(destination).encode(), library.ffi.new("llama_model_quantize_params *", parameters)
    )
    if code != 0:
        raise library.error(f"llama.cpp did not quantize {source.name} to {quantization}")


class LlamaCppModel(ExitStack):
    """A GGUF model on the CPU, optionally with a LoRA adapter. Close it, or use it in a `with` statement.

    All methods raise LlamaCppError.
    """

    def __init__(self, path: Path, adapter: Path | None, context_tokens: int, threads: int) -> None:
        super().__init__()
        self._library = _load()
        self._lib, self._ffi = self._library.lib, self._library.ffi
        try:
            self._open(path, context_tokens, threads)
            if adapter is not None:
                self._apply_adapter(adapter)
        except BaseException:
            self.close()
            raise

    def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`, in which special tokens are written out; none is added."""
        data = text.encode()
        tokens = self._ffi.new("llama_token[]", len(data) + 8)
        count = self._lib.llama_tokenize(self._vocabulary, data, len(data), tokens, len(tokens), False, True)
        if count < 0:
            raise self._library.error(f"llama.cpp did not tokenize {len(data)} bytes")
        return list(tokens[0:count])

    def logits(self, tokens_T: Sequence[int], start: int) -> NDArray[np.float32]:
        """Logits [T - start, V] of the positions from `start` on: row i predicts token start + i + 1."""
        lib = self._lib
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        batch = lib.llama_batch_init(len(tokens_T), 0, 1)
        try:
            batch.n_tokens = len(tokens_T)
            for position, token in enumerate(tokens_T):
                batch.token[position], batch.pos[position] = token, position
                batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
                batch.logits[position] = position >= start
            if lib.llama_decode(self._context, batch) != 0:
                raise self._library.error("llama.cpp did not evaluate a prompt")
            rows = (lib.llama_get_logits_ith(self._context, position) for position in range(start, len(tokens_T)))
            buffers = [self._ffi.buffer(row, self.vocabulary_size * 4) for row in rows]
            return np.stack([np.frombuffer(buffer, dtype=np.float32) for buffer in buffers])
        finally:
            lib.llama_batch_free(batch)

    def _open(self, path: Path, context_tokens: int, threads: int) -> None:
        lib = self._lib
        parameters = lib.llama_model_default_params()
        parameters.n_gpu_layers = 0
        model = self._checked(lib.llama_model_load_from_file(str(path).encode(), parameters), f"load {path.name}")
        self.callback(lib.llama_model_free, model)
        self._model, self._vocabulary = model, lib.llama_model_get_vocab(model)
        self.vocabulary_size: int = lib.llama_vocab_n_tokens(self._vocabulary)
        options = lib.llama_context_default_params()
        options.n_ctx = options.n_batch = context_tokens
        options.n_threads = options.n_threads_batch = threads
        self._context = self._checked(lib.llama_init_from_model(model, options), "make a context")
        self.callback(lib.llama_free, self._context)

    def _apply_adapter(self, path: Path) -> None:
        adapter = self._checked(
            self._lib.llama_adapter_lora_init(self._model, str(path).encode()), f"load the adapter {path.name}"
        )
        adapters = self._ffi.new("struct llama_adapter_lora *[]", [adapter])
        if self._lib.llama_set_adapters_lora(self._context, adapters, 1, self._ffi.new("float[]", [1.0])) != 0:
            raise self._library.error(f"llama.cpp did not apply the adapter {path.name}")

    def _checked(self, pointer: Any, what: str) -> Any:
        """Return the pointer. Raises LlamaCppError if llama.cpp did not do `what`: it then returns NULL."""
        if pointer == self._ffi.NULL:
            raise self._library.error(f"llama.cpp did not {what}")
        return pointer
