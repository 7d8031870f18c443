"""Names of base models and of their aliases."""

from __future__ import annotations

import re

# As on model hubs, such as Qwen/Qwen3-4B. A colon would be a separator in ft:base:organization:suffix:id.
NAME = re.compile(r"(?=.{1,128}\Z)[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
NAME_RULE = (
    "Allowed: 1 to 128 letters, digits, dots, dashes and underscores, with slashes between parts that start with a "
    "letter or a digit (no colon: it is a separator in ft: names)."
)
