"""The training program, `python -m worker.trainer WORKDIR`: a spec and files in, records and files out.

torch lives here and nowhere else. Of our own code it imports `app.domain` and `app.errors`, so it runs by hand, in a
benchmark and in a GPU test exactly as it runs under a worker.
"""

import logging
import os
import sys

# transformers and bitsandbytes fetch code from the internet and run it where the package `kernels` is installed
# (CVE-2026-4372). Here it does not exist, whoever installed it, and bitsandbytes' advice to install it is not printed.
sys.modules["kernels"] = None  # type: ignore[assignment]
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
# OpenMP's threads spin while they wait for each other. On cores that others use too, a waiting thread then takes the
# time of the one it waits for: on two busy cores 7 to 22 times slower. Threads that sleep at once wake too slowly. So
# they spin for a short while (docs/decisions/0018). libgomp reads both when torch is loaded, so they stand here.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
