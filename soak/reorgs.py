"""Reorganisations on a foreign node (anvil) at random instants: blocks are taken back, what they held is dropped, or is
included again in other blocks and in another order. The seed fixes the choices, not the instants of other processes.
"""

import asyncio
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from deaios.ledger.client.rpc import RefusedByChain, Rpc
from deaios.primitives.errors import Invalid, Unavailable

DEPTH_MAX = 3
HABITS = ("drop all", "drop some", "another order", "other blocks")
PAUSE_S = (1.5, 6.0)
"""Between two reorganisations, at least and at most."""


@dataclass
class Reorgs:
    """Takes blocks back until it is cancelled.

    Attributes:
        counts: how often which habit was followed, and how many transactions were dropped, moved or kept.
        depths: how often how many blocks that were seen before were taken back.
    """

    rpc: Rpc
    dice: random.Random
    depth_max: int = DEPTH_MAX
    pause_s: tuple[float, float] = PAUSE_S
    counts: Counter[str] = field(default_factory=Counter)
    depths: Counter[int] = field(default_factory=Counter)

    async def run(self) -> None:
        """Until cancelled; a node that is busy is asked again at the next instant."""
        while True:
            await asyncio.sleep(self.dice.uniform(*self.pause_s))
            try:
                await self.strike()
            except (Unavailable, RefusedByChain, Invalid) as error:
                self.counts[f"failed: {str(error)[:80]}"] += 1

    async def strike(self) -> None:
        """One reorganisation of at most `depth_max` blocks."""
        depth, habit = self.dice.randint(1, self.depth_max), self.dice.choice(HABITS)
        head = await self.rpc.block_number()
        if head <= depth:
            return
        heights = range(head - depth + 1, head + 1)
        blocks = await self.rpc.batch([("eth_getBlockByNumber", [hex(height), True]) for height in heights])
        if None in blocks:
            return
        held = [(place, item) for place, block in enumerate(blocks) for item in block["transactions"]]
        kept = self._choose(habit, held, depth)
        raws = await self._fetch_raws([item["hash"] for _, item in kept])
        await self.rpc.call("anvil_reorg", [depth, [[raw, place] for raw, (place, _) in zip(raws, kept, strict=True)]])
        # The node gives new blocks the times of old ones; a real network's new blocks are of now.
        await self.rpc.call("evm_setNextBlockTimestamp", [hex(self.rpc.clock.now_ms() // 1000)])
        found = await self.rpc.batch([("eth_getBlockByNumber", [hex(height), False]) for height in heights])
        # A block that came meanwhile makes it one less of these: what is counted is what really changed.
        changed = [new is None or new["hash"] != old["hash"] for new, old in zip(found, blocks, strict=True)]
        self.depths[sum(changed)] += 1
        self.counts[habit] += 1
        self.counts["transactions included again"] += len(kept)
        self.counts["transactions dropped"] += len(held) - len(kept)

    def _choose(
        self,
        habit: str,
        held: list[tuple[int, dict[str, Any]]],
        depth: int,  # Any: JSON
    ) -> list[tuple[int, dict[str, Any]]]:
        """(place of the block, transaction), in order of inclusion: of each sender a run of nonces without a gap."""
        by_sender: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for _, item in held:
            by_sender[item["from"]].append(item)
        chosen: list[tuple[int, int, dict[str, Any]]] = []
        for items in by_sender.values():
            items.sort(key=lambda item: int(item["nonce"], 16))
            count = {"drop all": 0, "drop some": self.dice.randint(0, len(items))}.get(habit, len(items))
            places = sorted(self.dice.randrange(depth) for _ in range(count))
            if habit == "another order":
                places = [0] * count
            chosen += [(place, self.dice.getrandbits(16), item) for place, item in zip(places, items, strict=False)]
        # Of one sender in one block the nonces keep their order; between senders chance decides.
        chosen.sort(key=lambda entry: (entry[0], entry[1]))
        return _order_nonces(chosen)

    async def _fetch_raws(self, hashes: list[str]) -> list[str]:
        if not hashes:
            return []
        return await self.rpc.batch([("eth_getRawTransactionByHash", [item]) for item in hashes])


def _order_nonces(chosen: list[tuple[int, int, dict[str, Any]]]) -> list[tuple[int, dict[str, Any]]]:
    """Give each sender's slots its transactions in the order of their nonces."""
    waiting: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for _, _, item in chosen:
        waiting[item["from"]].append(item)
    for items in waiting.values():
        items.sort(key=lambda item: int(item["nonce"], 16))
    return [(place, waiting[item["from"]].pop(0)) for place, _, item in chosen]


def describe(reorgs: Reorgs) -> str:
    """What was done, in words."""
    depths = ", ".join(f"{count} of depth {depth}" for depth, count in sorted(reorgs.depths.items()))
    return f"{sum(reorgs.depths.values())} reorganisations ({depths}); " + ", ".join(
        f"{name}: {count}" for name, count in sorted(reorgs.counts.items())
    )
