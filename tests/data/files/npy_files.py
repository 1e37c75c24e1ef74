# SPDX-License-Identifier: MIT
"""Files for the tests of NumPy formats."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bpfn_cli.data.files.points import read_points
from bpfn_cli.errors import BpfnError, DataError

POINTS = np.arange(12, dtype=np.float32).reshape(4, 3)


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version)
    return buffer.getvalue()


def with_header(text: str, data: bytes = b"") -> bytes:
    header = text.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def shape_header(shape: str, descr: str = "'<f4'") -> bytes:
    return with_header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n")


def written(folder: Path, content: bytes, name: str = "cloud.npy") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def refusal(path: Path, reader=read_points, kind: type[BpfnError] = DataError) -> str:
    with pytest.raises(kind) as caught:
        reader(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message.replace(str(path.parent), "")  # which may hold the word looked for


class Canary:
    """Unpickled, it creates the file `touched`."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self):
        return Path.touch, (self.touched,)


def npz(compression: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def mutated(content: bytes, dice: random.Random) -> bytes:
    """A few bytes changed, cut, doubled or inserted, most of them near the start."""
    changed = bytearray(content)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(min(len(changed), dice.choice([20, 128, len(changed)])) or 1)
        match dice.randrange(5):
            case 0 if changed:
                changed[at % len(changed)] = dice.randrange(256)
            case 1 if changed:
                changed[at % len(changed)] ^= 1 << dice.randrange(8)
            case 2:
                del changed[at : at + dice.randint(1, 40)]
            case 3:
                changed[at:at] = changed[at : at + dice.randint(1, 40)]
            case 4:
                changed[at:at] = dice.choice([b"(", b"9" * 9, b"'", b"-", b"\x00", b"1 or ", b"}"])
    return bytes(changed)
