"""Simulated histories with fresh seeds, a thousand at a time."""

import time

from deaios.node.simulation.runs import run_histories, silence_logs
from soak.searches import Budget, Finding

HISTORIES = 20
SEEDS_PER_ROUND = 1_000_000


def search(budget: Budget) -> str:
    silence_logs()
    deadline_s, tried = budget.deadline_s(), 0
    while time.monotonic() < deadline_s:
        first = budget.seed * SEEDS_PER_ROUND + tried
        part = run_histories(range(first, first + HISTORIES))
        if part.failures:
            raise Finding(f"seed {part.failures[0].seed}: {part.failures[0].error}", part.failures[0].command)
        tried += part.histories
    return f"{tried} simulated histories"
