# SPDX-License-Identifier: MIT
"""What fewer bits in a file of weights cost."""

import torch

from bpfn_cli.choices import Storage
from bpfn_cli.models import BiPointFlowNet
from bpfn_cli.models.storage import decode, encode
from bpfn_cli.profiling.workload import synthetic_batch


def storage_error(model: BiPointFlowNet, storage: Storage) -> dict[str, float]:
    """`mean_m` and `largest_m`: distance of the flows on a rendered scene, metres, with weights as they will be read.

    The model is left in evaluation mode, with the weights that it had.
    """
    batch = synthetic_batch(model.variant.least_points, 1)
    exact = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flows = []
    with torch.no_grad():
        for state in (exact, decode(encode(exact, storage), "weights")):
            model.load_state_dict(state)
            flows.append(model.eval()(batch.pc1, batch.pc2).flows[0])
    model.load_state_dict(exact)
    moved = torch.linalg.vector_norm(flows[1] - flows[0], dim=-1)
    return {"mean_m": float(moved.mean()), "largest_m": float(moved.max())}
