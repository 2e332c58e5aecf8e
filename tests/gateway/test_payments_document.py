"""The tables of docs/payments.md name tests that are there, and every row names one."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLES = ("## What the worst costs whom", "## Vouchers that are refused")


def test_every_row_names_a_test_that_is_there():
    text = (ROOT / "docs" / "payments.md").read_text()
    written = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for title in TABLES:
        rows = [line for line in text.split(title)[1].split("\n## ")[0].splitlines() if line.startswith("| ")][1:]
        assert len(rows) > 5
        for row in rows:
            cell = row.rstrip("| ").rsplit("|", 1)[1]
            names = re.findall(r"`(test_\w+)`", cell)
            files = re.findall(r"(?:tests/[\w/]+/)?test_\w+\.py", cell)
            assert names or files, row
            assert [name for name in names if f"def {name}(" not in written] == []
