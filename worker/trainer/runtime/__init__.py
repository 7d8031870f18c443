"""The trainer's process and device: dtype, threads, control lines, stop requests, failures."""
