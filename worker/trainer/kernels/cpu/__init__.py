"""A CPU: attention in blocks, quantization in NumPy, and the memory of a process."""
