"""Every contract through its typed client, on the embedded chain: deployment, money, juries, proofs, the faucet."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from deaios.chain.genesis import Allocation, Genesis
from deaios.chain.service import ChainService, Limits, build_application
from deaios.coding import matrix as coding
from deaios.ledger.abi import InvalidAbiData
from deaios.ledger.client.availability import Certificate, Challenge
from deaios.ledger.client.channels import ChannelBalance, PendingWithdrawal, ReceiverTotals, VoucherClaim
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.credit import Credit
from deaios.ledger.client.deadlines import fetch_deadline
from deaios.ledger.client.deployment import InvalidDeployment, deploy_suite, fetch_network_id, verify_suite
from deaios.ledger.client.faucet import Faucet, RefusedGrant, UnavailableFaucet
from deaios.ledger.client.receipts import BatchRecord
from deaios.ledger.client.rpc import Reverted, Rpc
from deaios.ledger.client.sender import Patience, RefusedOutOfGasMoney, Sender
from deaios.ledger.client.staking import Member, Unbonding
from deaios.ledger.commitments import build_deposit_authorization
from deaios.ledger.committee import InvalidCommittee, build_committee
from deaios.ledger.eip712 import hash_struct, hash_typed_data, sign_struct
from deaios.ledger.phases import BeaconPhase, Decision, DisputePhase
from deaios.ledger.settings import LOCAL
from deaios.ledger.structs import (
    ChannelConfig,
    Judgement,
    Receipt,
    Refund,
    Request,
    RowAttestation,
    Verdict,
    Voucher,
    availability_domain,
    channels_domain,
    protocol_domain,
    token_domain,
)
from deaios.ledger.suite import (
    AUDIT,
    COMPUTE,
    CREDIT_NAME,
    CREDIT_VERSION,
    DATA_AVAILABILITY,
    compute_contract_address,
)
from deaios.primitives.errors import ConfigError
from deaios.primitives.hashing import ZERO32, keccak256, sha256, tagged_sha256
from deaios.primitives.keys import ZERO_ADDRESS, Address, PrivateKey
from deaios.primitives.merkle import build_root, prove_leaf
from deaios.primitives.units import CREDIT
from deaios.runtime.clock import SystemClock
from deaios.runtime.http import serve

pytestmark = pytest.mark.asyncio(loop_scope="module")

OPERATOR = PrivateKey(b"\x01" * 32)
PATIENCE = Patience(poll_min_s=0.01)
COIN = 10**18
MOMENT = 3600


class ShiftedClock(SystemClock):
    """The machine's clock, moved forward by tests in place of waiting."""

    shift_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.shift_ms


@dataclass
class Chain:
    """A running embedded chain."""

    rpc: Rpc
    chain_id: int
    clock: ShiftedClock
    contracts: Contracts | None = None
    names: int = 0

    def sender(self, key: PrivateKey) -> Sender:
        return Sender(self.rpc, key, self.chain_id, patience=PATIENCE)

    def jump(self, seconds: int) -> None:
        self.clock.shift_ms += seconds * 1000

    async def fetch_deadline(self) -> int:
        return 0 if self.contracts is None else await fetch_deadline(self.contracts)

    def make_key(self) -> PrivateKey:
        self.names += 1
        return PrivateKey(keccak256(f"actor {self.names}".encode()))


@asynccontextmanager
async def run_chain(path: Path) -> AsyncIterator[Chain]:
    clock = ShiftedClock()
    holder: list[Chain] = []

    async def deadline() -> int:
        return await holder[0].fetch_deadline()

    genesis = Genesis(b"\x07" * 32, OPERATOR.address, int(time.time()), (Allocation(OPERATOR.address, 10**9 * COIN),))
    with ThreadPoolExecutor(3) as executor:
        service = await ChainService.start(
            path / "chain.sqlite",
            OPERATOR,
            genesis,
            executor=executor,
            clock=clock,
            deadline=deadline,
            limits=Limits(block_ms=10, gather_ms=1),
        )
        async with serve(build_application(service)) as url, Rpc(url) as rpc:
            holder.append(Chain(rpc, service.chain_id, clock))
            running = asyncio.create_task(service.run())
            yield holder[0]
            running.cancel()
            await asyncio.wait([running])
        await service.close()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def chain(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Chain]:
    async with run_chain(tmp_path_factory.mktemp("chain")) as made:
        yield made


@dataclass
class Network:
    """The deployed suite and who pays for everything."""

    chain: Chain
    c: Contracts
    operator: Sender
    faucet: Faucet

    async def actor(self) -> Sender:
        """A new key with gas and Credit from the faucet."""
        key = self.chain.make_key()
        await self.faucet.give(key.address)
        return self.chain.sender(key)

    async def pay(self, to: Address, amount: int) -> None:
        await self.c.credit.transfer(self.operator, to, amount)

    async def join(self, sender: Sender, service: bytes, amount: int) -> None:
        await self.c.credit.ensure_allowance(sender, self.c.staking.address, amount)
        await self.c.staking.stake(sender, amount)
        await self.c.staking.opt_in(sender, service, 10_000)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def network(chain: Chain) -> Network:
    operator = chain.sender(OPERATOR)
    addresses = await deploy_suite(operator, chain.rpc, LOCAL)
    contracts = Contracts(chain.rpc, addresses)
    chain.contracts = contracts
    return Network(chain, contracts, operator, Faucet(operator, contracts, LOCAL.faucet_native, LOCAL.faucet_credit))


def key_of(sender: Sender) -> PrivateKey:
    return sender._key


@dataclass
class Trade:
    """A channel from a buyer to a provider, and what both sign."""

    network: Network
    buyer: Sender
    provider: Sender
    config: ChannelConfig
    channel_id: bytes

    def request(self, fee: int) -> tuple[Request, bytes]:
        request = Request(b"\x61" * 32, self.provider.address, b"\x62" * 32, self.channel_id, fee, b"\x63" * 32, 10_000)
        return request, sign_struct(key_of(self.buyer), self.domain, request)

    def receipt(
        self, request: Request, fee: int, counter: int = 1, output: bytes = b"\x71" * 32
    ) -> tuple[Receipt, bytes]:
        receipt = Receipt(
            request_digest=hash_struct(request),
            counter=counter,
            prev_receipt=ZERO32,
            output_commitment=output,
            prompt_tokens=10,
            cached_tokens=0,
            completion_tokens=20,
            finish_reason=0,
            stop_index=0,
            state=0,
            level=2,
            engine_profile=b"\x72" * 32,
            fingerprint_root=ZERO32,
            fee=fee,
            channel_id=self.channel_id,
            charged_cumulative=fee,
            batch_deadline_block=99_999,
            started_at_ms=1,
            first_token_at_ms=2,
            finished_at_ms=3,
        )
        return receipt, sign_struct(key_of(self.provider), self.domain, receipt)

    def voucher(self, amount: int) -> bytes:
        c = self.network.c
        domain = channels_domain(self.network.chain.chain_id, c.channels.address)
        return sign_struct(key_of(self.buyer), domain, Voucher(self.channel_id, amount))

    @property
    def domain(self):
        return protocol_domain(self.network.chain.chain_id, self.network.c.disputes.address)


async def open_trade(network: Network, amount: int = 5 * CREDIT) -> Trade:
    buyer, provider = await asyncio.gather(network.actor(), network.actor())
    c, chain_id = network.c, network.chain.chain_id
    await network.join(provider, COMPUTE, 60 * CREDIT)
    config = ChannelConfig(
        buyer.address, buyer.address, provider.address, provider.address, c.credit.address, 900, b"\x01" * 32
    )
    channel_id = hash_typed_data(channels_domain(chain_id, c.channels.address), config)
    window = {"valid_after": 0, "valid_before": 2**40, "salt": 7}
    authorization = build_deposit_authorization(config, channel_id, c.channels.address, amount, **window)
    domain = token_domain(CREDIT_NAME, CREDIT_VERSION, chain_id, c.credit.address)
    signature = sign_struct(key_of(buyer), domain, authorization)
    await c.channels.deposit(provider, config, amount, **window, signature=signature)
    assert await c.credit.authorization_state(buyer.address, authorization.nonce)
    return Trade(network, buyer, provider, config, channel_id)


async def test_deployed_suite_is_what_was_planned(network: Network) -> None:
    c, rpc = network.c, network.chain.rpc
    assert c.credit.address == compute_contract_address(OPERATOR.address, 0)
    assert await c.credit.total_supply() <= LOCAL.credit_supply
    assert (await c.credit.name(), await c.credit.symbol(), await c.credit.decimals()) == (CREDIT_NAME, "CREDIT", 6)
    assert (await c.disputes.settings()).jury_size == 3
    assert await c.staking.is_judge(COMPUTE, c.forks.address)
    assert not await c.staking.is_judge(AUDIT, c.forks.address)
    assert await c.staking.min_power(COMPUTE) == 50 * CREDIT
    domain = protocol_domain(network.chain.chain_id, c.disputes.address)
    assert await c.disputes.domain_separator() == domain.separator()
    await verify_suite(rpc, c.addresses, LOCAL)
    assert len(await fetch_network_id(rpc)) == 32


async def test_deployment_again_changes_nothing(network: Network) -> None:
    nonce = await network.chain.rpc.get_nonce(OPERATOR.address)
    seen: list[str] = []
    again = await deploy_suite(network.operator, network.chain.rpc, LOCAL, progress=lambda name, _: seen.append(name))
    assert again == network.c.addresses
    assert len(seen) == 16
    assert await network.chain.rpc.get_nonce(OPERATOR.address) == nonce


async def test_deployment_goes_on_where_it_stopped(network: Network) -> None:
    rpc, chain = network.chain.rpc, network.chain
    key = chain.make_key()
    await network.operator.send(key.address, value=COIN)
    deployer = chain.sender(key)
    seen: list[str] = []

    def stop_after_four(name: str, _address: Address) -> None:
        seen.append(name)
        if len(seen) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await deploy_suite(deployer, rpc, LOCAL, progress=stop_after_four)
    assert await rpc.get_nonce(key.address) == 4
    addresses = await deploy_suite(chain.sender(key), rpc, LOCAL)
    assert addresses.availability == compute_contract_address(key.address, 9)
    assert await rpc.get_nonce(key.address) == 16


async def test_deployer_that_sent_something_else_is_refused(network: Network) -> None:
    rpc, chain = network.chain.rpc, network.chain
    deployer = await network.actor()
    await deployer.send(OPERATOR.address, value=1)
    with pytest.raises(ConfigError, match=r"nonce 0 of deployer .* was spent, but Credit is not at"):
        await deploy_suite(deployer, rpc, LOCAL)
    with pytest.raises(ConfigError, match="has nonce 1, the plan begins at 5"):
        await deploy_suite(deployer, rpc, LOCAL, first_nonce=5)
    addresses = await deploy_suite(deployer, rpc, LOCAL, first_nonce=1)
    assert addresses.credit == compute_contract_address(deployer.address, 1)
    assert chain.contracts is network.c


async def test_verify_suite_finds_what_is_wrong(network: Network) -> None:
    rpc, addresses = network.chain.rpc, network.c.addresses
    nowhere = dataclasses.replace(addresses, forks=Address(b"\x99" * 20))
    with pytest.raises(InvalidDeployment, match=r"Forks at 0x9999.* does not exist"):
        await verify_suite(rpc, nowhere, LOCAL)
    swapped = dataclasses.replace(addresses, forks=addresses.beacon, beacon=addresses.forks)
    with pytest.raises(InvalidDeployment, match="is not this program's version"):
        await verify_suite(rpc, swapped, LOCAL)
    for change in (
        {"appeal_s": 9},
        {"unbonding_s": 86_401},
        {"audit_stake_min": 1},
        {"claim_bond": 2},
        {"da_answer_s": 31},
    ):
        with pytest.raises(InvalidDeployment, match="expected"):
            await verify_suite(rpc, addresses, dataclasses.replace(LOCAL, **change))


async def test_wrong_address_says_so(network: Network) -> None:
    with pytest.raises(InvalidAbiData, match="no such contract is at 0x9999"):
        await Credit(network.chain.rpc, Address(b"\x99" * 20)).total_supply()


async def test_faucet_gives_once(network: Network) -> None:
    c, rpc = network.c, network.chain.rpc
    keys = [network.chain.make_key() for _ in range(3)]
    grants = await asyncio.gather(*(network.faucet.give(key.address) for key in keys))
    for key, grant in zip(keys, grants, strict=True):
        assert (grant.native_amount, grant.credit_amount) == (LOCAL.faucet_native, LOCAL.faucet_credit)
        assert await c.credit.balance_of(key.address) == LOCAL.faucet_credit
        assert await rpc.get_balance(key.address) == LOCAL.faucet_native
    spent = network.chain.sender(keys[0])
    await c.credit.transfer(spent, OPERATOR.address, LOCAL.faucet_credit)
    restarted = Faucet(network.operator, c, LOCAL.faucet_native, LOCAL.faucet_credit)
    for bad in (keys[0].address, ZERO_ADDRESS, OPERATOR.address, c.credit.address):
        with pytest.raises(RefusedGrant):
            await restarted.give(bad)
    rich = network.chain.make_key()
    await network.operator.send(rich.address, value=LOCAL.faucet_native)
    grant = await restarted.give(rich.address)
    assert (grant.native_hash, grant.native_amount) == (None, 0)


async def test_dry_faucet_says_so(network: Network) -> None:
    poor = await network.actor()
    dry = Faucet(poor, network.c, 1, LOCAL.faucet_credit + 1)
    with pytest.raises(UnavailableFaucet, match="the grants under way need"):
        await dry.give(Address(b"\x55" * 20))
    without_gas = Faucet(poor, network.c, 10**30, 1)
    with pytest.raises(UnavailableFaucet, match="no native coin"):
        await without_gas.give(Address(b"\x56" * 20))


async def test_new_key_without_gas_money(network: Network) -> None:
    with pytest.raises(RefusedOutOfGasMoney, match="it has 0 wei"):
        await network.c.credit.approve(network.chain.sender(network.chain.make_key()), OPERATOR.address, 1)


async def test_credit(network: Network) -> None:
    c = network.c
    owner, spender = await asyncio.gather(network.actor(), network.actor())
    with pytest.raises(Reverted, match="balance"):
        await c.credit.transfer(owner, spender.address, 10**15)
    assert await c.credit.ensure_allowance(owner, spender.address, 30) is not None
    assert await c.credit.ensure_allowance(owner, spender.address, 30) is None
    receipt = await c.credit.transfer_from(spender, owner.address, spender.address, 20)
    assert await c.credit.allowance(owner.address, spender.address) == 10
    (event,) = c.credit.contract.decode_logs(receipt.logs)[-1:]
    assert (event.name, list(event.values.values())) == ("Transfer", [owner.address, spender.address, 20])
    supply = await c.credit.total_supply()
    await c.credit.burn(spender, 20)
    assert await c.credit.total_supply() == supply - 20


async def test_many_sends_at_once_share_one_account(network: Network) -> None:
    c = network.c
    sender, to = await network.actor(), Address(b"\x57" * 20)
    await asyncio.gather(*(c.credit.transfer(sender, to, i + 1) for i in range(40)))
    assert await c.credit.balance_of(to) == sum(range(41))
    assert await network.chain.rpc.get_nonce(sender.address) == 40
    moved = await c.credit.contract.fetch_events("Transfer", sender=sender.address, receiver=to)
    assert sorted(event.values["value"] for event in moved) == list(range(1, 41))


async def test_balances_are_of_one_block(network: Network) -> None:
    c, sender = network.c, await network.actor()
    to = network.chain.make_key().address
    sending = asyncio.gather(*(c.credit.transfer(sender, to, 1) for _ in range(20)))
    while not sending.done():
        balances = await c.credit.fetch_balances([sender.address, to, *(bytes([9, i]) + bytes(18) for i in range(120))])
        assert balances.amounts[sender.address] + balances.amounts[to] == LOCAL.faucet_credit
    await sending
    assert (await c.credit.fetch_balances([to])).amounts == {to: 20}


async def test_identities(network: Network) -> None:
    registry = network.c.identities
    owner = await network.actor()
    assert await registry.agent_of(owner.address) == 0
    agent = await registry.ensure_registered(owner, "http://127.0.0.1:1", "provider")
    assert await registry.ensure_registered(owner, "http://127.0.0.1:1", "provider") == agent
    moved = await registry.ensure_registered(owner, "http://127.0.0.1:2", "auditor")
    assert moved.agent_id == agent.agent_id
    assert await registry.get_role(agent.agent_id) == "auditor"
    assert await registry.owner_of(agent.agent_id) == owner.address
    assert moved in await registry.list_agents()
    assert await registry.list_agents(limit=1) == (moved,)
    assert await registry.list_role("auditor") == (moved,)
    assert await registry.list_role("provider") == ()
    with pytest.raises(Reverted):
        await registry.set_url(network.operator, agent.agent_id, "http://evil")


async def test_catalogue(network: Network) -> None:
    catalogue, record = network.c.catalogue, b'{"model":"' + b"x" * 5000 + b'"}'
    outcome = await catalogue.publish(network.operator, record)
    assert outcome.value == tagged_sha256("deaios/model-record/1", record)
    assert await catalogue.record_of(outcome.value) == record
    assert await catalogue.publisher_of(outcome.value) == OPERATOR.address
    count = await catalogue.record_count()
    assert (await catalogue.publish(await network.actor(), record)).value == outcome.value
    assert await catalogue.record_count() == count
    assert await catalogue.record_at(count - 1) == outcome.value
    assert await catalogue.record_of(b"\x01" * 32) is None
    assert await catalogue.publisher_of(b"\x01" * 32) is None


async def test_receipt_batches(network: Network) -> None:
    receipts, provider = network.c.receipts, await network.actor()
    digests = [bytes([i + 1]) * 32 for i in range(5)]
    root = build_root("deaios/receipts/1", digests)
    first = await receipts.publish(provider, 1, 5, ZERO32, root, b"\x0a" * 32)
    second = await receipts.publish(provider, 6, 6, root, b"\x0b" * 32, b"\x0c" * 32)
    assert (first.value, second.value) == (0, 1)
    assert await receipts.batch_count(provider.address) == 2
    assert await receipts.last_counter(provider.address) == 6
    block = await network.chain.rpc.get_block(first.receipt.block_number)
    assert block is not None
    assert await receipts.batch_at(provider.address, 0) == BatchRecord(
        1, 5, ZERO32, root, b"\x0a" * 32, block.timestamp
    )
    path = prove_leaf(digests, 3)
    assert await receipts.verify_receipt(provider.address, 0, 4, digests[3], path)
    assert not await receipts.verify_receipt(provider.address, 0, 5, digests[3], path)
    assert not await receipts.verify_receipt(provider.address, 9, 4, digests[3], path)
    for bad in ((6, 7, root), (8, 8, b"\x0b" * 32), (7, 6, b"\x0b" * 32), (7, 7, root)):
        with pytest.raises(Reverted):
            await receipts.publish(provider, *bad, b"\x0d" * 32, ZERO32)


async def test_staking(network: Network) -> None:
    staking, operator = network.c.staking, await network.actor()
    await network.join(operator, COMPUTE, 60 * CREDIT)
    assert await staking.stake_of(operator.address) == 60 * CREDIT
    assert await staking.power(COMPUTE, operator.address) == 60 * CREDIT
    assert await staking.slice_of(COMPUTE, operator.address) == 60 * CREDIT
    assert await staking.cap_of(COMPUTE, operator.address) == 10_000
    assert operator.address in await staking.members(COMPUTE)
    assert Member(operator.address, 60 * CREDIT) in await staking.roster(COMPUTE)
    assert await staking.slashed_of(COMPUTE, operator.address) == 0
    await staking.begin_unbond(operator, 60 * CREDIT)
    pending = await staking.unbonding_of(operator.address)
    assert pending.amount == 60 * CREDIT
    assert operator.address not in await staking.members(COMPUTE)
    assert await staking.slice_of(COMPUTE, operator.address) == 60 * CREDIT
    with pytest.raises(Reverted):
        await staking.withdraw(operator)
    await staking.opt_out(operator, COMPUTE)
    assert await staking.leaving_at(COMPUTE, operator.address) > 0
    network.chain.jump(LOCAL.unbonding_s + 1)
    await staking.complete_opt_out(network.operator, COMPUTE, operator.address)
    await staking.withdraw(operator)
    assert await staking.unbonding_of(operator.address) == Unbonding(0, 0)
    assert await network.c.credit.balance_of(operator.address) == LOCAL.faucet_credit


async def test_channel_life(network: Network) -> None:
    channels, credit = network.c.channels, network.c.credit
    trade = await open_trade(network)
    assert await channels.get_channel_id(trade.config) == trade.channel_id
    assert await channels.balance_of(trade.channel_id) == ChannelBalance(5 * CREDIT, 0)
    parties = await channels.parties_of(trade.channel_id)
    assert (parties.payer, parties.receiver) == (trade.buyer.address, trade.provider.address)
    before = await credit.balance_of(trade.provider.address)
    claims = [
        VoucherClaim(trade.config, 2 * CREDIT, trade.voucher(2 * CREDIT), total) for total in (CREDIT, 2 * CREDIT)
    ]
    await channels.claim(trade.provider, claims)
    token = network.c.credit.address
    assert await channels.receiver_totals(trade.provider.address, token) == ReceiverTotals(2 * CREDIT, 0)
    await channels.settle(network.operator, trade.provider.address, token)
    assert await credit.balance_of(trade.provider.address) == before + 2 * CREDIT
    await channels.refund(trade.provider, trade.config, CREDIT)
    domain = channels_domain(network.chain.chain_id, channels.address)
    nonce = await channels.refund_nonce(trade.channel_id)
    signature = sign_struct(key_of(trade.provider), domain, Refund(trade.channel_id, nonce, 1))
    await channels.refund_with_signature(network.operator, trade.config, 1, nonce, signature)
    assert await channels.balance_of(trade.channel_id) == ChannelBalance(4 * CREDIT - 1, 2 * CREDIT)
    receipt = await channels.initiate_withdraw(trade.buyer, trade.config, 2 * CREDIT - 1)
    block = await network.chain.rpc.get_block(receipt.block_number)
    assert block is not None
    assert await channels.pending_withdrawal(trade.channel_id) == PendingWithdrawal(2 * CREDIT - 1, block.timestamp)
    with pytest.raises(Reverted):
        await channels.finalize_withdraw(trade.buyer, trade.config)
    network.chain.jump(901)
    await channels.finalize_withdraw(trade.buyer, trade.config)
    assert await credit.balance_of(trade.buyer.address) == LOCAL.faucet_credit - 2 * CREDIT
    forged = VoucherClaim(trade.config, 9 * CREDIT, trade.voucher(2 * CREDIT), 3 * CREDIT)
    with pytest.raises(Reverted):
        await channels.claim(trade.provider, [forged])


async def test_digests_equal_the_contracts(network: Network) -> None:
    trade = await open_trade(network)
    request, _ = trade.request(CREDIT)
    receipt, _ = trade.receipt(request, CREDIT)
    assert await network.c.disputes.request_digest(request) == hash_struct(request)
    assert await network.c.disputes.receipt_digest(receipt) == hash_struct(receipt)


async def ensure_auditors(network: Network) -> dict[Address, Sender]:
    """Four staked auditors, as a local network has."""
    found = {}
    for index in range(4):
        key = PrivateKey(keccak256(f"auditor {index}".encode()))
        sender = found[key.address] = network.chain.sender(key)
        if not await network.faucet.has_given(key.address):
            await network.faucet.give(key.address)
            await network.join(sender, AUDIT, 25 * CREDIT)
    return found


async def run_beacon(network: Network, round_id: int, auditors: dict[Address, Sender]) -> None:
    """All auditors commit and reveal, so no deadline is waited for."""
    beacon = network.c.beacon
    secrets = {address: keccak256(address + round_id.to_bytes(8)) for address in auditors}
    await asyncio.gather(*(beacon.commit(sender, round_id, secrets[a]) for a, sender in auditors.items()))
    assert await beacon.phase(round_id) == BeaconPhase.REVEAL
    await asyncio.gather(*(beacon.reveal(sender, round_id, secrets[a]) for a, sender in auditors.items()))
    if await beacon.phase(round_id) == BeaconPhase.FINALIZE:
        await beacon.finalize(network.operator, round_id)
    assert await beacon.phase(round_id) == BeaconPhase.FINAL


async def test_beacon(network: Network) -> None:
    beacon, auditors = network.c.beacon, await ensure_auditors(network)
    round_id = (await beacon.request(network.operator)).value
    assert await beacon.open_round() == round_id
    assert await beacon.value(round_id) is None
    state = await beacon.round_of(round_id)
    assert (state.attempt, state.commits, state.reveals) == (1, 0, 0) or (state.attempt, state.commits) == (0, 0)
    assert await fetch_deadline(network.c) >= state.reveal_deadline
    await run_beacon(network, round_id, auditors)
    value = await beacon.value(round_id)
    assert value is not None
    assert len(value) == 32
    assert await beacon.open_round() is None
    assert await beacon.is_revealed(round_id, next(iter(auditors)))
    with pytest.raises(Reverted):
        await beacon.commit(network.operator, round_id, b"\x01" * 32)


async def vote(
    network: Network, dispute_id: int, judgements: dict[Address, Judgement], auditors: dict[Address, Sender]
) -> None:
    disputes = network.c.disputes
    verdicts = {
        juror: Verdict(dispute_id, juror, judgement, keccak256(b"evidence"), keccak256(juror))
        for juror, judgement in judgements.items()
    }
    await asyncio.gather(*(disputes.commit_verdict(auditors[j], verdict) for j, verdict in verdicts.items()))
    assert await disputes.phase_of(dispute_id) == DisputePhase.REVEAL
    await asyncio.gather(*(disputes.reveal_verdict(auditors[j], verdict) for j, verdict in verdicts.items()))
    if await disputes.phase_of(dispute_id) == DisputePhase.TALLY:
        await disputes.tally(network.operator, dispute_id)


async def open_dispute(network: Network, trade: Trade, fee: int, auditors: dict[Address, Sender]) -> int:
    """Evidence, bond, opening, beacon and draw."""
    c = network.c
    request, request_signature = trade.request(fee)
    receipt, receipt_signature = trade.receipt(request, fee)
    digest = hash_struct(receipt)
    root, salt = keccak256(digest), b"\x0e" * 32
    await c.credit.ensure_allowance(trade.buyer, c.disputes.address, await c.disputes.bond_of(digest))
    await c.disputes.commit_evidence(trade.buyer, root, salt)
    outcome = await c.disputes.open(
        trade.buyer, request, request_signature, receipt, receipt_signature, root, b"\x0f" * 32, salt
    )
    assert await c.disputes.open_dispute_of(digest) == outcome.value
    assert await c.disputes.is_paused(trade.provider.address)
    round_id = (await c.disputes.dispute_of(outcome.value)).round
    assert await c.disputes.phase_of(outcome.value) == DisputePhase.BEACON
    await run_beacon(network, round_id, auditors)
    assert await c.disputes.phase_of(outcome.value) == DisputePhase.DRAW
    await c.disputes.draw(network.operator, outcome.value)
    return outcome.value


async def total_money(network: Network, actors: list[Address]) -> int:
    c = network.c
    holders = sorted({*actors, *c.addresses.by_field().values()})
    balances = await c.credit.fetch_balances(holders)
    assert balances.total_supply == await c.credit.total_supply()
    assert balances.amounts[actors[0]] == await c.credit.balance_of(actors[0])
    return sum(balances.amounts.values())


async def test_guilty_provider_pays(network: Network) -> None:
    c, auditors = network.c, await ensure_auditors(network)
    trade = await open_trade(network)
    actors = [trade.buyer.address, trade.provider.address, *auditors]
    before, supply = await total_money(network, actors), await c.credit.total_supply()
    dispute_id = await open_dispute(network, trade, CREDIT // 100, auditors)
    jury = await c.disputes.jurors_of(dispute_id)
    assert len(set(jury)) == 3
    assert set(jury) <= set(auditors)
    assert await c.disputes.jury_at(dispute_id, 1) == jury
    assert await fetch_deadline(c) >= (await c.disputes.dispute_of(dispute_id)).commit_deadline
    await vote(network, dispute_id, dict.fromkeys(jury, Judgement.GUILTY), auditors)
    assert await c.disputes.phase_of(dispute_id) == DisputePhase.APPEAL
    ballot = await c.disputes.ballot_of(dispute_id, 1, jury[0])
    assert (ballot.judgement, ballot.evidence_root) == (Judgement.GUILTY, keccak256(b"evidence"))
    network.chain.jump(LOCAL.appeal_s + 1)
    receipt = await c.disputes.finalize(network.operator, dispute_id)
    closed = c.disputes.contract.find_event(receipt, "Closed").values
    dispute = await c.disputes.dispute_of(dispute_id)
    assert dispute.decision == Decision.GUILTY
    assert dispute.slashed == LOCAL.slash_floor == closed["slashed"]
    assert dispute.refunded == CREDIT // 100
    assert dispute.bounty <= dispute.slashed // 10
    assert dispute.burned >= dispute.slashed // 2
    assert await c.staking.slice_of(COMPUTE, trade.provider.address) == 50 * CREDIT
    assert await c.staking.slashed_of(COMPUTE, trade.provider.address) == LOCAL.slash_floor
    assert not await c.disputes.is_paused(trade.provider.address)
    assert await c.credit.total_supply() == supply - dispute.burned
    assert await total_money(network, actors) == before - dispute.burned
    found = await c.disputes.contract.fetch_events("Closed", id=dispute_id)
    assert [event.values for event in found] == [closed]


async def test_acquitted_provider_keeps_its_stake_and_an_appeal_widens_the_jury(network: Network) -> None:
    c, auditors = network.c, await ensure_auditors(network)
    trade = await open_trade(network)
    dispute_id = await open_dispute(network, trade, CREDIT, auditors)
    jury = await c.disputes.jurors_of(dispute_id)
    await vote(network, dispute_id, dict.fromkeys(jury, Judgement.ACQUIT), auditors)
    await c.credit.ensure_allowance(trade.buyer, c.disputes.address, LOCAL.appeal_bond)
    with pytest.raises(Reverted):
        await c.disputes.appeal(trade.provider, dispute_id)
    await c.disputes.appeal(trade.buyer, dispute_id)
    await run_beacon(network, (await c.disputes.dispute_of(dispute_id)).round, auditors)
    await c.disputes.draw(network.operator, dispute_id)
    jury = await c.disputes.jurors_of(dispute_id)
    assert set(jury) == set(auditors)
    await vote(network, dispute_id, dict.fromkeys(jury, Judgement.ACQUIT), auditors)
    if await c.disputes.phase_of(dispute_id) == DisputePhase.APPEAL:
        network.chain.jump(LOCAL.appeal_s + 1)
    await c.disputes.finalize(network.operator, dispute_id)
    assert (await c.disputes.dispute_of(dispute_id)).decision == Decision.ACQUITTED
    assert await c.staking.slice_of(COMPUTE, trade.provider.address) == 60 * CREDIT


async def test_dispute_needs_committed_evidence_and_the_real_signatures(network: Network) -> None:
    c = network.c
    await ensure_auditors(network)
    trade = await open_trade(network)
    request, request_signature = trade.request(1)
    receipt, receipt_signature = trade.receipt(request, 1)
    await c.credit.ensure_allowance(trade.buyer, c.disputes.address, 10 * CREDIT)
    arguments = (request, request_signature, receipt, receipt_signature, b"\x01" * 32, ZERO32, b"\x02" * 32)
    with pytest.raises(Reverted):
        await c.disputes.open(trade.buyer, *arguments)
    await c.disputes.commit_evidence(trade.buyer, b"\x01" * 32, b"\x02" * 32)
    for index in (1, 3):
        forged = list(arguments)
        forged[index] = arguments[4 - index]
        with pytest.raises(Reverted):
            await c.disputes.open(trade.buyer, *forged)


async def test_forks(network: Network) -> None:
    c = network.c
    trade = await open_trade(network)
    request, _ = trade.request(1)
    first, second = trade.receipt(request, 1, 2), trade.receipt(request, 1, 2, output=b"\x99" * 32)
    with pytest.raises(Reverted):
        await c.forks.prove_double_counter(network.operator, *first, *first)
    before = await c.staking.slice_of(COMPUTE, trade.provider.address)
    receipt = await c.forks.prove_double_counter(network.operator, *first, *second)
    event = c.forks.contract.find_event(receipt, "Proven").values
    assert event["slashed"] == LOCAL.fork_penalty
    assert await c.forks.is_proven(event["key"])
    assert await c.staking.slice_of(COMPUTE, trade.provider.address) == before - LOCAL.fork_penalty
    await c.forks.prove_double_request(network.operator, *first, *trade.receipt(request, 1, 3))
    root = build_root("deaios/receipts/1", [b"\x44" * 32])
    index = (await c.receipts.publish(trade.provider, 1, 1, ZERO32, root, ZERO32)).value
    await c.forks.prove_batch_mismatch(network.operator, *trade.receipt(request, 1, 1), index, b"\x44" * 32, ())
    assert await c.staking.slashed_of(COMPUTE, trade.provider.address) == 3 * LOCAL.fork_penalty


async def test_claims_are_challenged(network: Network) -> None:
    c = network.c
    trade = await open_trade(network)
    challenger = await network.actor()
    await c.credit.ensure_allowance(challenger, c.forks.address, 2 * LOCAL.claim_bond)
    with pytest.raises(Reverted):
        await c.forks.challenge_claim(challenger, trade.config)
    await c.channels.claim(trade.provider, [VoucherClaim(trade.config, CREDIT, trade.voucher(CREDIT), CREDIT)])
    await c.forks.challenge_claim(challenger, trade.config)
    challenge = await c.forks.challenge_of(trade.channel_id)
    assert (challenge.challenger, challenge.provider) == (challenger.address, trade.provider.address)
    assert challenge.total == CREDIT
    assert await fetch_deadline(c) >= await c.forks.deadline() >= challenge.deadline
    request, _ = trade.request(CREDIT)
    await c.forks.show_receipt(trade.provider, trade.channel_id, *trade.receipt(request, CREDIT))
    assert await c.forks.shown_up_to(trade.channel_id) == CREDIT
    claim = VoucherClaim(trade.config, 2 * CREDIT, trade.voucher(2 * CREDIT), 2 * CREDIT)
    await c.channels.claim(trade.provider, [claim])
    await c.forks.challenge_claim(challenger, trade.config)
    network.chain.jump(LOCAL.claim_challenge_s + 1)
    await c.forks.finalize_claim(network.operator, trade.channel_id)
    assert await c.staking.slashed_of(COMPUTE, trade.provider.address) == LOCAL.fork_penalty


async def certify_rows(network: Network, term_s: int) -> tuple[coding.CodedMatrix, Certificate, dict[Address, Sender]]:
    """Three members, a blob of several leaves a row, and a certificate that two of them signed."""
    c, availability = network.c, network.c.availability
    buyer, *holders = await asyncio.gather(*(network.actor() for _ in range(4)))
    for holder in holders:
        await network.join(holder, DATA_AVAILABILITY, 60 * CREDIT)
    begun = await availability.begin_epoch(network.operator)
    assert await availability.current_epoch() == begun.value
    committee = await availability.committee(begun.value)
    roster = [(member.address, member.power) for member in await c.staking.roster(DATA_AVAILABILITY)]
    assert committee == build_committee(begun.value, committee.begun_at, roster, LOCAL.da_seats_size)
    matrix, begun_at = coding.encode(bytes(range(256)) * 100, committee.profile), committee.begun_at
    attestation = RowAttestation(matrix.commitment, committee.epoch, begun_at, begun_at + term_s)
    domain = availability_domain(network.chain.chain_id, availability.address)
    by_address = {holder.address: holder for holder in holders}
    signatures = [
        (place, sign_struct(key_of(by_address[member.address]), domain, attestation))
        for place, member in enumerate(committee.members[:2])
    ]
    fee = await availability.fee_of(25_600, term_s)
    await c.credit.ensure_allowance(buyer, availability.address, fee)
    head = matrix.root, sha256(matrix.y), 25_600
    with pytest.raises(Reverted, match="availability: too few seats signed"):
        await availability.certify(buyer, attestation, *head, signatures[:1])
    outcome = await availability.certify(buyer, attestation, *head, signatures)
    certificate = Certificate(attestation, *head, 0xFF, fee, buyer.address, outcome.receipt.block_number, 12)
    assert outcome.value == certificate
    return matrix, certificate, by_address


async def test_rows_are_certified_doubted_shown_and_paid(network: Network) -> None:
    c, availability, auditors = network.c, network.c.availability, await ensure_auditors(network)
    with pytest.raises(InvalidCommittee):
        await availability.committee(1)
    matrix, certificate, holders = await certify_rows(network, 7200)
    assert certificate.parameters == matrix.head.parameters
    assert [certificate.has_seat(seat) for seat in (0, 7, 8)] == [True, True, False]
    assert await availability.signers_of(certificate.digest) == certificate.signers
    assert await availability.fetch_certificates(matrix.commitment) == (certificate,)
    assert await availability.fetch_certified(0) == (certificate,)
    assert await availability.fetch_certified(certificate.block + 1) == ()

    challenger, committee = await network.actor(), await availability.committee(1)
    await c.credit.ensure_allowance(challenger, availability.address, 2 * LOCAL.da_challenge_bond)
    ids = [(await availability.challenge(challenger, certificate.attestation, seat)).value for seat in (3, 4)]
    assert await availability.open_challenges(certificate.digest) == 2
    found = await availability.fetch_challenges(certificate.block)
    assert [(item.id, item.seat) for item in found] == [(ids[0], 3), (ids[1], 4)]
    assert {item.digest for item in found} == {certificate.digest}
    first, second = [await availability.challenge_of(item) for item in ids]
    assert first == Challenge(challenger.address, committee.owner_of(3).address, found[0].round, found[0].deadline)
    assert await fetch_deadline(c) >= await availability.deadline() >= second.deadline > 0
    assert await availability.picks_of(ids[0], certificate.length) == ()
    await run_beacon(network, first.round, auditors)
    picks = await availability.picks_of(ids[0], certificate.length)
    row, proof, holder = matrix.get_row(3), coding.prove_row(matrix, 3), holders[first.member]
    paths = [coding.prove_leaf(certificate.parameters, row, proof, pick) for pick in picks]
    await availability.answer(holder, certificate, 3, [row[1024 * pick :][:1024] for pick in picks], paths)
    assert await c.credit.balance_of(holder.address) == 40 * CREDIT + LOCAL.da_challenge_bond
    assert not (await availability.challenge_of(ids[0])).is_open

    network.chain.jump(7200)
    assert (await availability.finalize(network.operator, ids[1])).value == LOCAL.da_penalty
    assert await c.staking.slashed_of(DATA_AVAILABILITY, second.member) == LOCAL.da_penalty
    assert await availability.signers_of(certificate.digest) == 0xEF
    await availability.settle(network.operator, [certificate])
    earned = {member.address: await availability.earned_of(member.address) for member in committee.members}
    share, dust = divmod(certificate.fee, 7)
    assert list(earned.values()) == [4 * share + dust, 3 * share, 0]
    assert (await availability.withdraw(holder)).value == 4 * share + dust
    with pytest.raises(Reverted, match="availability: nothing is earned"):
        await availability.withdraw(holder)
