"""The commit whose processes must work beside those of this version, and its code."""

from __future__ import annotations

from tools import checkout
from tools.checkout import ROOT

COMMIT = "389c2578"
EARLIER = ROOT / ".earlier" / COMMIT


def check_out() -> None:
    checkout.check_out(COMMIT, EARLIER, "app", "worker", "migrations")
