# SPDX-License-Identifier: MIT
"""Random parts of a cloud, of the size that a network was trained with. A random part keeps the cloud's extent."""

import hashlib
from collections.abc import Iterator

import numpy as np


def cloud_key(cloud: np.ndarray) -> str:
    """A hash of the coordinates; 0 and -0 are the same."""
    return hashlib.sha256(np.ascontiguousarray(cloud) + np.float32(0)).hexdigest()


def deal(count: int, size: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless parts of `size` indices below `count`: each index once, then each once more, and so on.

    No part holds an index twice: where one round ends inside a part, others of the next round fill it.
    """
    waiting = generator.permutation(count)
    while True:
        part, waiting = waiting[:size], waiting[size:]
        if missing := size - len(part):
            again = generator.permutation(count)
            others = again[~np.isin(again, part)][:missing]
            part, waiting = np.concatenate([part, others]), again[~np.isin(again, others)]
        yield part
