"""CUDA: fused kernels, and the memory of a GPU."""
