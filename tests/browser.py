# SPDX-License-Identifier: MIT
"""Pages in a real browser: Debian's chromium, driven by playwright. Tests skip where either is missing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

# Chromium draws WebGL in software, so no GPU or display is needed.
ARGUMENTS = ("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
LOCAL = ("file:", "data:", "blob:")


@dataclass
class Browser:
    """Opens pages, and keeps what went wrong in them.

    Attributes: problems: errors in the console, uncaught exceptions, and requests to anywhere but local files.
    """

    chromium: Any
    problems: list[str] = field(default_factory=list)

    def open(self, path: Path, *, width: int = 1280, height: int = 800, query: str = "") -> Any:
        """The loaded page, a `playwright.sync_api.Page`."""
        page = self.chromium.new_page(viewport={"width": width, "height": height})
        page.on("console", lambda message: self._note(message.type == "error", f"console: {message.text}"))
        page.on("pageerror", lambda error: self._note(True, f"exception: {error}"))
        page.on("request", lambda request: self._note(not request.url.startswith(LOCAL), f"request: {request.url}"))
        page.goto(f"{path.resolve().as_uri()}{query}")
        return page

    def save_pictures(self, folder: Path, name: str) -> None:
        """A screenshot of each open page, as `NAME-1.png` and so on."""
        folder.mkdir(parents=True, exist_ok=True)
        pages = [page for context in self.chromium.contexts for page in context.pages]
        for number, page in enumerate(pages, start=1):
            stem = re.sub(r"[^a-zA-Z0-9_.-]+", "-", name).strip("-")[:100]
            page.screenshot(path=folder / f"{stem}-{number}.png")

    def _note(self, is_problem: bool, text: str) -> None:
        if is_problem:
            self.problems.append(text)


@contextmanager
def launched_chromium() -> Iterator[Any]:
    """A headless chromium. Skips the test with the reason where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        try:
            yield chromium
        finally:
            chromium.close()
