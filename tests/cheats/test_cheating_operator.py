"""What the operator of the embedded chain can do alone, and who sees it: README, "what you still trust".

It has no stake, so nothing of it can be slashed. What it signs twice anybody can show; what it leaves out of
blocks only the one who sent it knows.
"""

from dataclasses import replace

import pytest
from cheats_world import build_order, key_of

from deaios.ledger.eip712 import decode_json, recover_signer, sign_struct
from deaios.ledger.settings import LOCAL
from deaios.ledger.structs import Header, header_domain
from deaios.ledger.suite import COMPUTE
from deaios.primitives.encoding import decode_hex
from deaios.primitives.hashing import sha256

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_two_headers_at_one_height_name_the_operator_that_signed_them(world):
    operator, domain = key_of("operator"), header_domain(world.terms.chain_id)
    answer = await world.rpc.call("deaios_getHeader", ["latest"])
    shown, signature = decode_json(Header, answer["header"]), decode_hex(answer["signature"], 65)
    assert recover_signer(domain, shown, signature) == operator.address
    # To another reader the operator tells another history: both signatures are good, and only it could make both.
    other = replace(shown, state_commitment=sha256(b"another state"))
    forged = sign_struct(operator, domain, other)
    assert recover_signer(domain, other, forged) == operator.address
    assert (other.genesis_hash, other.height) == (shown.genesis_hash, shown.height)
    assert other != shown
    # Nobody else can make the operator look like that.
    framed = sign_struct(key_of("rival"), domain, other)
    assert recover_signer(domain, other, framed) != operator.address


async def test_an_answer_that_the_operator_keeps_out_of_blocks_costs_an_honest_provider_one_penalty(world):
    """As built silence and censorship look alike on chain; more than this one penalty a challenge cannot take."""
    c, doubter = world.contracts, world.watchers[3]
    async with world.selling("censored", world.machine.generate) as honest, world.buying("customer") as customer:
        await customer.buy(build_order(honest.address))
        await world.settle(honest)
        row, before = customer.channel_with(honest.address), await world.wealth(honest)
        await c.credit.ensure_allowance(doubter.sender, c.forks.address, LOCAL.claim_bond)
        await c.forks.challenge_claim(doubter.sender, row.config)
        await world.pass_time(LOCAL.claim_challenge_s)
        await c.forks.finalize_claim(world.operator, row.channel_id)
        # The receipt was there all the time.
        assert (await honest.seller.desk.fetch_last_receipt(row.channel_id)) is not None
        assert await world.wealth(honest) == before - LOCAL.fork_penalty
        assert await c.staking.slashed_of(COMPUTE, honest.address) == LOCAL.fork_penalty


async def test_an_answer_that_is_heard_costs_who_doubted_an_honest_claim_its_bond(world):
    c, doubter = world.contracts, world.watchers[3]
    async with world.selling("honest", world.machine.generate) as honest, world.buying("customer") as customer:
        await customer.buy(build_order(honest.address))
        await world.settle(honest)
        row, before = customer.channel_with(honest.address), await world.wealth(honest)
        doubt = await world.wealth(doubter)
        await c.credit.ensure_allowance(doubter.sender, c.forks.address, LOCAL.claim_bond)
        await c.forks.challenge_claim(doubter.sender, row.config)
        assert await honest.seller.collector.answer_challenges() == 1
        assert await world.wealth(honest) == before + LOCAL.claim_bond
        assert await world.wealth(doubter) == doubt - LOCAL.claim_bond
