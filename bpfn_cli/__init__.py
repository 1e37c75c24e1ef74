# SPDX-License-Identifier: MIT
"""bpfn: slim, distill and measure Bi-PointFlowNet."""

import os

from bpfn_cli.cores import limit_threads

__version__ = "0.1.0"

# OpenMP threads that spin while they wait make a training step 20 times slower on a machine that others use too;
# threads that never spin lose a tenth of the time to waking up. So: spin for a few tenths of a
# millisecond, then sleep. Read by the OpenMP runtime when torch is loaded, so it must be set before.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# In a container with fewer cores' worth of time than cores, one thread per core would mostly wait for the others.
LIMITED = limit_threads()
