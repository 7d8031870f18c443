"""`python -m worker.reconciler`."""

from __future__ import annotations

from worker.reconciler.reconciler import main

main()
