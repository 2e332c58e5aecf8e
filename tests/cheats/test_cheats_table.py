"""docs/cheats.md: every test that it names exists, and every cheat that is played here stands in it."""

import ast
import re
from pathlib import Path

from cheating_buyer import FRAMES
from cheating_gateway import CAUGHT, OwnNonce, Redrawing
from cheating_juror import Blind, Copying, Silent
from cheating_provider import WRONG_ANSWERS, WRONG_NUMBERS, cut_short
from da_village import (
    CorruptingStore,
    EquivocatingDoor,
    ForgettingStore,
    RefusingDoor,
    StallingStore,
    StallingWriter,
)

ROOT = Path(__file__).parents[2]
PLAYED = (
    *WRONG_ANSWERS,
    *WRONG_NUMBERS,
    *FRAMES,
    *(cheat for cheat, _ in CAUGHT),
    cut_short,
    OwnNonce,
    Redrawing,
    Blind,
    Copying,
    Silent,
    CorruptingStore,
    EquivocatingDoor,
    ForgettingStore,
    RefusingDoor,
    StallingStore,
    StallingWriter,
)


def read_rows():
    """The cells of every row under the tables' heads."""
    lines = (ROOT / "docs" / "cheats.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    return [row for row in rows if row[0] != "cheat"]


def find_tests():
    """Names of test functions by file."""
    found = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        kinds = ast.FunctionDef | ast.AsyncFunctionDef
        found[path.name] = {node.name for node in nodes if isinstance(node, kinds) and node.name.startswith("test_")}
    return found


def test_every_test_that_is_named_exists():
    tests, file = find_tests(), None
    for row in read_rows():
        assert len(row) == 4, row
        names = re.findall(r"`(test_[a-z0-9_.]+)`", row[3])
        if not row[3].startswith("the same"):
            assert names, f"{row[0]}: no test is named"
            assert names[0].endswith(".py"), row[0]
        for name in names:
            if name.endswith(".py"):
                file = name
            else:
                assert name in tests[file], f"{row[0]}: {file} has no {name}"


def test_every_cheat_that_is_played_is_in_the_table():
    named = {name for row in read_rows() for name in re.findall(r"`(\w+)`", row[0])}
    assert named == {cheat.__name__ for cheat in PLAYED}
