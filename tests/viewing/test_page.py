# SPDX-License-Identifier: MIT
"""Scene pages, read as text and opened in a browser."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser
from viewed_scenes import ODD, viewed

from bpfn_cli.errors import UsageError
from bpfn_cli.viewing import libraries, page
from bpfn_cli.viewing.page import write_scene_page
from bpfn_cli.viewing.scene import Scene
from bpfn_cli.viewing.template import RESOURCES


class Scripts(HTMLParser):
    """The texts of the scripts of a page, and the names of all elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.names: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.names.append(tag)
        self._inside = tag == "script"
        if self._inside:
            self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = False


def written(scene: Scene, folder: Path) -> Path:
    path = folder / "scene.html"
    write_scene_page(scene, path)
    return path


@pytest.mark.parametrize("case", ODD)
def test_page_holds_the_numbers_of_the_scene(case: str, tmp_path: Path) -> None:
    scene = ODD[case]
    found = Scripts(written(scene, tmp_path).read_text(encoding="utf-8"))
    assert found.names.count("script") == 3 and "img" not in found.names
    data = json.loads(found.texts[0])
    pc1 = np.frombuffer(base64.b64decode(data["pc1"]), "<f4").reshape(-1, 3)
    assert np.allclose(pc1 + data["center"], scene.pc1, rtol=1e-6, atol=1e-5, equal_nan=True)
    assert [one["name"] for one in data["panels"]][: len(scene.flows)] == [*scene.flows]
    assert "NaN" not in found.texts[0] and "<" not in found.texts[0]


def test_page_allows_its_own_scripts_alone(tmp_path: Path) -> None:
    text = written(viewed(), tmp_path).read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None and policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy[1] and "http" not in policy[1]
    assert "Permission is hereby granted" in text  # the license of three.js


def test_three_is_small_and_has_its_license() -> None:
    assert (RESOURCES / "three/three.min.js").stat().st_size < 700_000
    assert "three.js authors" in (RESOURCES / "three/LICENSE").read_text(encoding="utf-8")


def test_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(libraries, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'need jinja2: pip install -c constraints.txt -e "\.\[viz\]"'):
        page.write_scene_page(viewed(), tmp_path / "scene.html")
    assert not [*tmp_path.iterdir()]


# --- in a browser -----------------------------------------------------------------------------------

SEEN = """() => {  // mean color of the panels; the canvas keeps nothing after its frame
  viewer.render();
  const canvas = document.getElementById("canvas"), copy = document.createElement("canvas");
  [copy.width, copy.height] = [canvas.width, canvas.height];
  const context = copy.getContext("2d");
  context.drawImage(canvas, 0, 0);
  const raw = context.getImageData(0, 0, copy.width, copy.height).data;
  const sum = [0, 0, 0];
  for (let at = 0; at < raw.length; at++) if (at % 4 < 3) sum[at % 4] += raw[at];
  return sum;
}"""


def test_page_opens_and_moves_the_cloud(browser: Browser, tmp_path: Path) -> None:
    shown = browser.open(written(viewed(2000, 2100), tmp_path))
    first = shown.evaluate(SEEN)
    shown.locator("#move").fill("1")
    assert shown.evaluate("viewer.state.move") == 1 and shown.locator("#moved").inner_text() == "1.00"
    assert shown.evaluate(SEEN) != first
    assert shown.locator(".label b").all_inner_texts() == ["exact", "off", "true flow"]


@pytest.mark.slow
def test_controls_do_what_they_say(browser: Browser, tmp_path: Path) -> None:
    shown = browser.open(written(viewed(2000, 2100), tmp_path))

    def changes(act: Any) -> None:
        before = shown.evaluate(SEEN)
        act()
        assert shown.evaluate(SEEN) != before

    changes(lambda: shown.select_option("#color", "error"))
    assert "0.5 m and more" in shown.locator("#legend").inner_text()
    changes(lambda: shown.select_option("#color", "clouds"))
    changes(lambda: shown.select_option("#lines", "all"))
    changes(lambda: shown.locator("#size").fill("8"))
    changes(lambda: shown.uncheck("#cloud2"))
    changes(lambda: shown.uncheck("#cloud1"))
    changes(lambda: shown.check("#cloud1"))
    changes(lambda: shown.click("#top"))
    above = shown.evaluate("viewer.camera.position.clone().sub(viewer.controls.target).normalize().y")
    assert above > 0.999
    changes(lambda: shown.click("#reset"))
    assert shown.evaluate("viewer.camera.position.z < viewer.controls.target.z")
    shown.get_by_label("true flow").uncheck()
    assert shown.locator(".label:visible").count() == 2


@pytest.mark.slow
def test_keys_and_play(browser: Browser, tmp_path: Path) -> None:
    shown = browser.open(written(viewed(), tmp_path))
    shown.keyboard.press("?")
    assert shown.locator("#keys").is_visible()
    shown.keyboard.press("Escape")
    for key, value in (("c", "own"), ("c", "error"), ("c", "clouds"), ("c", "flow")):
        shown.keyboard.press(key)
        assert shown.evaluate("viewer.state.color") == value == shown.locator("#color").input_value()
    shown.keyboard.press("l")
    assert shown.evaluate("viewer.state.lines") == "some"
    shown.keyboard.press("ArrowRight")
    assert shown.evaluate("viewer.state.move") == pytest.approx(0.05)
    shown.keyboard.press("1")
    assert not shown.locator("#cloud1").is_checked()
    shown.keyboard.press(" ")
    moves = []
    for _ in range(5):
        shown.wait_for_timeout(100)
        moves.append(shown.evaluate("viewer.state.move"))
    assert len({*moves}) > 2
    shown.click("#play")
    assert not shown.evaluate("viewer.state.playing")


@pytest.mark.slow
def test_help_opens_and_closes_and_its_keys_do_what_it_says(browser: Browser, tmp_path: Path) -> None:
    shown = browser.open(written(viewed(2000, 2100), tmp_path))
    keys, legend = shown.locator("#keys"), shown.locator("#legend")
    for ask in (lambda: shown.click("#help"), lambda: shown.keyboard.press("h")):
        ask()
        assert keys.is_visible()
        assert {"g", "+ −", "1 2", "? h"} <= {*keys.locator("dt").all_inner_texts()}
        keys.get_by_role("button", name="Close").click()
        assert not keys.is_visible()
    shown.keyboard.press("g")
    assert not legend.is_visible()
    shown.keyboard.press("g")
    assert legend.is_visible()
    for key, size in (("+", 3.5), ("+", 4), ("-", 3.5)):
        shown.keyboard.press(key)
        assert shown.evaluate("viewer.state.size") == size == float(shown.locator("#size").input_value())
    before = shown.evaluate(SEEN)
    shown.keyboard.press("2")
    assert not shown.locator("#cloud2").is_checked() and shown.locator("#cloud1").is_checked()
    assert shown.evaluate(SEEN) != before
    for key, move in (("End", 1), ("Home", 0)):
        shown.keyboard.press(key)
        assert shown.evaluate("viewer.state.move") == move == float(shown.locator("#move").input_value())
        assert shown.locator("#moved").inner_text() == f"{move}.00"


@pytest.mark.slow
@pytest.mark.parametrize("frame", ["internal", "lidar"])
def test_values_under_the_mouse_are_those_of_the_point(browser: Browser, tmp_path: Path, frame: str) -> None:
    scene = viewed(5, 5, frame=frame)
    shown = browser.open(written(scene, tmp_path))
    row, panel = 3, 1
    shown.wait_for_timeout(200)
    x, y = shown.evaluate(
        """([row, panel]) => {
          const three = viewer.panels[panel].cloud1.geometry.attributes.position;
          const at = viewer.camera.position.clone().fromBufferAttribute(three, row).project(viewer.camera);
          const box = viewer.panels[panel].label.getBoundingClientRect();
          return [box.left + (at.x + 1) / 2 * box.width, box.top + (1 - at.y) / 2 * box.height];
        }""",
        [row, panel],
    )
    shown.mouse.move(x, y)
    shown.wait_for_selector("#tip:visible")
    text = shown.locator("#tip").inner_text()
    assert f"point {row}\n" in text and "error  0.500 m" in text and "length 1.118 m" in text
    assert "  ".join(f"{value:.2f}" for value in scene.pc1[row]) in text
    assert "flow   0.500  0.000  -1.000 m" in text
    shown.mouse.move(x, 10)
    shown.wait_for_selector("#tip", state="hidden")


@pytest.mark.slow
@pytest.mark.parametrize("case", ODD)
def test_odd_scene_is_shown(browser: Browser, case: str, tmp_path: Path) -> None:
    scene = ODD[case]
    shown = browser.open(written(scene, tmp_path), width=700, height=900)
    dialogs: list[str] = []
    shown.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    shown.mouse.move(350, 500)
    for key in ("l", "l", "c", "End", "t", "r", "c"):
        shown.keyboard.press(key)
        shown.wait_for_timeout(30)
    assert not dialogs
    assert shown.locator("h1").inner_text() == scene.name == shown.title()
    assert np.isfinite(shown.evaluate("viewer.camera.position.toArray()")).all()


@pytest.mark.slow
def test_policy_forbids_other_scripts_and_any_fetch(browser: Browser, tmp_path: Path) -> None:
    shown = browser.open(written(viewed(), tmp_path))
    shown.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.intruder = 1";
          document.body.append(script);
        }"""
    )
    assert shown.evaluate("window.intruder") is None
    assert shown.evaluate("fetch('https://example.org').then(() => 'fetched', () => 'refused')") == "refused"
    assert any("Content Security Policy" in problem for problem in browser.problems)
    browser.problems.clear()
