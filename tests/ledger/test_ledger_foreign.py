"""Foreign chains (anvil) of several kinds: which can carry a network, and where the contracts come to lie on them."""

import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deaios.ledger.client.deployment import (
    InvalidDeployment,
    deploy_suite_by_workshop,
    has_create2_proxy,
    verify_suite,
)
from deaios.ledger.client.probe import InvalidChain, probe_chain
from deaios.ledger.client.rpc import Reverted, Rpc, UnavailableChain
from deaios.ledger.client.sender import Patience, Sender
from deaios.ledger.settings import DEFAULT, LOCAL
from deaios.ledger.suite import build_workshop, compute_contract_address, compute_workshop_address
from deaios.primitives.keys import Address, PrivateKey

if (repository := str(Path(__file__).resolve().parents[2])) not in sys.path:
    sys.path.append(repository)
from soak.chain_fuzz.foreign import run_anvil

RICH = PrivateKey(bytes.fromhex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"))
SECOND = PrivateKey(bytes.fromhex("59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d"))
"""anvil's first two well-known accounts."""
SALT = b"\x5a" * 32
HASTE = Patience(poll_min_s=0.01, rebroadcast_s=0.1)


@pytest.fixture
async def foreign(peers: Any) -> AsyncIterator[Rpc]:
    with run_anvil(peers.anvil, ()) as url:
        async with Rpc(url) as rpc:
            yield rpc


def make_sender(rpc: Rpc, key: PrivateKey = RICH) -> Sender:
    return Sender(rpc, key, 31337, patience=HASTE)


def test_frozen_workshop() -> None:
    creation, runtime = build_workshop(Address(b"\x11" * 20))
    assert runtime.hex() == ("3373" + "11" * 20 + "18602d57365f5f37365f5ff08015602d575f5260205ff35b3d5f5f3e3d5ffd")
    assert creation == bytes.fromhex("60358060095f395ff3") + runtime
    assert len(runtime) == 0x35
    address = compute_workshop_address(Address(b"\x11" * 20), SALT)
    assert address.hex() == "455f30c4a87fc692ef55fd0b768267813d71d954"


async def test_addresses_depend_on_owner_and_salt_alone(peers: Any, foreign: Rpc) -> None:
    assert await has_create2_proxy(foreign)
    sender = make_sender(foreign)
    stood: list[str] = []
    first = await deploy_suite_by_workshop(
        sender, foreign, LOCAL, SALT, progress=lambda name, _address: stood.append(name)
    )
    spent = await foreign.get_nonce(RICH.address)
    assert await deploy_suite_by_workshop(sender, foreign, LOCAL, SALT) == first, "what stands is left as it is"
    assert await foreign.get_nonce(RICH.address) == spent
    other = await deploy_suite_by_workshop(sender, foreign, LOCAL, b"\x5b" * 32)
    assert not set(other.by_field().values()) & set(first.by_field().values())
    await sender.close()
    with run_anvil(peers.anvil, ("--hardfork", "cancun")) as url:
        async with Rpc(url) as rpc:
            sender = make_sender(rpc)
            for value in range(3):
                await sender.send(SECOND.address, value=value)  # the owner's key may send what it likes
            assert await deploy_suite_by_workshop(sender, rpc, LOCAL, SALT) == first
            await verify_suite(rpc, first, LOCAL)
            with pytest.raises(InvalidDeployment):
                await deploy_suite_by_workshop(sender, rpc, replace(LOCAL, appeal_s=9), SALT)
            await sender.close()


async def test_a_deployment_that_was_cut_goes_on(foreign: Rpc) -> None:
    class Cut(Exception):
        pass

    def cut(name: str, _address: Address) -> None:
        if name == "Channels":
            raise Cut

    sender = make_sender(foreign)
    with pytest.raises(Cut):
        await deploy_suite_by_workshop(sender, foreign, DEFAULT, SALT, progress=cut)
    await sender.send(SECOND.address, value=1)
    addresses = await deploy_suite_by_workshop(sender, foreign, DEFAULT, SALT)
    await verify_suite(foreign, addresses, DEFAULT)
    await sender.close()


async def test_a_workshop_serves_its_owner_only_and_wastes_no_address(foreign: Rpc) -> None:
    owner, stranger = make_sender(foreign), make_sender(foreign, SECOND)
    creation, runtime = build_workshop(RICH.address)
    workshop = compute_workshop_address(RICH.address, SALT)
    await owner.send(Address(bytes.fromhex("4e59b44847b379578588920ca78fbf26c0b4956c")), SALT + creation)
    assert await foreign.get_code(workshop) == runtime
    gives_one_byte = bytes.fromhex("60fe60005360016000f3")
    with pytest.raises(Reverted):
        await stranger.send(workshop, gives_one_byte)
    with pytest.raises(Reverted, match="1234"):
        await owner.send(workshop, bytes.fromhex("6112346000526002601efd"))  # creation code that reverts with 0x1234
    assert await foreign.get_nonce(workshop) == 1
    answer = await foreign.eth_call(workshop, gives_one_byte, sender=RICH.address)
    await owner.send(workshop, gives_one_byte)
    made = compute_contract_address(workshop, 1)
    assert answer == bytes(12) + made
    assert await foreign.get_code(made) == b"\xfe"
    await owner.close()
    await stranger.close()


@pytest.mark.parametrize("fork", ["london", "shanghai"])
async def test_a_chain_of_older_rules_is_refused(peers: Any, fork: str) -> None:
    with run_anvil(peers.anvil, ("--hardfork", fork)) as url:
        async with Rpc(url, confirmations=4) as rpc:
            with pytest.raises(InvalidChain, match="does not run PUSH0, TSTORE and MCOPY"):
                await probe_chain(rpc)


async def test_what_is_found_out_about_a_chain(foreign: Rpc) -> None:
    await foreign.call("anvil_mine", ["0x64", "0xc"])
    found = await probe_chain(foreign)
    assert (found.chain_id, found.height, found.settled, found.gas_limit) == (31337, 100, 100, 30_000_000)
    assert found.block_s == pytest.approx(12, abs=0.5)
    assert found.finalized is not None
    async with Rpc(foreign.url, confirmations=4) as deep:
        assert (await probe_chain(deep)).settled == 97


async def test_a_chain_without_a_base_fee_or_room_is_refused(node: Any, clock: Any) -> None:
    async with Rpc(node.url, clock=clock) as rpc:
        block = node.eth_get_block_by_number
        node.eth_get_block_by_number = lambda tag, full: {**block(tag, full), "baseFeePerGas": None}
        with pytest.raises(InvalidChain, match="has no base fee; a network needs EIP-1559"):
            await probe_chain(rpc)
        node.eth_get_block_by_number = lambda tag, full: {**block(tag, full), "gasLimit": hex(1_000_000)}
        node.eth_call = lambda call, tag: "0x" + "00" * 31 + "01"
        with pytest.raises(InvalidChain, match="a block holds 1000000 gas, the largest contract needs"):
            await probe_chain(rpc)
    async with Rpc("http://127.0.0.1:9", clock=clock) as rpc:
        with pytest.raises(UnavailableChain):
            await probe_chain(rpc)
