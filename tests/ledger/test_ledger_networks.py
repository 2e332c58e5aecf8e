"""Delegation, networks and proofs of lies through their typed clients: two real engines, the root and a further one."""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from deaios.chain.genesis import Allocation, Genesis
from deaios.chain.service import ChainService, Limits, build_application
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.deployment import deploy_suite, fetch_network_id
from deaios.ledger.client.networks import Assignment
from deaios.ledger.client.rpc import Reverted, Rpc
from deaios.ledger.client.sender import Patience, Sender
from deaios.ledger.client.staking import Commission, Pots, StakeAccount
from deaios.ledger.eip712 import Domain, decode_json, recover_signer, sign_struct
from deaios.ledger.networks import Validator, build_network_id, hash_validators
from deaios.ledger.settings import LOCAL
from deaios.ledger.structs import Checkpoint, Header, ValsetUpdate, header_domain, networks_domain
from deaios.ledger.suite import CONSENSUS
from deaios.primitives.encoding import decode_hex
from deaios.primitives.hashing import ZERO32, keccak256
from deaios.primitives.keys import ZERO_ADDRESS, Address, PrivateKey
from deaios.primitives.units import CREDIT
from deaios.runtime.clock import SystemClock
from deaios.runtime.http import serve

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT, THIRD = PrivateKey(b"\x01" * 32), PrivateKey(b"\x03" * 32)
COIN = 10**18
SALT = b"\x07" * 32
STAKES = (100 * CREDIT, 70 * CREDIT)


class ShiftedClock(SystemClock):
    """The machine's clock, moved forward by tests in place of waiting."""

    shift_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.shift_ms


@asynccontextmanager
async def run_engine(path: Path, key: PrivateKey, clock: ShiftedClock) -> AsyncIterator[tuple[Rpc, int]]:
    """An embedded chain of its own genesis; its RPC and chain id."""
    genesis = Genesis(keccak256(key.address), key.address, int(time.time()), (Allocation(key.address, 10**9 * COIN),))
    with ThreadPoolExecutor(3) as executor:
        limits = Limits(block_ms=10, gather_ms=1)
        service = await ChainService.start(path, key, genesis, executor=executor, clock=clock, limits=limits)
        async with serve(build_application(service)) as url, Rpc(url) as rpc:
            running = asyncio.create_task(service.run())
            yield rpc, service.chain_id
            running.cancel()
            await asyncio.wait([running])
        await service.close()


@dataclass
class Pair:
    """The root with its suite, a further chain whose operator's key is a validator's, and the people."""

    root: Rpc
    root_chain_id: int
    third: Rpc
    third_chain_id: int
    clock: ShiftedClock
    c: Contracts
    operator: Sender
    network: bytes = ZERO32
    names: int = 0

    def sender(self, key: PrivateKey) -> Sender:
        return Sender(self.root, key, self.root_chain_id, patience=Patience(poll_min_s=0.01))

    async def actor(self, credit: int = 300 * CREDIT) -> Sender:
        """A new key with gas and Credit."""
        self.names += 1
        sender = self.sender(PrivateKey(keccak256(f"actor {self.names}".encode())))
        await self.operator.send(sender.address, b"", value=COIN)
        await self.c.credit.transfer(self.operator, sender.address, credit)
        for spender in (self.c.staking.address, self.c.networks.address):
            await self.c.credit.ensure_allowance(sender, spender, credit)
        return sender

    async def validator(self, stake: int) -> Sender:
        sender = await self.actor()
        await self.c.staking.stake(sender, stake)
        await self.c.staking.opt_in(sender, CONSENSUS, 10_000)
        return sender

    async def signed_header(self) -> tuple[Header, bytes]:
        """What the further engine itself signed last."""
        await Sender(self.third, THIRD, self.third_chain_id, patience=Patience(poll_min_s=0.01)).send(ROOT.address, b"")
        height = hex(await self.third.block_number())
        async with asyncio.timeout(30):
            while True:
                record = await self.third.call("deaios_getHeader", [height])
                assert isinstance(record, dict)
                if record["signature"] is not None:
                    return decode_json(Header, record["header"]), decode_hex(record["signature"])

    @property
    def across(self) -> Domain:
        return networks_domain(self.root_chain_id, self.c.networks.address)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    folder, clock = tmp_path_factory.mktemp("chains"), ShiftedClock()
    async with (
        run_engine(folder / "root.db", ROOT, clock) as (root, root_chain_id),
        run_engine(folder / "third.db", THIRD, clock) as (third, third_chain_id),
    ):
        operator = Sender(root, ROOT, root_chain_id, patience=Patience(poll_min_s=0.01))
        contracts = Contracts(root, await deploy_suite(operator, root, LOCAL))
        yield Pair(root, root_chain_id, third, third_chain_id, clock, contracts, operator)


async def test_delegated_stake_and_rewards(pair: Pair) -> None:
    staking, operator, backer = pair.c.staking, await pair.validator(STAKES[0]), await pair.actor()
    await staking.delegate(backer, operator.address, 100 * CREDIT)
    assert await staking.power(CONSENSUS, operator.address) == 200 * CREDIT
    await staking.set_commission(operator, 1000)
    commission = await staking.commission_of(operator.address)
    assert commission == Commission(0, 1000, commission.next_at)
    await staking.reward(backer, operator.address, 2 * CREDIT)
    await staking.undelegate(backer, operator.address, 50 * CREDIT)
    assert await staking.pots_of(operator.address) == Pots(152 * CREDIT, 50 * CREDIT)
    account = await staking.account_of(operator.address, backer.address)
    assert account == StakeAccount(51 * CREDIT - 1, 50 * CREDIT, account.release)
    with pytest.raises(Reverted, match="unbonding time has not passed"):
        await staking.withdraw_from(backer, operator.address)
    assert await staking.payout_left(CONSENSUS) == LOCAL.slash_payout_max
    pair.clock.shift_ms += LOCAL.unbonding_s * 1000
    before = await pair.c.credit.balance_of(backer.address)
    await staking.withdraw_from(backer, operator.address)
    assert await pair.c.credit.balance_of(backer.address) == before + 50 * CREDIT


async def test_a_double_sign_on_a_further_chain_costs_stake_at_the_root(pair: Pair) -> None:
    networks, founder, stranger = pair.c.networks, await pair.actor(), await pair.actor()
    liar, honest = [await pair.validator(stake) for stake in STAKES]
    genesis_hash = await fetch_network_id(pair.third)
    founded = await networks.add(founder, genesis_hash, pair.third_chain_id, ZERO_ADDRESS, SALT, [CONSENSUS])
    network = founded.value
    assert network == build_network_id(founder.address, genesis_hash, pair.third_chain_id, SALT)
    assert await networks.network_ids() == (network,)
    record = await networks.network_of(network)
    assert record is not None
    assert (record.founder, record.chain_id, record.bond) == (
        founder.address,
        pair.third_chain_id,
        LOCAL.network_bond,
    )
    assert await networks.network_of(SALT) is None
    assert await networks.services_of(network) == (CONSENSUS,)
    assert await networks.validators_of(network) == ()
    await networks.join(liar, network, THIRD, pair.root_chain_id)
    other_key = PrivateKey(b"\x55" * 32)
    await networks.join(honest, network, other_key, pair.root_chain_id)
    begun = (await networks.begin_epoch(stranger, network)).value
    assert begun.validators == (Validator(THIRD.address, STAKES[0]), Validator(other_key.address, STAKES[1]))
    assert begun.epoch.validators_hash == hash_validators(begun.validators)
    assert await networks.epoch_of(network) == begun.epoch == await networks.snapshot_of(network, 1)
    assert await networks.fetch_epochs(network) == (begun,)
    assert await networks.key_of(network, liar.address) == THIRD.address
    assert await networks.key_of(network, founder.address) is None

    header, signature = await pair.signed_header()
    domain = header_domain(pair.third_chain_id)
    assert header.genesis_hash == genesis_hash
    assert recover_signer(domain, header, signature) == THIRD.address
    forged = replace(header, state_commitment=keccak256(b"another state"))
    evidence = (header, signature), (forged, sign_struct(THIRD, domain, forged))
    judge, before = pair.c.equivocation, await pair.c.credit.balance_of(stranger.address)
    await judge.commit(stranger, header, forged, SALT)
    proven = await judge.prove_headers(stranger, network, *evidence, SALT)
    assert proven.value == STAKES[0] // 2
    assert await pair.c.credit.balance_of(stranger.address) == before + proven.value // 10
    assert await pair.c.staking.pots_of(liar.address) == Pots(STAKES[0] // 2, 0)
    found = await networks.assignment_of(THIRD.address)
    assert found == Assignment(liar.address, network, found.left_at if found else 0, is_buried=True)
    assert not await networks.is_accountable(THIRD.address)
    assert await networks.is_urgent(network)
    next_epoch = (await networks.begin_epoch(stranger, network)).value
    assert next_epoch.validators == (Validator(other_key.address, STAKES[1]),)
    assert await pair.c.staking.jailed_until(CONSENSUS, liar.address) > 0
    with pytest.raises(Reverted, match="jail time has not passed"):
        await pair.c.staking.unjail(liar, CONSENSUS)
    pair.clock.shift_ms += LOCAL.jail_s * 1000
    await pair.c.staking.unjail(liar, CONSENSUS)
    with pytest.raises(Reverted, match="key was used before"):
        await networks.join(liar, network, THIRD, pair.root_chain_id)
    await networks.join(liar, network, PrivateKey(b"\x56" * 32), pair.root_chain_id)
    pair.network = network


async def test_false_sets_and_checkpoints(pair: Pair) -> None:
    """Goes on with the network of the test above."""
    network, stranger, judge = pair.network, await pair.actor(), pair.c.equivocation
    keys = [PrivateKey(bytes([0x55 + number]) * 32) for number in range(2)]
    truth = (await pair.c.networks.epoch_of(network)).to_update(network)
    assert truth == ValsetUpdate(network, 2, truth.begun_at, truth.validators_hash)
    lie = replace(truth, validators_hash=SALT)
    for update, reason in ((truth, "the update is true"), (lie, None)):
        await judge.commit(stranger, update, None, SALT)
        signature = sign_struct(keys[0], pair.across, update)
        if reason is None:
            assert (await judge.prove_valset(stranger, update, signature, SALT)).value == STAKES[1] // 2
        else:
            with pytest.raises(Reverted, match=reason):
                await judge.prove_valset(stranger, update, signature, SALT)
    a = Checkpoint(ZERO32, network, 5, SALT)
    b = replace(a, root=ZERO32)
    await judge.commit(stranger, a, b, SALT)
    pairs = [(item, sign_struct(keys[1], pair.across, item)) for item in (a, b)]
    assert (await judge.prove_checkpoints(stranger, pairs[0], pairs[1], SALT)).value == STAKES[0] // 4


async def test_a_network_is_given_up_and_its_bond_returned(pair: Pair) -> None:
    networks, founder = pair.c.networks, await pair.actor()
    network = (await networks.add(founder, SALT, 7, Address(b"\x09" * 20), SALT)).value
    operator = await pair.validator(STAKES[0])
    await networks.join(operator, network, PrivateKey(b"\x57" * 32), pair.root_chain_id)
    await networks.leave(operator, network)
    await networks.retire(founder, network)
    with pytest.raises(Reverted, match="its keys still answer"):
        await networks.reclaim(operator, network)
    pair.clock.shift_ms += (LOCAL.network_trust_s + LOCAL.evidence_s) * 1000
    before = await pair.c.credit.balance_of(founder.address)
    await networks.reclaim(operator, network)
    assert await pair.c.credit.balance_of(founder.address) == before + LOCAL.network_bond
