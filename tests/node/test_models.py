import hashlib
import json
from pathlib import Path

from deaios.node.models import CALIBRATION

EVIDENCE = Path(__file__).parents[2] / "docs" / "spec" / "calibration.json"


def test_the_record_cites_the_measurement_that_is_kept() -> None:
    data = EVIDENCE.read_bytes()
    assert hashlib.sha256(data).digest() == CALIBRATION.evidence
    honest = [
        row for row in json.loads(data)["margins"] if row["name"] in ("honest llama -> numpy", "honest numpy -> llama")
    ]
    assert sum(row["tokens"] for row in honest) == CALIBRATION.tokens
    assert round(max(row["margin_max"] for row in honest) * 1e6) == CALIBRATION.margin_max_micro
    assert all(row["violations"] == 0 for row in honest)
