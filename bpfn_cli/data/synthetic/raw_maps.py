# SPDX-License-Identifier: MIT
"""Write synthetic scenes like a raw download of the FlyingThings3D subset, to try and test `bpfn prepare`.

As in the subset, disparity and its change are negative. A pixel is occluded in the flow if frame 2 does not see it;
none is occluded in the disparity, because there is one camera. Scene i is a sequence of frames 2i and 2i + 1; the
second one has a disparity only, like the last frame of each sequence.
"""

import io
import os
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import png

from bpfn_cli.data.synthetic import render
from bpfn_cli.data.synthetic.options import SceneKey
from bpfn_cli.data.synthetic.raycast import FAR, FULL_HEIGHT, RenderedPair, Stage, bodies_in_view, cast_image, pinhole
from bpfn_cli.data.synthetic.render import SyntheticOptions
from bpfn_cli.errors import UsageError, printable
from bpfn_cli.files import disk_errors, make_folder, remove_temporaries, write_atomic, write_json
from bpfn_cli.locks import only_writer
from bpfn_cli.progress import OnProgress

RAW_RECORD = "synthetic-raw.json"  # written first: a scene is complete once its flow, the last of its files, exists

DISPARITY = "disparity/left"
CHANGE = "disparity_change/left/into_future"
DISPARITY_OCCLUDED = "disparity_occlusions/left"
FLOW = "flow/left/into_future"
FLOW_OCCLUDED = "flow_occlusions/left/into_future"
NEAREST_M = 0.01  # in frame 2; nearer points have no place in its image


def write_raw(folder: Path, options: SyntheticOptions, processes: int, progress: OnProgress = None) -> None:
    """Write `folder/{train,val}/{disparity,...}`; repeating a killed call completes it, with the same bytes.

    Raises: as `write_synthetic`. UsageError: also for another height than the camera of `bpfn prepare` has.
    """
    if options.height != FULL_HEIGHT:
        raise UsageError(f"synthetic height {options.height}: raw maps have {FULL_HEIGHT} rows, as in FlyingThings3D")
    if processes < 1:
        raise UsageError(f"processes {processes}: use 1 or more")
    with only_writer(make_folder(folder)):
        _claim(folder, {"format": render.FORMAT, "kind": "synthetic raw", "seed": options.seed})
        for split in {split for split, _ in options.scenes()}:
            for place in ENCODERS:
                remove_temporaries(make_folder(folder / split / place))
        scenes = options.scenes()
        missing = [(split, i) for split, i in scenes if not (folder / split / FLOW / f"{2 * i:07d}.flo").exists()]
        write = partial(_write_scene, folder, options.seed)
        render.write_scenes(write, missing, len(scenes) - len(missing), processes, progress)


def raw_maps(pair: RenderedPair) -> dict[str, np.ndarray]:
    """The five maps of frame 1, (H, W) or (H, W, 2), at FULL_HEIGHT.

    A point behind the camera in frame 2 has no depth there: its change takes the disparity to 0.
    """
    camera = pinhole(FULL_HEIGHT)
    size = (camera.height, camera.width)
    disparity, change = np.zeros(size), np.zeros(size)
    flow, hidden = np.zeros((*size, 2)), np.ones(size, bool)
    disparity.flat[pair.pixels] = -camera.focal / pair.points1[:, 2]
    disparity = disparity.astype(np.float32)  # as stored, so that disparity + change gives the depth in frame 2
    change -= disparity
    ahead = pair.points2[:, 2] > NEAREST_M
    rows, columns = np.divmod(pair.pixels[ahead], camera.width)
    x2, y2, depth2 = pair.points2[ahead].T
    change[rows, columns] += -camera.focal / depth2
    flow[rows, columns, 0] = camera.cx - camera.focal * x2 / depth2 - columns
    flow[rows, columns, 1] = camera.cy - camera.focal * y2 / depth2 - rows
    hidden.flat[pair.pixels[pair.visible]] = False
    occluded = {DISPARITY_OCCLUDED: np.zeros(size, bool), FLOW_OCCLUDED: hidden}
    return {DISPARITY: disparity, CHANGE: change, FLOW: flow, **occluded}


def next_disparity(stage: Stage) -> np.ndarray:
    """The disparity of frame 2, (H, W); 0 where nothing is seen."""
    camera = pinhole(FULL_HEIGHT)
    depth, _ = cast_image(bodies_in_view(stage, stage.poses2), camera)
    return np.where(depth <= FAR, -camera.focal / depth, 0.0)


def _write_scene(folder: Path, seed: int, scene: SceneKey) -> None:
    split, index = scene
    stage, pair = render.render_stage(seed, index, split, FULL_HEIGHT)
    write_atomic(folder / split / DISPARITY / f"{2 * index + 1:07d}.pfm", _pfm(next_disparity(stage)))
    maps = raw_maps(pair)
    for place, (ending, encode) in ENCODERS.items():
        write_atomic(folder / split / place / f"{2 * index:07d}.{ending}", encode(maps[place]))


def _claim(folder: Path, settings: dict[str, object]) -> None:
    record = folder / RAW_RECORD
    with disk_errors(folder):
        if os.path.lexists(record):
            if render.holds_settings(record, settings):
                return
            raise UsageError(f"{printable(folder)}: holds raw scenes made with other options; choose another --out")
        remove_temporaries(folder)
        if any(folder.iterdir()):
            raise UsageError(f"{printable(folder)}: not empty; choose another --out")
    write_json(record, settings)


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


ENCODERS: dict[str, tuple[str, Callable[[np.ndarray], bytes]]] = {
    DISPARITY: ("pfm", _pfm),
    CHANGE: ("pfm", _pfm),
    DISPARITY_OCCLUDED: ("png", _mask),
    FLOW_OCCLUDED: ("png", _mask),
    FLOW: ("flo", _flo),  # written last
}
