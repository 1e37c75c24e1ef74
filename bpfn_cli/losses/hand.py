# SPDX-License-Identifier: MIT
"""Two points with flows small enough to calculate by hand: of the student S, the teacher T and the truth G, metres.

The errors of S are 0.1 and 0.1, those of T 0 and 0.1414, and the distances between S and T 0.1 and 0.1.
"""

import torch
from torch import Tensor

S = torch.tensor([[[0.1, 0.0, 0.0], [0.0, 0.2, 0.0]]])
T = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.2, 0.1]]])
G = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.1, 0.0]]])


def norm(x: Tensor) -> Tensor:
    """(B, N, 3) to (B, N)."""
    return torch.linalg.vector_norm(x, dim=-1)
