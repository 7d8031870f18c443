"""Attention kernels of packed batches, and their check before a job trains."""
