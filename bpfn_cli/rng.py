# SPDX-License-Identifier: MIT
"""Random generators that are a function of their key alone."""

import hashlib

import numpy as np


def keyed_generator(*key: int | str) -> np.random.Generator:
    """A random generator that is a function of `key` on every machine and in every process."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
