# SPDX-License-Identifier: MIT
"""Image formats of the raw downloads: PFM, FLO, and the PNG maps of KITTI and FlyingThings3D.

All maps are (H, W) or (H, W, 2), row 0 at the top. Every parser takes the bytes of a file and a name for errors, raises
DataError for a damaged file, and compares the size in the header with the bytes present before it allocates memory.
"""

import io
import re
import struct
import zlib

import numpy as np
import png

from bpfn_cli.data.files.npy import DAMAGE
from bpfn_cli.errors import DataError

MAX_IMAGE_BYTES = 64 << 20  # of a decompressed PNG

_PFM_HEADER = re.compile(rb"Pf\s+(\d{1,6})\s+(\d{1,6})\s+([-+]?[0-9.]{1,20}(?:[eE][-+]?\d{1,2})?)[ \t]*\r?\n")
_FLO_MAGIC = struct.pack("<f", 202021.25)
_PNG_PLANES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by color type, of which 3 has a palette
_PNG_FAULTS = (*DAMAGE, png.Error, TypeError)


def parse_pfm(content: bytearray, name: str) -> np.ndarray:
    """(H, W) float32 from a PFM with one channel; rows bottom-up, byte order given by the sign of the scale."""
    if not (header := _PFM_HEADER.match(content)):
        raise DataError(f"{name}: not a PFM file with one channel (Pf, width, height, scale expected)")
    width, height = int(header[1]), int(header[2])
    byte_order = "<" if header[3].startswith(b"-") else ">"
    _check_size(len(content) - header.end(), 4 * width * height, name)
    values = np.frombuffer(content, byte_order + "f4", offset=header.end()).reshape(height, width)
    return values[::-1].astype(np.float32, order="C")


def parse_flo(content: bytearray, name: str) -> np.ndarray:
    """(H, W, 2) float32 pixels (right, down) from a Middlebury `.flo` file."""
    if len(content) < 12 or not content.startswith(_FLO_MAGIC):
        raise DataError(f"{name}: not a .flo file (magic number 202021.25 expected)")
    width, height = struct.unpack_from("<ii", content, 4)
    if width < 1 or height < 1:
        raise DataError(f"{name}: .flo header claims {width} x {height} pixels")
    _check_size(len(content) - 12, 8 * width * height, name)
    return np.frombuffer(content, "<f4", offset=12).reshape(height, width, 2).astype(np.float32)


def parse_kitti_disparity(content: bytearray, name: str) -> np.ndarray:
    """(H, W) float32 pixels, 0 where unknown."""
    return _parse_16_bit_png(content, name, planes=1)[..., 0].astype(np.float32) / 256


def parse_kitti_flow(content: bytearray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Flow (H, W, 2) float32 pixels (right, down) and where it is known, (H, W) bool."""
    values = _parse_16_bit_png(content, name, planes=3)
    return (values[..., :2].astype(np.float32) - 2**15) / 64, values[..., 2] == 1


def parse_mask_png(content: bytearray, name: str) -> np.ndarray:
    """(H, W) bool, True where any color of the pixel is nonzero (in the occlusion maps: occluded)."""
    return np.any(_parse_png(bytes(content), name, expand_palette=True), axis=2)


def _parse_16_bit_png(content: bytearray, name: str, planes: int) -> np.ndarray:
    values = _parse_png(bytes(content), name, expand_palette=False)
    if values.dtype != np.uint16 or values.shape[2] != planes:
        found = f"{values.shape[2]} channels of {8 * values.itemsize} bits"
        why = "many image tools reduce them to 8; use the file of the original archive"
        raise DataError(f"{name}: {found} found, {planes} of 16 bits expected ({why})")
    return values


def _check_size(found: int, expected: int, name: str) -> None:
    if found != expected or not found:
        raise DataError(f"{name}: {found} bytes of pixels found, {expected} expected; download the file again")


def _parse_png(content: bytes, name: str, expand_palette: bool) -> np.ndarray:
    """(H, W, planes) samples as stored, without alpha; uint16 for 16-bit images, else uint8."""
    try:
        reader = png.Reader(bytes=_checked_picture(content, name))
        width, height, rows, info = reader.asDirect() if expand_palette else reader.read()
        samples = np.array(list(rows))
    except _PNG_FAULTS as error:
        raise DataError(f"{name}: not a PNG file, or damaged; download the file again") from error
    planes: int = info["planes"]
    return samples.reshape(height, width, planes)[..., : planes - bool(info["alpha"])]


def _checked_picture(content: bytes, name: str) -> bytes:
    """The PNG reduced to its picture, checked to have exactly the pixels its header claims; no more are inflated.

    Comments, color corrections and the like are dropped: pypng would apply some of them, and print warnings.
    """
    if len(content) > MAX_IMAGE_BYTES:
        raise DataError(f"{name}: {len(content)} bytes, more than the limit of {MAX_IMAGE_BYTES} for an image")
    chunks = list(png.Reader(bytes=content).chunks())
    kinds = (b"IHDR", b"PLTE", b"IDAT")
    header, palette, packed = (b"".join(data for kind, data in chunks if kind == wanted) for wanted in kinds)
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    expected = height * (1 + (width * _PNG_PLANES[color] * depth + 7) // 8)
    if interlaced or not 0 < expected <= MAX_IMAGE_BYTES:
        raise DataError(f"{name}: interlaced, empty or too large PNG ({width} x {height} pixels)")
    _check_size(len(zlib.decompressobj().decompress(packed, expected + 1)), expected, name)
    picture = io.BytesIO()
    colors = [(b"PLTE", palette)] if color == 3 else []
    png.write_chunks(picture, [(b"IHDR", header), *colors, (b"IDAT", packed), (b"IEND", b"")])
    return picture.getvalue()
