# SPDX-License-Identifier: MIT
"""Synthetic scenes as a raw download of the FlyingThings3D subset: what `bpfn prepare` can be tried on and tested with.

Maps as in `prepare`: disparity and its change are negative; occluded in the flow is what frame 2 does not see. There is
one camera, so nothing is occluded in the disparity.
"""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import png

from bpfn_cli.data.arrays import read_file
from bpfn_cli.data.concurrency import map_in_processes, only_writer
from bpfn_cli.data.manifest import SPLITS
from bpfn_cli.data.raycast import FULL_HEIGHT, RenderedPair, pinhole
from bpfn_cli.data.synthetic import FORMAT, SyntheticOptions, render_chosen
from bpfn_cli.errors import UsageError, printable
from bpfn_cli.files import disk_errors, make_folder, remove_temporaries, write_atomic, write_json

RAW_RECORD = "synthetic-raw.json"  # stands there from the beginning: a scene is complete when its flow is there

DISPARITY = "disparity/left"
CHANGE = "disparity_change/left/into_future"
DISPARITY_OCCLUDED = "disparity_occlusions/left"
FLOW = "flow/left/into_future"
FLOW_OCCLUDED = "flow_occlusions/left/into_future"

Progress = Callable[[int, int], None]


def write_raw(folder: Path, options: SyntheticOptions, processes: int, progress: Progress | None = None) -> None:
    """Write `folder/{train,val}/{disparity,...}`; repeating a killed call completes it. Same bytes as every time.

    Raises:
        UsageError: another height than the camera of `prepare` has, a folder with something else in it, or
            `processes` below 1.
        BusyError, DiskError, OutOfMemoryError: as `write_synthetic`.
    """
    if options.height != FULL_HEIGHT:
        raise UsageError(f"synthetic height {options.height}: raw maps are {FULL_HEIGHT} high, as FlyingThings3D's")
    if processes < 1:
        raise UsageError(f"processes is {processes}; choose 1 or more")
    record = {"format": FORMAT, "kind": "synthetic raw", "seed": options.seed}
    with only_writer(make_folder(folder)):
        _claim(folder, record)
        scenes = [(split, index) for split in SPLITS for index in range(getattr(options, split))]
        for split in {split for split, _ in scenes}:
            for place in (DISPARITY, CHANGE, DISPARITY_OCCLUDED, FLOW, FLOW_OCCLUDED):
                remove_temporaries(make_folder(folder / split / place))
        missing = [scene for scene in scenes if not _flow_file(folder, *scene).exists()]
        done = len(scenes) - len(missing)
        for _ in map_in_processes(partial(_write_scene, folder, options.seed), missing, processes):
            done += 1
            if progress:
                progress(done, len(scenes))


def raw_maps(pair: RenderedPair) -> dict[str, np.ndarray]:
    """The five maps of a rendered pair, (H, W) or (H, W, 2), at FULL_HEIGHT."""
    camera = pinhole(FULL_HEIGHT)
    size = (camera.height, camera.width)
    seen, depth1 = pair.visible, pair.points1[:, 2]
    x2, y2, depth2 = (pair.points2[seen, axis] for axis in range(3))
    rows, columns = np.divmod(pair.pixels[seen], camera.width)
    disparity, change = np.zeros(size), np.zeros(size)
    flow, hidden = np.zeros((*size, 2)), np.ones(size, bool)
    disparity.flat[pair.pixels] = -camera.focal / depth1
    # To the float32 that is stored, so that what `prepare` adds up is the depth in frame 2.
    change[rows, columns] = -camera.focal / depth2 - disparity[rows, columns].astype(np.float32)
    flow[rows, columns, 0] = camera.cx - camera.focal * x2 / depth2 - columns
    flow[rows, columns, 1] = camera.cy - camera.focal * y2 / depth2 - rows
    hidden[rows, columns] = False
    return {
        DISPARITY: disparity,
        CHANGE: change,
        DISPARITY_OCCLUDED: np.zeros(size, bool),
        FLOW_OCCLUDED: hidden,
        FLOW: flow,
    }


def _write_scene(folder: Path, seed: int, scene: tuple[str, int]) -> None:
    split, index = scene
    encoders = {DISPARITY: _pfm, CHANGE: _pfm, DISPARITY_OCCLUDED: _mask, FLOW_OCCLUDED: _mask, FLOW: _flo}
    endings = {_pfm: "pfm", _mask: "png", _flo: "flo"}
    for place, values in raw_maps(render_chosen(seed, index, split, FULL_HEIGHT)).items():  # the flow last
        encode = encoders[place]
        write_atomic(folder / split / place / f"{index:07d}.{endings[encode]}", encode(values))


def _flow_file(folder: Path, split: str, index: int) -> Path:
    return folder / split / FLOW / f"{index:07d}.flo"


def _claim(folder: Path, record: dict[str, object]) -> None:
    with disk_errors(folder):
        if os.path.lexists(folder / RAW_RECORD):
            try:
                found = json.loads(read_file(folder / RAW_RECORD))
            except ValueError:
                found = None
            if found != record:
                raise UsageError(f"{printable(folder)}: holds raw scenes of other options; choose another --out")
            return
        remove_temporaries(folder)
        if any(folder.iterdir()):
            raise UsageError(f"{printable(folder)}: is not empty; choose another --out")
    write_json(folder / RAW_RECORD, record)


def _pfm(values: np.ndarray) -> bytes:
    height, width = values.shape
    return f"Pf\n{width} {height}\n-1\n".encode() + values[::-1].astype("<f4").tobytes()


def _flo(values: np.ndarray) -> bytes:
    height, width, _ = values.shape
    return struct.pack("<fii", 202021.25, width, height) + values.astype("<f4").tobytes()


def _mask(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    height, width = values.shape
    png.Writer(width, height, greyscale=True, bitdepth=1).write_packed(buffer, np.packbits(values, axis=1))
    return buffer.getvalue()
