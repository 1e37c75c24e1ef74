# SPDX-License-Identifier: MIT
"""Synthetic scenes as a raw download of the FlyingThings3D subset: what `bpfn prepare` can be tried on and tested with.

Maps as in `prepare`: disparity and its change are negative; occluded in the flow is what frame 2 does not see. There
is one camera, so nothing is occluded in the disparity. Scene i is a sequence of two frames, 2i and 2i + 1; the second
has a disparity only, as the last frame of each sequence.
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

from bpfn_cli.data.files.npy import read_file
from bpfn_cli.data.names import SPLITS
from bpfn_cli.data.synthetic.raycast import FAR, FULL_HEIGHT, RenderedPair, Stage, bodies_in_view, cast_image, pinhole
from bpfn_cli.data.synthetic.render import FORMAT, SyntheticOptions, render_chosen
from bpfn_cli.errors import UsageError, printable
from bpfn_cli.files import disk_errors, make_folder, remove_temporaries, write_atomic, write_json
from bpfn_cli.locks import only_writer
from bpfn_cli.parallel import map_in_processes

RAW_RECORD = "synthetic-raw.json"  # stands there from the beginning: a scene is complete when its flow is there

DISPARITY = "disparity/left"
CHANGE = "disparity_change/left/into_future"
DISPARITY_OCCLUDED = "disparity_occlusions/left"
FLOW = "flow/left/into_future"
FLOW_OCCLUDED = "flow_occlusions/left/into_future"

NEAREST_M = 0.01  # in frame 2; nearer points have no place in its image

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
    """The five maps of frame 1, (H, W) or (H, W, 2), at FULL_HEIGHT.

    What is no longer in front of the camera in frame 2 has no depth there: its change takes the disparity to 0.
    """
    camera = pinhole(FULL_HEIGHT)
    size = (camera.height, camera.width)
    disparity, change = np.zeros(size), np.zeros(size)
    flow, hidden = np.zeros((*size, 2)), np.ones(size, bool)
    disparity.flat[pair.pixels] = -camera.focal / pair.points1[:, 2]
    disparity = disparity.astype(np.float32)  # as stored, so that what `prepare` adds up is the depth in frame 2
    change -= disparity
    ahead = pair.points2[:, 2] > NEAREST_M
    rows, columns = np.divmod(pair.pixels[ahead], camera.width)
    x2, y2, depth2 = (pair.points2[ahead, axis] for axis in range(3))
    change[rows, columns] += -camera.focal / depth2
    flow[rows, columns, 0] = camera.cx - camera.focal * x2 / depth2 - columns
    flow[rows, columns, 1] = camera.cy - camera.focal * y2 / depth2 - rows
    hidden.flat[pair.pixels[pair.visible]] = False
    return {
        DISPARITY: disparity,
        CHANGE: change,
        DISPARITY_OCCLUDED: np.zeros(size, bool),
        FLOW_OCCLUDED: hidden,
        FLOW: flow,
    }


def next_disparity(stage: Stage) -> np.ndarray:
    """The disparity of frame 2, (H, W); 0 where nothing is seen."""
    camera = pinhole(FULL_HEIGHT)
    depth, _ = cast_image(bodies_in_view(stage, stage.poses2), camera)
    return np.where(depth <= FAR, -camera.focal / depth, 0.0)


def _write_scene(folder: Path, seed: int, scene: tuple[str, int]) -> None:
    split, index = scene
    stage, pair = render_chosen(seed, index, split, FULL_HEIGHT)
    write_atomic(folder / split / DISPARITY / f"{2 * index + 1:07d}.pfm", _pfm(next_disparity(stage)))
    encoders = {DISPARITY: _pfm, CHANGE: _pfm, DISPARITY_OCCLUDED: _mask, FLOW_OCCLUDED: _mask, FLOW: _flo}
    endings = {_pfm: "pfm", _mask: "png", _flo: "flo"}
    for place, values in raw_maps(pair).items():  # the flow last
        encode = encoders[place]
        write_atomic(folder / split / place / f"{2 * index:07d}.{endings[encode]}", encode(values))


def _flow_file(folder: Path, split: str, index: int) -> Path:
    return folder / split / FLOW / f"{2 * index:07d}.flo"


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
