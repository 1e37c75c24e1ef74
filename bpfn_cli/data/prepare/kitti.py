# SPDX-License-Identifier: MIT
"""Raw KITTI Scene Flow 2015 to the KITTI_s layout: all points known in both frames, ground and far points included."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bpfn_cli.data.datasets.base import in_one_line
from bpfn_cli.data.datasets.kitti import baseline_m, kitti_camera, parse_calibration
from bpfn_cli.data.files.archives import RawFiles, find_folder, is_archive
from bpfn_cli.data.files.images import parse_kitti_disparity, parse_kitti_flow
from bpfn_cli.data.prepare.projection import back_project_pair, check_same_size
from bpfn_cli.data.prepare.runner import Preparation, RawScene, ScenePair, numbered_files, read_map
from bpfn_cli.errors import DataError, printable
from bpfn_cli.files import disk_errors
from bpfn_cli.structures import Camera

_CALIBRATION = "calib_cam_to_cam"
_MAPS = ("disp_occ_0", "disp_occ_1", "flow_occ")
# By a folder of theirs, where one of the maps is missing.
_OTHER_DOWNLOADS = {
    "disp_occ_0": "stereo 2015 download",
    "disp_occ": "stereo 2012 download",
    "image_2": "download of the images alone",
}


@dataclass(frozen=True)
class KittiScene(RawScene):
    """A scene of KITTI. calibration: None: use the table of the development kit."""

    training: RawFiles
    calibration: RawFiles | None

    def read(self) -> ScenePair:
        """See base. Keeps the pixels known in all three maps; x left, y up, z forward."""
        image = f"{self.target.name}_10.png"
        disparity1 = read_map(self.training, f"disp_occ_0/{image}", parse_kitti_disparity)
        disparity2 = read_map(self.training, f"disp_occ_1/{image}", parse_kitti_disparity)  # in the grid of frame 1
        flow, flow_known = read_map(self.training, f"flow_occ/{image}", parse_kitti_flow)
        label = self.training.label(f"flow_occ/{image}")
        check_same_size(label, [disparity1, disparity2, flow_known])
        camera = self._camera()
        known = (disparity1 > 0) & (disparity2 > 0) & flow_known
        scale = -camera.focal * baseline_m()
        depths = [scale / (disparity.astype(np.float64) + 1e-5) for disparity in (disparity1, disparity2)]
        return ScenePair(*back_project_pair(camera, known, flow, *depths)).checked(label)

    def _camera(self) -> Camera:
        if self.calibration is None:
            return kitti_camera(int(self.target.name))
        return read_map(self.calibration, f"{self.target.name}.txt", parse_calibration)


def plan_kitti(source: Path, out: Path, *, calibration: Path | None = None) -> Preparation:
    """Plan to write `out/NNNNNN/{pc1,pc2}.npy`.

    Args:
        source: the folder that holds `training/`, or `training` itself, or the `.zip` they came in.
        calibration: the calibration archive or its folder (or the `calib_cam_to_cam` in it). None: look in `source`,
            then beside it for `<source>_calib` and `data_scene_flow_calib`. Scenes without a file use the development
            kit's table, and a note says so.
    Raises: DataError: source or calibration missing, empty or unreadable. DiskError: not permitted.
    """
    with disk_errors(source):
        training = _training(source)
        _check_folders(training)
        names = numbered_files(training.below("disp_occ_0"), "NNNNNN_10.png")
        files = _calibration_files(training, calibration)
        without = [name for name in names if files is None or not files.has(f"{name}.txt")]
    scenes = [KittiScene(out / name, training, None if name in set(without) else files) for name in names]
    places = {"source": _real_name(training), "calibration": _real_name(files) if files else None}
    settings = {"kind": "kitti", "frame": "x left, y up, z forward", **places}
    used = f"the development kit's P_rect_02 was used: {in_one_line(without)}"
    note = f"{len(without)} of {len(names)} scenes have no calibration file; {used}"
    return Preparation(source, out, scenes, settings, (note,) if without else ())


def _training(source: Path) -> RawFiles:
    if not is_archive(source):
        return RawFiles(source / "training" if (source / "training").is_dir() else source)
    if found := find_folder(source, "training"):
        return found.below("training")
    raise DataError(f"{printable(source)}: no folder named training in it; give data_scene_flow.zip")


def _check_folders(training: RawFiles) -> None:
    """Raises: DataError: lists all missing folders, and says which other download this is."""
    if not training.is_archive and not training.root.is_dir():
        return  # reported where it is listed
    missing = [folder for folder in _MAPS if not training.has_folder(folder)]
    if not missing:
        return
    other = next((name for folder, name in _OTHER_DOWNLOADS.items() if training.has_folder(folder)), "")
    named = f" (this is the {other})" if other else ""
    needed = "scene flow 2015 has disparity and flow: data_scene_flow.zip"
    raise DataError(f"{printable(training.name)}: no folder {', '.join(missing)}{named}; {needed}")


def _calibration_files(training: RawFiles, given: Path | None) -> RawFiles | None:
    """The folder of the `NNNNNN.txt`. Raises: DataError: none where the user said."""
    for place in [given] if given else _usual_places(training):
        if place.name == _CALIBRATION and place.is_dir():
            return RawFiles(place)
        for outer, folder in (("training", f"training/{_CALIBRATION}"), (_CALIBRATION, _CALIBRATION)):
            found = find_folder(place, outer) if place.exists() else None
            if found and found.has_folder(folder):
                return found.below(folder)
    if given:
        odometry = given.is_dir() and any((given / name).exists() for name in ("sequences", "calib.txt"))
        what = "this is the odometry calibration; " if odometry else ""
        advice = f"{what}give the calibration archive of scene flow 2015 or its folder"
        raise DataError(f"{printable(given)}: no training/{_CALIBRATION} in it; {advice}")
    return None


def _usual_places(training: RawFiles) -> list[Path]:
    real = Path(os.path.realpath(training.root))
    root = real if training.is_archive else real.parent
    stem = root.with_suffix("") if training.is_archive else root
    beside = [stem.parent / name for name in (f"{stem.name}_calib", "data_scene_flow_calib")]
    return [root, *beside, *(path.with_name(f"{path.name}.zip") for path in beside)]


def _real_name(files: RawFiles) -> str:
    return RawFiles(Path(os.path.realpath(files.root)), files.inside).name
