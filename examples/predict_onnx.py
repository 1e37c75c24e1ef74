# SPDX-License-Identifier: MIT
"""The flow between two clouds with NumPy and onnxruntime alone.

    bpfn export --checkpoint weightnet4 --out weightnet4.onnx
    python predict_onnx.py weightnet4.onnx a.npy b.npy flow.npy

The clouds are (N, 3) metres, in the usual frame of a LiDAR: x forward, y left, z up. So is the flow, which has one row
for each of the first cloud.
"""

import sys
from collections.abc import Iterator

import numpy as np
import onnxruntime

PART = 8192  # points that the network sees at a time, unless the file has a fixed number
AXES = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]], np.float32)  # the network's x left, y up, z forward


def parts(count: int, size: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Random rows, `size` at a time, so that each of `count` is among them; the last part repeats some."""
    order = random.permutation(count)
    for start in range(0, count, size):
        yield order[start : start + size] if start + size <= count else order[count - size :]


def predict(session: onnxruntime.InferenceSession, pc1: np.ndarray, pc2: np.ndarray) -> np.ndarray:
    """The flow of every point of `pc1`."""
    fixed = session.get_inputs()[0].shape[1]
    size = min(fixed if isinstance(fixed, int) else PART, len(pc1), len(pc2))
    if isinstance(fixed, int) and size < fixed:
        sys.exit(f"the file takes {fixed} points, the clouds have {len(pc1)} and {len(pc2)}")
    random = np.random.default_rng(0)
    flow = np.empty_like(pc1)
    for rows in parts(len(pc1), size, random):
        others = random.choice(len(pc2), size, replace=False)
        clouds = {"pc1": (pc1[rows] @ AXES.T)[None], "pc2": (pc2[others] @ AXES.T)[None]}
        flow[rows] = session.run(["flow"], clouds)[0][0] @ AXES
    return flow


def main() -> None:
    """Read the clouds, write the flow."""
    network, first, second, out = sys.argv[1:]
    session = onnxruntime.InferenceSession(network)
    pc1, pc2 = (np.load(path).astype(np.float32) for path in (first, second))
    flow = predict(session, pc1, pc2)
    np.save(out, flow)
    print(f"{len(flow)} points, mean flow {np.linalg.norm(flow, axis=1).mean():.3f} m")


if __name__ == "__main__":
    main()
