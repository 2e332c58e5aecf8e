"""Finished windows and answers as JSON lines, so that an interrupted run goes on where it stopped."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.detection.honest import Checked
from bench.detection.windows import Outcome

Line = dict[str, object]


class Store:
    """One file. A row's results are those numbered 0, 1, 2, ... without a gap; anything after a gap is ignored."""

    def __init__(self, path: Path, seed: int) -> None:
        self._path, self._seed = path, seed
        path.parent.mkdir(parents=True, exist_ok=True)

    def read(self) -> dict[str, list[Line]]:
        """Results of this seed by row, in order."""
        found: dict[str, dict[int, Line]] = {}
        if self._path.exists():
            for text in self._path.read_text().splitlines():
                line = json.loads(text)
                if line["seed"] == self._seed:
                    found.setdefault(line["row"], {})[line["number"]] = line
        return {row: _first_without_gap(lines) for row, lines in found.items()}

    def append(self, row: str, results: Sequence[Outcome | Checked]) -> None:
        """All or none, on disk when this returns."""
        lines = ({"seed": self._seed, "row": row, **asdict(result)} for result in results)
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        # One write to a file opened for appending: two processes may share the file.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            written = os.write(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if written != len(data):
            raise OSError(f"{self._path}: {written} of {len(data)} bytes written")


def _first_without_gap(lines: dict[int, Line]) -> list[Line]:
    found: list[Line] = []
    while (line := lines.get(len(found))) is not None:
        found.append(line)
    return found
