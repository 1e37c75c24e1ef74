# SPDX-License-Identifier: MIT
"""Before any test imports torch: a thread for each of the processes that share the cores, and no more."""

import os
import signal

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import bpfn_cli  # noqa: F401, I001  (sets how threads wait)
import torch

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background by a shell: the commands that tests interrupt would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


if not torch.cuda.is_available():  # the kernels are interpreted: Triton reads this when it is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")
