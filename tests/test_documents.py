"""What the documents point at is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
FILE = re.compile(r"`((?:src|tests|docs|bench(?!/results)|soak|tools)/[\w./-]+\.\w+)`|(?<![\w/`])(tests/[\w/]+\.py)")
"""Results of `make bench` are named in documents and made by who runs it."""


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_files_named_are_there(path):
    text = path.read_text()
    links = [path.parent / target for target in LINK.findall(text)]
    files = [ROOT / (quoted or bare) for quoted, bare in FILE.findall(text)]
    missing = [str(target) for target in (*links, *files) if target.stem != "NAME" and not target.exists()]
    assert not missing


def test_decisions_are_numbered_without_a_gap():
    numbers = [int(path.name[:4]) for path in sorted((ROOT / "docs/decisions").glob("0*.md"))]
    assert numbers == list(range(1, len(numbers) + 1))


def test_documents_are_found():
    assert len(DOCUMENTS) > 20
    assert ROOT / "README.md" in DOCUMENTS
