# SPDX-License-Identifier: MIT
"""Pages in headless chromium: frames a second of a scene page, rendered in software, which is a lower bound for any
GPU; and size and loading time of a report page.

python benchmarks/viewing.py --points 50000 --runs 50
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bpfn_cli.reporting import build_report, read_runs
from bpfn_cli.reporting.html import PageWriter
from bpfn_cli.viewing.page import write_scene_page
from bpfn_cli.viewing.scene import Scene

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests/reporting/html"))
from browser import Browser, launched_chromium
from page_runs import write_many_runs

# Turns the camera a little in each frame. The last pixel is read, so that a frame counts when it is finished.
FRAMES = """([frames, lines]) => {
  const { camera, controls, renderer, state, render } = viewer, gl = renderer.getContext(), pixel = new Uint8Array(4);
  state.lines = lines;
  const start = performance.now();
  for (let frame = 0; frame < frames; frame++) {
    camera.position.sub(controls.target).applyAxisAngle(camera.up, 0.02).add(controls.target);
    controls.update();
    render();
    gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);
  }
  const seconds = (performance.now() - start) / 1000;
  const { calls, points, lines: drawn } = renderer.info.render;
  return { frames_per_s: frames / seconds, draw_calls: calls, points, lines: drawn };
}"""
LOADED = "performance.timing.loadEventEnd - performance.timing.navigationStart"  # ms
# From the last move of the mouse to the values that it shows.
HOVER = """() => {
  const start = performance.now(), times = 20;
  for (let at = 0; at < times; at++) viewer.inspect(300 + at, 300);
  return (performance.now() - start) / times;
}"""


def street(points: int, networks: int) -> Scene:
    """Random points in a street, and random flows."""
    rng = np.random.default_rng(0)
    pc1, pc2 = (rng.uniform((-15, -2, 2), (15, 4, 35), (points, 3)).astype(np.float32) for _ in range(2))
    flows = {f"network {number}": rng.normal(0, 1, (points, 3)).astype(np.float32) for number in range(networks)}
    return Scene(f"{points:,} points", pc1, pc2, flows)


def scene_pages(chromium: Any, folder: Path, points: int, frames: int) -> list[dict[str, Any]]:
    """Frames a second, size and times of pages with one and with three networks."""
    found, path = [], folder / "scene.html"
    for networks in (1, 3):
        write_scene_page(street(points, networks), path)
        page = Browser(chromium).open(path)
        loaded = page.evaluate(LOADED)
        for lines in ("none", "all"):
            measured = page.evaluate(FRAMES, [frames, lines])
            found.append({"networks": networks, "lines_shown": lines, **measured})
        size, hover = path.stat().st_size, page.evaluate(HOVER)
        found.append({"networks": networks, "megabytes": size / 1e6, "load_ms": loaded, "hover_ms": hover})
    return found


def report_page(chromium: Any, folder: Path, runs: int) -> dict[str, Any]:
    """Size of a report page, and the times until it is written and until it is loaded."""
    write_many_runs(folder / "runs", runs)
    start, pages = time.perf_counter(), PageWriter(folder / "page")
    results = read_runs(folder / "runs")
    pages.write(results, build_report(results))
    written = time.perf_counter() - start
    loaded = Browser(chromium).open(pages.index).evaluate(LOADED)
    return {"runs": runs, "megabytes": pages.index.stat().st_size / 1e6, "write_s": written, "load_ms": loaded}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=50_000, metavar="N", help="of each cloud")
    parser.add_argument("--frames", type=int, default=60, metavar="N")
    parser.add_argument("--runs", type=int, default=50, metavar="N", help="of the report page")
    options = parser.parse_args()
    with launched_chromium() as chromium, tempfile.TemporaryDirectory() as folder:
        found = scene_pages(chromium, Path(folder), options.points, options.frames)
        found.append(report_page(chromium, Path(folder), options.runs))
    json.dump(found, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
