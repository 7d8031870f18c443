"""The knobs of one request: each under its canonical name, read with its bounds, all problems kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from app.domain.error_text.json_text import as_json
from app.domain.jobs.bounds import Bounds
from app.errors import BadRequest

AUTO = "auto"


@dataclass(frozen=True)
class Knob:
    """One value as the client gave it, and the dotted path under which it did."""

    value: Any
    path: str


@dataclass
class Knobs:
    """Every knob of a request under its canonical name: "lora.r", "n_epochs", "quantization.type", ..."""

    values: dict[str, Knob] = field(default_factory=dict)
    problems: list[BadRequest] = field(default_factory=list)

    def give(self, name: str, value: Any, path: str) -> None:
        known = self.values.get(name)
        if known is not None and known.value != value:
            seen = f"{path} = {as_json(value)} contradicts {known.path} = {as_json(known.value)}"
            text = f"{seen}; give it once, or twice with one value"
            self.problems.append(BadRequest(text, path, "conflicting_parameters"))
            return
        self.values[name] = Knob(value, path)

    def path(self, name: str) -> str:
        return self.values[name].path

    def refuse(self, name: str, text: str, code: str = "invalid_value") -> None:
        path = self.path(name) if name in self.values else name
        self.problems.append(BadRequest(f"{path}: {text}", path, code))

    def value(self, name: str) -> Any:
        """The client's value; None where it is absent, null or "auto"."""
        knob = self.values.get(name)
        return None if knob is None or knob.value == AUTO else knob.value

    def whole(self, name: str, least: int, most: int, auto: Callable[[], int | None]) -> int | None:
        value = self.value(name)
        if value is None:
            return auto()
        whole = int(value) if isinstance(value, float) and value.is_integer() else value
        if isinstance(whole, bool) or not isinstance(whole, int) or not least <= whole <= most:
            self.refuse(name, f"{as_json(value)} is not a whole number from {least} to {most}")
            return None
        return whole

    def number(self, name: str, bounds: Bounds, auto: Callable[[], float | None]) -> float | None:
        value = self.value(name)
        if value is None:
            return auto()
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or value not in bounds:
            self.refuse(name, f"{as_json(value)} is not a number {bounds}")
            return None
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.value(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(name, f"{as_json(value)} is not true or false", "invalid_type")
        return bool(value)

    def choice(self, name: str, allowed: tuple[str, ...], default: str) -> str:
        value = self.value(name)
        if value is not None and value not in allowed:
            self.refuse(name, f"{as_json(value)} is not offered; allowed: {', '.join(allowed)}", "unsupported_value")
        return default if value is None else str(value)

    def only(self, name: str, allowed: Any, why: str) -> None:
        value = self.value(name)
        if value is not None and value != allowed:
            self.refuse(name, f"{as_json(value)}: {why}; allowed is {as_json(allowed)}", "unsupported_value")
