# SPDX-License-Identifier: MIT
"""Scan a driving scene: points of the surfaces that a camera sees in frame 1, and where they are in frame 2."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bpfn_cli.data.synthetic.driving.drive import SOFT, Drive
from bpfn_cli.data.synthetic.driving.rays import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    RayPattern,
    Rays,
    background_rays,
    draw_pattern,
    object_rays,
)
from bpfn_cli.data.synthetic.raycast import Body, bodies_in_view, cast_rays, hidden, move_points
from bpfn_cli.structures import MAX_DEPTH_M

STEREO_PX_M = 721.5 * 0.54  # KITTI's focal length times its baseline: depth = this / disparity
NEAREST_M = 1.5  # in both frames
GROUND_M = -1.4  # as KITTI's ground: points lower than this in both frames
MOST_ROUNDS = 6


@dataclass(frozen=True)
class ScanOptions:
    """What of a scene is measured, and how exactly.

    ground: keep the ground. visibility: find out which points frame 2 sees. disparity_step_px, disparity_noise_px:
    depths are those of a stereo camera whose disparity has this resolution, and normal noise of this standard
    deviation, in both frames independently; 0: exact.
    """

    ground: bool = False
    visibility: bool = False
    disparity_step_px: float = 0.0
    disparity_noise_px: float = 0.0


class Scan(NamedTuple):
    """N points."""

    points1: np.ndarray  # (N, 3) float64 metres, camera of frame 1
    points2: np.ndarray  # (N, 3) the same points of the same surfaces in frame 2
    visible: np.ndarray  # (N,) bool, whether frame 2 sees the point: inside its image, and not hidden; or True


class _Scanner(NamedTuple):
    drive: Drive
    bodies: list[Body]  # in frame 1
    bodies2: list[Body]
    pattern: RayPattern
    options: ScanOptions
    generator: np.random.Generator


def scan(drive: Drive, count: int, generator: np.random.Generator, options: ScanOptions) -> Scan:
    """At most `count` points that are within 35 m in both frames; fewer in a nearly empty scene."""
    bodies, bodies2 = (bodies_in_view(drive.stage, poses) for poses in (drive.stage.poses1, drive.stage.poses2))
    scanner = _Scanner(drive, bodies, bodies2, draw_pattern(generator), options, generator)
    rounds: list[Scan] = []
    found, rays = 0, count
    for _ in range(MOST_ROUNDS):
        new = _round(scanner, rays)
        rounds += new
        last = sum(len(one.visible) for one in new)
        found += last
        if found >= count:
            break
        rays = 100 + int(min(4.0 * count, 1.1 * (count - found) * rays / max(last, 0.05 * rays)))
    whole = Scan(*(np.concatenate(parts) for parts in zip(*rounds, strict=True)))
    rows = generator.permutation(found)[:count]
    return Scan(whole.points1[rows], whole.points2[rows], whole.visible[rows])


def _round(scanner: _Scanner, count: int) -> list[Scan]:
    """Shoot `count` rays over the image, and more at dense objects."""
    pattern, generator = scanner.pattern, scanner.generator
    found = [_shoot(scanner, background_rays(pattern, count, generator))]
    for owner in scanner.drive.dense:
        found.append(_shoot(scanner, object_rays(owner, scanner.bodies, pattern, count, generator), owner))
    return found


def _shoot(scanner: _Scanner, rays: Rays, only: int | None = None) -> Scan:
    """The points that rays hit. only: the owner of the points to keep."""
    sx, sy = rays
    depth, owners = cast_rays(scanner.bodies, sx, sy)
    hit = depth < MAX_DEPTH_M
    if only is not None:
        hit &= owners == only
    sx, sy, depth, owners = sx[hit], sy[hit], depth[hit], owners[hit]
    stage, visible = scanner.drive.stage, np.ones(len(sx), bool)
    if scanner.options.visibility:  # of the even surface: roughness would hide half of it
        visible = _is_visible(move_points(_points(sx, sy, depth), owners, stage), scanner.bodies2)
    one = _points(sx, sy, depth + _roughness(scanner, sx, sy, owners))
    two = move_points(one, owners, stage)
    keep = _is_kept(one, two, scanner.options)
    one, two = (_as_stereo(points[keep], scanner) for points in (one, two))
    return Scan(one, two, visible[keep])


def _points(sx: np.ndarray, sy: np.ndarray, depth: np.ndarray) -> np.ndarray:
    return np.stack((sx * depth, sy * depth, depth), axis=1)


def _roughness(scanner: _Scanner, sx: np.ndarray, sy: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """(N,) metres of depth: rays enter vegetation, and other surfaces are not quite even."""
    pattern, generator = scanner.pattern, scanner.generator
    way = np.where(
        owners == SOFT,
        generator.exponential(pattern.depth_m, len(owners)),
        generator.normal(0.0, pattern.rough_m, len(owners)),
    )
    return way / np.sqrt(1.0 + sx * sx + sy * sy)


def _is_kept(one: np.ndarray, two: np.ndarray, options: ScanOptions) -> np.ndarray:
    """Which points are within range in both frames, and not ground."""
    nearest, farthest = np.minimum(one[:, 2], two[:, 2]), np.maximum(one[:, 2], two[:, 2])
    keep = (nearest > NEAREST_M) & (farthest < MAX_DEPTH_M - 0.1)  # stereo noise may move it
    return keep if options.ground else keep & (np.maximum(one[:, 1], two[:, 1]) >= GROUND_M)


def _is_visible(points: np.ndarray, bodies: list[Body]) -> np.ndarray:
    """Which points of frame 2 are in its image and not hidden."""
    ahead = np.maximum(points[:, 2], 1e-3)
    sx, sy = points[:, 0] / ahead, points[:, 1] / ahead
    seen = (points[:, 2] > NEAREST_M) & (sx > RIGHT) & (sx < LEFT) & (sy > BOTTOM) & (sy < TOP)
    rows = np.flatnonzero(seen)
    seen[rows] = ~hidden(bodies, sx[rows], sy[rows], points[rows, 2])
    return seen


def _as_stereo(points: np.ndarray, scanner: _Scanner) -> np.ndarray:
    """Points as far away as their measured disparity says."""
    step, noise = scanner.options.disparity_step_px, scanner.options.disparity_noise_px
    disparity = STEREO_PX_M / points[:, 2]
    if noise:
        disparity = disparity + scanner.generator.normal(0.0, noise, len(disparity))
    if step:
        disparity = np.rint(disparity / step) * step
    if not (noise or step):
        return points
    return points * (STEREO_PX_M / np.maximum(disparity, 1.0) / points[:, 2])[:, None]
