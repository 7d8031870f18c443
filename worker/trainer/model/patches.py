"""All changes of objects that other libraries own: each is applied here, has a name, and can be undone.

    what                                              replacement                                   undone
    a modeling module's rotary function               kernels/compiled.py                           with the base
    norms and gated MLPs of a model                   kernels/modules.py, compiled.py               with the base
    forward of layers, norms, MLPs; gated products    memory/activation_checkpointing.py            with the base
    a modeling module's delta rule and convolution    recurrent_layers.py                           `DOCUMENTS`
    an implementation of attention                    attention/attention.py                        `DOCUMENTS`
    an implementation of experts                      experts.py                                    `DOCUMENTS`
    attention while a check or a count runs           attention_check.py, activation_count.py       after the block
    gate, up and down while a product is compared     kernels/replacement.py                        after the block
    torch.compile while bitsandbytes is imported      bitsandbytes_import.py                        after the block
    Popen and getfqdn of torchrun                     distributed/torchrun.py                       after the block

torch's flash attention has a registry of its own (base_check.py).

`FrozenBase.patches` are those of one base: without them it is transformers' own model, as PEFT gets it for the last
check. `DOCUMENTS` are those of the process, which tell packed documents apart.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

ABSENT = object()


@dataclass
class _Patch:
    name: str
    namespace: MutableMapping[str, Any]
    key: str
    other: Any  # the value that is not in place now; ABSENT: no entry

    def swap(self) -> None:
        current = self.namespace.get(self.key, ABSENT)
        if self.other is ABSENT:
            del self.namespace[self.key]
        else:
            self.namespace[self.key] = self.other
        self.other = current


class Patches:
    """Patches that are undone together, in reverse order; as a context manager, at the end of the block."""

    def __init__(self) -> None:
        self._patches: list[_Patch] = []

    @property
    def names(self) -> list[str]:
        return [patch.name for patch in self._patches]

    def put(self, name: str, namespace: MutableMapping[str, Any], key: str, value: Any) -> None:
        """Set `namespace[key]`; `name` says what that is."""
        patch = _Patch(name, namespace, key, value)
        patch.swap()
        self._patches.append(patch)

    def put_attribute(self, owner: Any, attribute: str, value: Any, name: str = "") -> None:
        """Set an attribute of a Python module, or of an object that `name` names."""
        owner_name = owner.__name__ if isinstance(owner, ModuleType) else name
        self.put(f"{owner_name}.{attribute}", vars(owner), attribute, value)

    def put_module(self, model: Any, name: str, module: Any) -> None:
        """Put `module` in the place of the model's module with this full name."""
        parent, _, last = name.rpartition(".")
        self.put(name, model.get_submodule(parent)._modules, last, module)

    def undo(self) -> None:
        while self._patches:
            self._patches.pop().swap()

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Undo the patches in the block, and apply them again after it."""
        for patch in reversed(self._patches):
            patch.swap()
        try:
            yield
        finally:
            for patch in self._patches:
                patch.swap()

    def __enter__(self) -> Patches:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


DOCUMENTS = Patches()
