"""Random contracts and calls on a chain whose engine has run for long: an engine that begins afresh agrees to the bit.

The producing engine keeps its journal, caches and tables from block to block; the follower's is stopped and started in
between. What depended on the history of a process would show as a divergence.
"""

import random
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
from chain_values import OPERATOR
from follower_values import following, producing
from soak.chain_fuzz.plan import Planner

from deaios.chain.blocks import next_base_fee
from deaios.chain.genesis import ETHER, Allocation, Genesis, compute_genesis_hash
from deaios.chain.service.inspection import check_chain
from deaios.ledger.transactions import recover_sender, sign_transaction
from deaios.primitives.keys import PrivateKey

BLOCKS = 30
RESTARTS = 3


@pytest.mark.parametrize("seed", [21])
async def test_a_fresh_engine_agrees_with_one_that_has_run_for_long(tmp_path, seed):
    rolls, counts = random.Random(seed), Counter()
    keys = [PrivateKey(rolls.randbytes(32)) for _ in range(4)]
    by_address = {key.address: key for key in keys}
    genesis = Genesis(
        rolls.randbytes(32), OPERATOR.address, 1, tuple(Allocation(key.address, 10**6 * ETHER) for key in keys)
    )
    anchor, ended = compute_genesis_hash(genesis), Counter()

    async def sync(url, number):
        async with following(tmp_path / "copy.db", url, genesis_hash=anchor) as copy:
            await copy.reach(number)
            return copy.chain.state, copy.chain.head

    async with producing(tmp_path / "chain.db", genesis=genesis) as (chain, url):
        # The planner asks what gas a call would take; between two blocks nobody else uses the engine.
        view = SimpleNamespace(
            state=chain.state, call=lambda message: chain._evm.call(chain.pending_context(), message)
        )
        planner = Planner(rolls, counts, view, keys[:3], keys[3], range(1, 10))
        for block in range(1, BLOCKS + 1):
            view.head, view.base_fee = chain.head, next_base_fee(chain.head)
            planner.begin_block()
            planned = [planner.plan().transaction for _ in range(rolls.randrange(1, 7))]
            signed = [
                sign_transaction(by_address[recover_sender(item)], replace(item, chain_id=genesis.chain_id))
                for item in planned
            ]
            results = await chain.submit([item.raw for item in signed])
            hashes = [item for item in results if isinstance(item, bytes)]
            while hashes and (await chain.receipt(hashes[-1])) is None:
                assert await chain.sealed.wait_for(chain.sealed.number + 1, 10)
            for item in hashes:
                _, receipt = await chain.receipt(item)
                ended["success" if receipt.is_success else "failure"] += 1
            if block % (BLOCKS // RESTARTS) == 0:
                state, head = await sync(url, chain.head.number)
                assert head == chain.head
                assert state == chain.state
    assert ended["success"] > 40
    assert ended["failure"] > 5
    checked = await check_chain(tmp_path / "copy.db", is_executing=True)
    assert checked.state_commitment == head.state_commitment
    assert checked.slots > 10
