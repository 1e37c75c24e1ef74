# SPDX-License-Identifier: MIT
"""Options and helpers of the subset tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bpfn_cli.data.subset.make import make_subset
from bpfn_cli.data.subset.manifest import SubsetOptions
from bpfn_cli.data.subset.plan import plan_subset

HALF = SubsetOptions(0.5)
COPY = SubsetOptions(0.5, link="copy")


def chosen(source: Path, options: SubsetOptions, split: str = "train") -> tuple[str, ...]:
    return plan_subset(source, options).chosen[split]


def edit(path: Path) -> None:
    """Another value in the last point, the size as before."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def refused(kind: type[Exception], *arguments: object, **options: object) -> str:
    with pytest.raises(kind) as error:
        make_subset(*arguments, **options)
    message = str(error.value)
    assert message.isprintable()
    return message


_MAKE = """
import sys
from pathlib import Path
from bpfn_cli.data.subset.make import make_subset
from bpfn_cli.data.subset.manifest import SubsetOptions
print("ready", flush=True)
sys.stdin.readline()
make_subset(Path(sys.argv[1]), Path(sys.argv[2]), SubsetOptions(0.5, link=sys.argv[3]), processes=2)
"""


def begin(source: Path, out: Path, link: str, **environment: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", _MAKE, str(source), str(out), link],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    assert process.stdout and process.stdin
    assert process.stdout.readline() == b"ready\n"
    process.stdin.write(b"\n")
    process.stdin.flush()
    return process
