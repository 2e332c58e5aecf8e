"""Exactness of the embedded chain: fuzzed transactions to it and to anvil under Cancun rules, compared in everything.

Usage: python -m soak.chain [--seeds 20] [--transactions 250] [--seed N]
A finding prints the one command that repeats it and exits with 1; so does a run that did not reach every category.
"""

import argparse
import contextlib
import importlib.util
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from soak.chain_fuzz.campaign import Campaign
from soak.chain_fuzz.foreign import ForeignNode, run_anvil
from soak.chain_fuzz.twin import Mismatch
from soak.searches import Budget, Finding

SEED_TRANSACTIONS = 250
WHOLE_RUN = 5_000
"""Transactions after which every category must have been reached."""
PEERS = Path(__file__).resolve().parents[1] / "tests" / "peers" / "peers.py"


def search(budget: Budget) -> str:
    """Fresh seeds until the budget is spent."""
    deadline_s, seed = budget.deadline_s(), budget.seed * 1_000_000
    with open_campaign() as campaign:
        while not campaign.transactions or time.monotonic() < deadline_s:
            run_seed(campaign, seed, SEED_TRANSACTIONS)
            seed += 1
        check_reach(campaign)
        return f"{campaign.transactions} transactions over {seed - budget.seed * 1_000_000} seeds equal anvil's"


@contextlib.contextmanager
def open_campaign() -> Iterator[Campaign]:
    """A campaign on a foreign node of its own."""
    spec = importlib.util.spec_from_file_location("peers", PEERS)
    assert spec is not None, PEERS
    assert spec.loader is not None, PEERS
    peers = importlib.util.module_from_spec(spec)
    sys.modules["peers"] = peers
    spec.loader.exec_module(peers)
    with run_anvil(peers.install_peers().anvil) as url:
        node = ForeignNode(url)
        yield Campaign(node)
        node.close()


def run_seed(campaign: Campaign, seed: int, transactions: int) -> None:
    """One seed.

    Raises:
        Finding: the chains differ.
    """
    try:
        campaign.run_seed(seed, transactions)
    except Mismatch as mismatch:
        # A shorter history begins the same way, so the command may stop at the block in question.
        command = f"python -m soak.chain --seed {seed} --seeds 1 --transactions {campaign.sent}"
        raise Finding(f"seed {seed}, {mismatch}", command) from mismatch


def check_reach(campaign: Campaign) -> None:
    """A long run must have met everything it is for.

    Raises:
        Finding: it has not.
    """
    if campaign.transactions >= WHOLE_RUN and (missing := campaign.missing()):
        raise Finding(f"never reached: {', '.join(missing)}", "python -m soak.chain")


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak.chain", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20, help="how many seeds (default 20)")
    parser.add_argument("--transactions", type=int, default=SEED_TRANSACTIONS, help="of each seed (default 250)")
    parser.add_argument("--seed", type=int, default=1, help="first seed (default 1)")
    parser.add_argument("--counts", action="store_true", help="print what was reached, and both chains' refusals")
    options = parser.parse_args()
    with open_campaign() as campaign:
        try:
            for seed in range(options.seed, options.seed + options.seeds):
                run_seed(campaign, seed, options.transactions)
                print(f"seed {seed}: {campaign.transactions} transactions so far", flush=True)
            check_reach(campaign)
        except Finding as finding:
            print(f"FOUND: {finding}\nrepeat with: {finding.command}", file=sys.stderr)
            return 1
        finally:
            if options.counts:
                for name, count in sorted(campaign.counts.items()):
                    print(f"{count:8} {name}")
                for label, (ours, theirs) in sorted(campaign.errors.items()):
                    print(f"{label}\n    ours:  {ours}\n    anvil: {theirs}")
        blocks = campaign.counts["blocks"]
        print(f"{campaign.transactions} transactions in {blocks} blocks over {options.seeds} seeds equal anvil's")
    return 0


if __name__ == "__main__":
    sys.exit(main())
