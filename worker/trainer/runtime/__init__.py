"""The trainer's process and processor: device, autotuning, control lines, stop requests, failures."""
