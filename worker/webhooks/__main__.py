"""`python -m worker.webhooks`."""

from __future__ import annotations

from worker.webhooks.sender import main

main()
