"""Detection of every listed cheat with fresh seeds, by the bench's own measurement."""

import subprocess
import sys

from soak.searches import Budget, Finding


def search(budget: Budget) -> str:
    """Run whole; it takes longer than most budgets."""
    command = [sys.executable, "-m", "bench.detection", "--json"]
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise Finding(f"detection exited with {done.returncode}", "python -m bench.detection --json")
    return f"detection: one run, {budget.seconds:.0f} s were wanted"
