"""What a panel of the job's page needs when it is opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.web.frame import View


@dataclass(frozen=True)
class OpenedJob:
    view: View
    job: dict[str, Any]
