# SPDX-License-Identifier: MIT
"""The commands, options, files and links in README.md, docs/ and benchmarks/README.md exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import bpfn_cli.errors
from bpfn_cli.cli.main import run

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted(ROOT.glob("docs/*.md"))]
CHAPTERS = ("Exit codes", "Environment variables")
GROUPS = ("prepare", "data", "config")
BLOCK = re.compile(r"^ *```bash\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`(bpfn [^`]+)`")
FILE = re.compile(r"(?<![\w/.-])(?:tests|benchmarks|bpfn_cli|configs)/[\w./-]*\w")
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([\w-]+))?\)")
START = re.compile(r"(?:^|[ /])(?:bpfn|-m bpfn_cli\.cli) (.*)")


def documented_commands(page: Path) -> list[list[str]]:
    """The arguments of each `bpfn` command of a page, in code blocks and in running text."""
    text = page.read_text(encoding="utf-8")
    blocks = "\n".join(BLOCK.findall(text)).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in [*blocks.splitlines(), *INLINE.findall(text)]]
    found = (START.search(shlex.join(words)) for words in lines)
    return [shlex.split(match[1]) for match in found if match]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_documented_command_exists_with_its_options(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    for words in documented_commands(page):
        command = words[: 2 if words[0] in GROUPS and len(words) > 1 else 1]
        assert run([*command, "--help"]) == 0, words
        shown = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", capsys.readouterr().out))
        missing = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)} - shown
        assert not missing, (page.name, words, missing)


def test_exit_codes_and_variables_are_documented() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    codes, variables = (page.split(f"\n## {name}\n")[1].split("\n## ")[0] for name in CHAPTERS)
    errors = {one.exit_code for one in vars(bpfn_cli.errors).values() if hasattr(one, "exit_code")}
    assert {int(code) for code in re.findall(r"^\| (\d) \|", codes, re.MULTILINE)} == errors | {0}
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "bpfn_cli").rglob("*.py"))
    assert set(re.findall(r"`(BPFN_\w+)", variables)) == set(re.findall(r'"(BPFN_\w+)"', sources)) - {"BPFN_LAUNCHED"}


def test_readme_documents_the_main_commands() -> None:
    shown = {words[0] for words in documented_commands(ROOT / "README.md")}
    assert {"subset", "profile", "distill", "report", "prepare", "train", "eval", "predict", "runs", "resume"} <= shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_documented_file_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    to_be_written = set(re.findall(r"\b(?:Write|Create)\s+`([^`]+)`", text))
    for name in set(FILE.findall(text)) - to_be_written:
        assert (ROOT / name).exists(), (page.name, name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_link_of_a_page_leads_to_a_file_and_heading(page: Path) -> None:
    for name, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        target = page.parent / name if name else page
        assert target.exists(), (page.name, name)
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}, (name, anchor)
