"""Memory: device memory, placement, probe, activation checkpointing, out-of-memory policy."""
