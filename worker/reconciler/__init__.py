"""The reconciler: expired leases, queue positions and preemption, cleanup. `python -m worker.reconciler`."""
