"""What libraries read from the environment when they are imported: import this before them."""

import os

# This must be set before torch is imported: threads that wait by spinning slow down a CPU shared
# with other work by up to eight times.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# One thread per process, as with torchrun: sums in torch depend on the number of threads, and
# results must not depend on the number of workers or cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# GPUs are counted without starting CUDA, which must not happen before a worker knows its own.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
# transformers imports what it finds of these, and nothing here uses them.
os.environ.setdefault("USE_TF", "0")
os.environ.setdefault("USE_FLAX", "0")
os.environ.setdefault("USE_JAX", "0")
