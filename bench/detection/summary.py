"""What finished windows and answers amount to: shares, exact bounds, and the rows of the bench file."""

import datetime as dt
import importlib.metadata
import platform
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.detection.bounds import compute_lower_bound, compute_upper_bound
from bench.detection.calibration import make_params
from bench.detection.cheats import CHEATS
from bench.detection.questions import kind_of
from bench.detection.store import Line
from bench.detection.windows import AUDITED_TOKENS
from bench.rows import Row
from deaios.compute.records import DEFAULT_THRESHOLDS

BAR = 0.95
WINDOWS_BAR = 1000
HONEST_BAR = 10_000
Summary = dict[str, Any]
"""JSON: Any because the lines it is made of are."""


def summarise_windows(lines: Sequence[Mapping[str, Any]]) -> Summary:  # Any: as above
    """One cheat."""
    caught = [line["caught"] for line in lines if line["caught"] is not None]
    missed = [line for line in lines if line["caught"] is None]
    places = sorted([*caught, *([AUDITED_TOKENS + 1] * len(missed))])
    audited = sum(line["tokens"] for line in lines)
    return {
        "windows": len(lines),
        "caught": len(caught),
        "share": len(caught) / len(lines),
        "lower_bound_95": compute_lower_bound(len(caught), len(lines)),
        "upper_bound_95": compute_upper_bound(len(caught), len(lines)),
        "median_tokens": statistics.median(places),
        "caught_in": {str(size): sum(place <= size for place in caught) for size in (16, 32, 64, 96, 128)},
        "violations_per_token": len(caught) / audited,
        "missed_by_kind": dict(sorted(Counter(kind_of(line["question"]) for line in missed).items())),
        "missed_by_offset": dict(sorted(Counter(str(line["offset"]) for line in missed).items())),
        "missed_inexact": sorted(line["inexact"] for line in missed),
    }


def summarise_answers(lines: Sequence[Mapping[str, Any]]) -> Summary:  # Any: as above
    """One honest pair."""
    tokens, flagged = sum(line["tokens"] for line in lines), sum(line["flagged"] for line in lines)
    return {
        "answers": len(lines),
        "tokens": tokens,
        "flagged": flagged,
        "flag_rate_upper_bound_95": compute_upper_bound(flagged, tokens),
        "inexact": sum(line["inexact"] for line in lines),
        "inexact_per_answer_max": max(line["inexact"] for line in lines),
        "margin_max": max(line["margin"] for line in lines),
    }


def build_summary(results: Mapping[str, Sequence[Line]]) -> Summary:
    """The whole outcome, with what it was measured on."""
    order = [cheat.name for cheat in CHEATS]
    cheats = {name: summarise_windows(results[name]) for name in order if results.get(name)}
    honest = {name: summarise_answers(lines) for name, lines in results.items() if lines and name not in order}
    listed = [cheats[cheat.name] for cheat in CHEATS if cheat.listed and cheat.name in cheats]
    whole = len(listed) == sum(cheat.listed for cheat in CHEATS)
    return {
        "rule": f"any margin above {DEFAULT_THRESHOLDS.margin} logits",
        "audited_tokens": AUDITED_TOKENS,
        "params": make_params().temperature_milli,
        "worst_lower_bound_95": min((row["lower_bound_95"] for row in listed), default=0.0) if whole else None,
        "windows_min": min((row["windows"] for row in listed), default=0) if whole else 0,
        "honest_flagged": sum(row["flagged"] for row in honest.values()),
        "cheats": cheats,
        "honest": honest,
        "cpu": _read_cpu(),
        "versions": {name: importlib.metadata.version(name) for name in ("numpy", "xllamacpp")},
        "python": platform.python_version(),
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
    }


def _read_cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def build_rows(summary: Summary) -> Iterator[Row]:
    """Rows of the bench file: bounds beside the bar, honest margins beside the threshold."""
    if summary["worst_lower_bound_95"] is not None:
        yield Row("compute.detection_128", summary["worst_lower_bound_95"], "share, lower", "bar", BAR)
    for name, row in summary["cheats"].items():
        unit = f"share, lower ({row['windows']} windows)"
        yield Row(f"compute.detection_128.{name}", row["lower_bound_95"], unit, "bar", BAR)
    for name, row in summary["honest"].items():
        unit = f"logit, max of {row['tokens']} tokens"
        yield Row(f"compute.honest_margin.{name}", row["margin_max"], unit, "threshold", DEFAULT_THRESHOLDS.margin)


def print_summary(summary: Summary) -> None:
    print(f"{'cheat':26} {'windows':>7} {'caught':>6} {'lower':>7} {'median':>6} {'32':>6} {'64':>6} {'128':>6}")
    for name, row in summary["cheats"].items():
        shares = " ".join(f"{row['caught_in'][size] / row['windows']:6.3f}" for size in ("32", "64", "128"))
        start = f"{name:26} {row['windows']:7} {row['caught']:6} {row['lower_bound_95']:7.4f}"
        print(f"{start} {row['median_tokens']:6.0f} {shares}")
    print(f"\n{'honest pair':26} {'tokens':>7} {'flagged':>7} {'inexact':>7} {'margin max':>10}")
    for name, row in summary["honest"].items():
        print(f"{name:26} {row['tokens']:7} {row['flagged']:7} {row['inexact']:7} {row['margin_max']:10.6f}")
    print(f"\nworst listed cheat: {summary['worst_lower_bound_95']}, bar {BAR}; {summary['windows_min']} windows")
