# SPDX-License-Identifier: MIT
"""How a driving scene is scanned: the rays, as uneven as those of KITTI's points, which come from several LiDAR scans
and, on moving cars, from models. A ray (sx, sy, 1) has the slopes sx = x/z, to the left, and sy = y/z, upwards."""

from dataclasses import dataclass

import numpy as np

from bpfn_cli.data.synthetic.raycast import Body

LEFT, RIGHT, TOP, BOTTOM = 0.845, -0.878, 0.24, -0.28  # KITTI's field of view
TALL = 0.15  # share of the scenes whose rays reach higher than a LiDAR's
MOST_HOLES = 5

Rays = tuple[np.ndarray, np.ndarray]  # sx, ascending, and sy


@dataclass(frozen=True)
class RayPattern:
    """Properties of the rays of one scene. Slopes are without unit.

    top: highest slope. spacing: of scan lines. on_lines: share of the rays that lie on them. passes: (P,) offsets of
    the lines of several scans, in spacings. blur: of a line, as slope. density: rays to a dense object per ray to the
    background. rough_m: standard deviation of the range. depth_m: mean way of a ray into vegetation. holes: (H, 4)
    parts of the image without rays: lowest sx and sy, width, height.
    """

    top: float
    spacing: float
    on_lines: float
    passes: np.ndarray
    blur: float
    density: float
    rough_m: float
    depth_m: float
    holes: np.ndarray


def draw_pattern(generator: np.random.Generator) -> RayPattern:
    """Draw the properties of a scene's rays."""
    is_tall, count = generator.random() < TALL, generator.integers(0, MOST_HOLES + 1)
    return RayPattern(
        top=generator.uniform(0.1, TOP) if is_tall else generator.uniform(0.03, 0.09),
        spacing=generator.uniform(0.005, 0.01),
        on_lines=generator.choice((0.0, 0.5, 0.9)),
        passes=generator.uniform(0.0, 1.0, generator.integers(1, 5)),
        blur=generator.uniform(0.0, 0.0015),
        density=generator.uniform(2.5, 7.0),
        rough_m=generator.choice((0.0, 0.01, 0.02, 0.03)),
        depth_m=generator.uniform(0.02, 0.4),
        holes=generator.uniform((RIGHT, -0.2, 0.02, 0.02), (LEFT, 0.05, 0.2, 0.1), (count, 4)),
    )


def background_rays(pattern: RayPattern, count: int, generator: np.random.Generator) -> Rays:
    """At most `count` rays over the whole image, without its holes."""
    sx = np.sort(generator.uniform(RIGHT, LEFT, count))
    sy = generator.uniform(BOTTOM, pattern.top, count)
    lines = np.floor(sy / pattern.spacing) + pattern.passes[generator.integers(0, len(pattern.passes), count)]
    lines = lines * pattern.spacing + pattern.blur * generator.normal(0.0, 1.0, count)
    sy = np.where(generator.random(count) < pattern.on_lines, lines, sy)
    sy = sy * np.sqrt(1.0 + sx * sx)  # a scan line has one elevation, which is a curve in the image
    keep = sy > BOTTOM
    for left, low, width, height in pattern.holes:
        keep &= ~((sx > left) & (sx < left + width) & (sy > low) & (sy < low + height))
    return sx[keep], sy[keep]


def object_rays(
    owner: int, bodies: list[Body], pattern: RayPattern, count: int, generator: np.random.Generator
) -> Rays:
    """Additional rays around an object in the image; `count`: as for `background_rays`."""
    slopes = [body.slopes for body in bodies if body.owner == owner and body.slopes is not None]
    low_x, high_x, low_y, high_y = np.array(slopes or [(0.0,) * 4]).T
    left, right = min(LEFT, float(high_x.max())), max(RIGHT, float(low_x.min()))
    top, bottom = min(TOP, float(high_y.max())), max(BOTTOM, float(low_y.min()))
    area = max(0.0, left - right) * max(0.0, top - bottom)
    rays = int(pattern.density * count * area / ((LEFT - RIGHT) * (pattern.top - BOTTOM)))
    return np.sort(generator.uniform(right, max(right, left), rays)), generator.uniform(bottom, max(bottom, top), rays)
