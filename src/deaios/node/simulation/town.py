"""Who lives in the simulated network, and its founding: contracts deployed, members funded, staked and registered.

Founding runs once per Python process, in good weather, through the same clients as live; every world starts from the
chain file that it left.
"""

import asyncio
import functools
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from deaios.chain.evm import State
from deaios.chain.genesis import ETHER, Allocation, Genesis
from deaios.chain.service import ChainService, Limits, build_application
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.deployment import deploy_suite, fetch_network_id
from deaios.ledger.client.sender import Sender
from deaios.ledger.descriptor import NetworkDescriptor, Token
from deaios.ledger.settings import NetworkSettings
from deaios.ledger.suite import AUDIT, COMPUTE, CREDIT_NAME, CREDIT_SYMBOL, CREDIT_VERSION
from deaios.node.member import Member
from deaios.node.simulation.loop import EPOCH_MS, SimulatedClock, SimulatedLoop, current_process
from deaios.node.simulation.model import RECORD_ID
from deaios.node.simulation.network import Network, SimulatedHttp, SimulatedRpc
from deaios.primitives.hashing import sha256
from deaios.primitives.keys import PrivateKey
from deaios.primitives.units import CREDIT, CREDIT_DECIMALS

CHAIN = "chain"
CHAIN_URL = "http://chain"
SHELF = "shelf"
SHELF_URL = "http://shelf"
GATEWAY = "gateway"
GATEWAY_URL = "http://gateway"
PROVIDERS = ("provider-1", "provider-2")
AUDITORS = ("auditor-1", "auditor-2", "auditor-3", "auditor-4", "auditor-5")
NEIGHBOUR = "neighbour"
"""Somebody with money and no role: challenges, transfers, accuses falsely."""
PEOPLE = (*PROVIDERS, *AUDITORS, GATEWAY, NEIGHBOUR, *(f"{name}-purse" for name in AUDITORS))
PURSE = 40 * CREDIT
SEED = sha256(b"town")
EXECUTOR = ThreadPoolExecutor(1)
"""Never used: the simulated loop runs jobs itself."""
LIMITS = Limits(block_ms=500, gather_ms=100)

SETTINGS = NetworkSettings(
    credit_supply=1_000_000 * CREDIT,
    unbonding_s=907,
    compute_stake_min=50 * CREDIT,
    audit_stake_min=20 * CREDIT,
    beacon_commit_s=6,
    beacon_reveal_s=6,
    beacon_penalty=1 * CREDIT,
    jury_size=3,
    dispute_open_blocks=100_000,
    verdict_commit_s=12,
    verdict_reveal_s=8,
    appeal_s=12,
    dispute_bond=1 * CREDIT,
    appeal_bond=2 * CREDIT,
    slash_floor=10 * CREDIT,
    juror_fee=CREDIT // 10,
    juror_penalty=1 * CREDIT,
    withdraw_delay_min_s=30,
    withdraw_delay_max_s=2_592_000,
    claim_challenge_s=30,
    claim_bond=1 * CREDIT,
    fork_penalty=10 * CREDIT,
    da_stake_min=50 * CREDIT,
    da_seats_size=6,
    da_epoch_s=60,
    da_term_max_s=120,
    da_answer_s=12,
    da_challenge_bond=1 * CREDIT,
    da_penalty=10 * CREDIT,
    da_fee_base=100,
    da_fee_gib_day=CREDIT // 100,
    consensus_stake_min=50 * CREDIT,
    network_epoch_s=30,
    network_trust_s=240,
    evidence_s=240,
    network_bond=10 * CREDIT,
    equivocation_slash_bps=5000,
    jail_s=60,
    slash_payout_s=60,
    slash_payout_max=5000 * CREDIT,
    opening_retention_s=60,
    request_blocks=10_000,
    batch_blocks=10_000,
    voucher_window=CREDIT // 4,
    channel_deposit=CREDIT // 4,
    faucet_native=10 * ETHER,
    faucet_credit=100 * CREDIT,
)
"""As a local network's, with windows short enough for a simulated afternoon."""


@functools.cache
def key_of(name: str) -> PrivateKey:
    """The key of a role or person."""
    return PrivateKey(sha256(b"simulated " + name.encode()))


def url_of(name: str) -> str:
    """Where a role listens."""
    return f"http://{name}"


@dataclass(frozen=True)
class Town:
    """A founded network.

    Attributes:
        chain_file: an SQLite file of a chain whose block 0 holds all that the founding wrote.
        start_s: virtual time of that block; worlds begin then.
    """

    descriptor: NetworkDescriptor
    chain_file: bytes
    start_s: float


@functools.cache
def found_town() -> Town:
    """The town, founded at the first call."""
    loop = SimulatedLoop(Random(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            descriptor, state = loop.run_until_complete(_found(loop, folder / "founding.db"))
            start_s = float(int(loop.time()) + 2)
            network_id = loop.run_until_complete(_begin_again(loop, folder / "chain.db", state, start_s))
            town = Town(replace(descriptor, network_id=network_id), (folder / "chain.db").read_bytes(), start_s)
        finally:
            loop.close()
    assert not loop.faults, loop.faults
    return town


async def _begin_again(loop: SimulatedLoop, path: Path, state: State, start_s: float) -> bytes:
    """A chain of the same id whose genesis holds a state, so that worlds do not begin with the blocks that made it."""
    allocations = tuple(
        Allocation(address, account.balance, account.nonce, account.code, tuple(state.slots.get(address, {}).items()))
        for address, account in state.accounts.items()
    )
    genesis = Genesis(SEED, key_of(CHAIN).address, EPOCH_MS // 1000 + int(start_s), allocations)
    clock = SimulatedClock(loop, current_process())
    chain = await ChainService.start(path, key_of(CHAIN), genesis, executor=EXECUTOR, clock=clock, limits=LIMITS)
    await chain.close()
    return chain.genesis_hash


async def _found(loop: SimulatedLoop, path: Path) -> tuple[NetworkDescriptor, State]:
    clock = SimulatedClock(loop, current_process())
    network = Network(loop, Random(0))
    operator = key_of(CHAIN)
    genesis = Genesis(SEED, operator.address, EPOCH_MS // 1000, (Allocation(operator.address, 10**9 * ETHER),))
    chain = await ChainService.start(path, operator, genesis, executor=EXECUTOR, clock=clock, limits=LIMITS)
    running = asyncio.create_task(chain.run())
    application = build_application(chain)
    application.freeze()
    network.listen(CHAIN, current_process(), application)
    rpc = SimulatedRpc(network, CHAIN_URL, clock)
    sender = Sender(rpc, operator, chain.chain_id)
    addresses = await deploy_suite(sender, rpc, SETTINGS)
    descriptor = NetworkDescriptor(
        network_id=await fetch_network_id(rpc),
        chain_id=chain.chain_id,
        rpc_urls=(CHAIN_URL,),
        operator=operator.address,
        contracts=addresses,
        token=Token(addresses.credit, CREDIT_NAME, CREDIT_SYMBOL, CREDIT_VERSION, CREDIT_DECIMALS),
        windows=SETTINGS,
        default_model_record_id=RECORD_ID,
        storage_urls=(SHELF_URL,),
    )
    contracts = Contracts(rpc, addresses)
    for name in PEOPLE:
        await sender.send(key_of(name).address, value=SETTINGS.faucet_native)
        await contracts.credit.transfer(sender, key_of(name).address, SETTINGS.faucet_credit)
    for name in (*PROVIDERS, *AUDITORS, GATEWAY):
        member_sender = Sender(rpc, key_of(name), chain.chain_id)
        await _settle_in(Member(descriptor, key_of(name), SimulatedHttp(network), rpc, contracts, member_sender), name)
    await sender.close()
    running.cancel()
    await asyncio.wait({running})
    await chain.close()
    return descriptor, chain.state


async def _settle_in(member: Member, name: str) -> None:
    role = name.split("-", maxsplit=1)[0]
    windows = member.descriptor.windows
    if role == "provider":
        await member.ensure_staked(COMPUTE, windows.compute_stake_min)
    elif role == "auditor":
        await member.ensure_staked(AUDIT, 2 * windows.audit_stake_min)
    await member.contracts.identities.ensure_registered(member.sender, url_of(name), role)
    await member.sender.close()
