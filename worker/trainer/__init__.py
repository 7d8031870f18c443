"""The training program, `python -m worker.trainer WORKDIR`: a spec and files in, records and files out.

Only this package imports torch. It runs by hand, in a benchmark and in a GPU test exactly as it does under a worker,
because it needs no database, no broker and no settings.
"""

import logging
import os
import sys
import time

PROCESS_STARTED_AT = time.monotonic()  # this package is loaded first

# If the package `kernels` is installed, transformers and bitsandbytes download code and run it (CVE-2026-4372). This
# line hides the package from them. bitsandbytes' advice to install it is not logged.
sys.modules["kernels"] = None  # type: ignore[assignment]
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
# Every packed batch has another length: without segments that grow, the allocator of CUDA keeps blocks that fit no
# later batch. Torch reads the variable when it initializes CUDA; the longer names are its earlier ones.
if not os.environ.keys() & {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"}:
    os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
# torch.compile makes a dozen small functions (kernels/compiled.py), which need no pool of processes beside the trainer.
# After their comparison an error of the compiler leaves a function as it is. Both are variables because settings of
# torch are those of a thread, and the threads of autograd compile as well.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
os.environ.setdefault("TORCHDYNAMO_SUPPRESS_ERRORS", "1")
# torch's default for what it compiles is in the directory for temporary files, which ends with the job.
if os.access(home := os.path.expanduser("~"), os.W_OK):
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(home, ".cache", "tunery", "torchinductor"))
# NVIDIA's images of PyTorch set it to 1, and torch then multiplies float32 in TF32 (runtime/device.py).
os.environ.pop("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", None)
# By default oneDNN keeps the compiled code of 1,024 matrix products. Every batch has a new length, so most of them are
# never used again: nearly 1 MB each, 0.8 ms to compile. A batch needs about 60; with a smaller cache every layer would
# compile them again, so the products of two batches are kept. torch has a second cache above it (LRU_), whose entries
# oneDNN cannot free: after 600 shapes of one product 304 MB stayed allocated with 1,024 there, 165 MB with 64.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
os.environ.setdefault("LRU_CACHE_CAPACITY", "128")
# By default OpenMP's threads spin while they wait for each other. If other programs use the cores as well, a waiting
# thread takes CPU time from the thread it waits for: on two busy cores training was 7 to 22 times slower. Threads that
# sleep immediately wake up too slowly. So they spin for a short time (docs/how-it-works/decisions/training-loop.md).
# libgomp reads both variables when torch is loaded, so they must be set before.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
