"""The trainer's process and device: dtype, threads, autotuning, control lines, stop requests, failures."""
