# SPDX-License-Identifier: MIT
"""bpfn: slim, distill and measure Bi-PointFlowNet."""

import os

__version__ = "0.1.0"

# OpenMP threads that spin while they wait make a training step 20 times slower on a machine that others use too.
# Read by the OpenMP runtime when torch is loaded, so it must be set before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
