"""Detection of every listed cheat, and honest tokens past every pair of engines, with fresh nonces.

Each seed has a results file of its own, and a search goes on where the last one with its seed stopped; the sum over
all files is what `python -m soak.detection` prints.
"""

import json
from pathlib import Path

from bench.detection.campaign import RESULTS, open_campaign
from bench.detection.summary import build_summary, print_summary

from deaios.compute.records import DEFAULT_THRESHOLDS
from soak.searches import Budget, Finding

FOLDER = RESULTS / "soak"
BRANCHES = 1
"""Branch points per round: few, so that rounds end within a budget of minutes."""


def search(budget: Budget) -> str:
    """Work until the budget ends.

    Raises:
        Finding: an honest token was flagged. That a cheat was missed in one window is expected, and only counted.
    """
    seed = budget.seed + 1  # the bench has seed 0
    campaign = open_campaign(seconds=budget.seconds, seed=seed, out=FOLDER / f"detection-{seed}.jsonl")
    campaign.branches = BRANCHES
    campaign.run()
    summary = build_summary(campaign.store.read())
    for name, row in summary["honest"].items():
        if row["flagged"]:
            raise Finding(
                f"{name}: {row['flagged']} of {row['tokens']} honest tokens above {DEFAULT_THRESHOLDS.margin} logits",
                f"python -m soak detection --seed {budget.seed} --seconds {budget.seconds:.0f} --rounds 1",
            )
    windows = sum(row["windows"] for row in summary["cheats"].values())
    caught = sum(row["caught"] for row in summary["cheats"].values())
    tokens = sum(row["tokens"] for row in summary["honest"].values())
    return (
        f"detection, seed {seed}: {caught} of {windows} cheating windows caught, {tokens} honest tokens, none flagged"
    )


def main() -> None:
    """Print the sum over all seeds."""
    results: dict[str, list[dict[str, object]]] = {}
    for path in sorted(FOLDER.glob("detection-*.jsonl")):
        for text in Path(path).read_text().splitlines():
            line = json.loads(text)
            results.setdefault(line["row"], []).append(line)
    print_summary(build_summary(results))


if __name__ == "__main__":
    main()
