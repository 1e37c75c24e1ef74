# SPDX-License-Identifier: MIT
"""Build the C loops of bpfn_cli/ops/native if there is a C compiler with OpenMP. All else is in pyproject.toml."""

import hashlib
from pathlib import Path

from setuptools import Extension, setup

FOLDER = "bpfn_cli/ops/native"
# As `fingerprint` in bpfn_cli/ops/native/__init__.py: a build of other sources is not used.
SOURCES = b"".join(path.read_bytes() for path in sorted(Path(FOLDER).glob("*.[ch]")))
FINGERPRINT = int(hashlib.sha256(SOURCES).hexdigest()[:15], 16)


def loops(name: str, source: str, *flags: str, **macros: str) -> Extension:
    return Extension(
        f"bpfn_cli.ops.native.{name}",
        [f"{FOLDER}/{source}"],
        depends=[str(path) for path in Path(FOLDER).glob("*.[ch]")],  # all, as the fingerprint is of all
        define_macros=[("BPFN_SOURCES", str(FINGERPRINT)), *macros.items()],
        extra_compile_args=["-std=gnu11", "-O3", "-fopenmp", *flags],
        extra_link_args=["-fopenmp"],
        optional=True,
    )


setup(
    ext_modules=[
        loops("_geometry", "geometry.c", "-ffp-contract=off"),  # the same distances as torch, to the last bit
        loops("_neighborhood_float", "neighborhood.c", "-ffp-contract=fast", REAL="float"),
        loops("_neighborhood_double", "neighborhood.c", "-ffp-contract=fast", REAL="double"),
    ]
)
