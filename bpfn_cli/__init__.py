# SPDX-License-Identifier: MIT
"""bpfn: slim, distill and measure Bi-PointFlowNet."""

__version__ = "0.1.0"
