"""The same client against a foreign node (anvil): any EVM network by URL, and what its real pool does."""

import asyncio
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.deployment import deploy_suite, verify_suite
from deaios.ledger.client.faucet import Faucet
from deaios.ledger.client.rpc import Reverted, Rpc
from deaios.ledger.client.sender import Patience, RefusedOutOfGasMoney, Sender, UnavailableInclusion
from deaios.ledger.settings import DEFAULT, LOCAL
from deaios.ledger.suite import COMPUTE
from deaios.primitives.keys import Address, PrivateKey
from deaios.primitives.units import CREDIT

RICH = PrivateKey(bytes.fromhex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"))
"""anvil's first well-known account."""
TO = Address(b"\x42" * 20)
CHAIN_ID = 31337
HASTE = Patience(poll_min_s=0.01, rebroadcast_s=0.1, replace_s=0.2, inclusion_s=30)


@pytest.fixture(scope="module")
def anvil(peers: Any) -> Iterator[str]:
    program = peers.anvil
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, "--port", str(port), "--chain-id", str(CHAIN_ID), "--hardfork", "cancun"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Listening on"):
            break
    drain = threading.Thread(target=process.stdout.read)  # a full pipe would stop it
    drain.start()
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()
    drain.join()
    process.stdout.close()


@pytest.fixture
async def rpc(anvil: str) -> AsyncIterator[Rpc]:
    async with Rpc(anvil) as client:
        yield client
        await client.call("evm_setAutomine", [True])


@pytest.fixture
async def rich(rpc: Rpc) -> AsyncIterator[Sender]:
    sender = Sender(rpc, RICH, await rpc.chain_id(), patience=HASTE)
    yield sender
    await sender.close()


async def fresh(rpc: Rpc, rich: Sender, secret: int) -> Sender:
    key = PrivateKey(secret.to_bytes(32))
    await rich.send(key.address, value=10**18)
    return Sender(rpc, key, CHAIN_ID, patience=HASTE)


async def wait_pool(rpc: Rpc, count: int) -> None:
    for _ in range(3000):
        status = await rpc.call("txpool_status")
        if int(status["pending"], 16) + int(status["queued"], 16) == count:
            return
    raise AssertionError("the pool never had that many")


@pytest.mark.parametrize("settings", [LOCAL, DEFAULT], ids=["local", "default"])
async def test_suite_on_a_foreign_node(rpc: Rpc, rich: Sender, settings: Any) -> None:
    first_nonce = await rpc.get_nonce(RICH.address)
    addresses = await deploy_suite(rich, rpc, settings, first_nonce=first_nonce)
    await verify_suite(rpc, addresses, settings)
    contracts = Contracts(rpc, addresses)
    faucet = Faucet(rich, contracts, 10**18, 2000 * CREDIT)
    key = PrivateKey((9_000 + first_nonce).to_bytes(32))
    await faucet.give(key.address)
    provider = Sender(rpc, key, CHAIN_ID, patience=HASTE)
    await contracts.credit.ensure_allowance(provider, addresses.staking, settings.compute_stake_min)
    await contracts.staking.stake(provider, settings.compute_stake_min)
    await contracts.staking.opt_in(provider, COMPUTE, 10_000)
    assert await contracts.staking.members(COMPUTE) == (key.address,)
    agent = await contracts.identities.ensure_registered(provider, "http://provider", "provider")
    assert await contracts.identities.list_agents() == (agent,)
    with pytest.raises(Reverted):
        await contracts.staking.withdraw(provider)
    (staked,) = await contracts.staking.contract.fetch_events("Staked", operator=key.address)
    assert staked.values["amount"] == settings.compute_stake_min
    await provider.close()


async def test_many_at_once_in_one_block(rpc: Rpc, rich: Sender) -> None:
    await rpc.call("evm_setAutomine", [False])
    start = await rpc.get_nonce(RICH.address)
    tasks = [asyncio.create_task(rich.send(TO, value=i + 1)) for i in range(40)]
    await wait_pool(rpc, 40)
    await rpc.call("evm_mine")
    receipts = await asyncio.gather(*tasks)
    assert len({receipt.block_number for receipt in receipts}) == 1
    assert await rpc.get_nonce(RICH.address) == start + 40


async def test_stuck_transaction_is_replaced(rpc: Rpc, rich: Sender) -> None:
    sender = await fresh(rpc, rich, 0x77)
    await rpc.call("evm_setAutomine", [False])
    task = asyncio.create_task(sender.send(TO, value=5))
    await wait_pool(rpc, 1)
    first = await pool_fee(rpc, sender.address)
    for _ in range(3000):
        if await pool_fee(rpc, sender.address) > first:
            break
    await rpc.call("evm_mine")
    receipt = await task
    assert receipt.is_success
    assert await rpc.get_nonce(sender.address) == 1
    await sender.close()


async def pool_fee(rpc: Rpc, address: Address) -> int:
    content = await rpc.call("txpool_content")
    by_nonce = next(items for sender, items in content["pending"].items() if sender.lower() == "0x" + address.hex())
    return int(by_nonce["0"]["maxFeePerGas"], 16)


async def test_dropped_transaction_is_broadcast_again(rpc: Rpc, rich: Sender) -> None:
    sender = await fresh(rpc, rich, 0x78)
    await rpc.call("evm_setAutomine", [False])
    task = asyncio.create_task(sender.send(TO, value=5))
    await wait_pool(rpc, 1)
    await rpc.call("anvil_dropAllTransactions")
    await wait_pool(rpc, 1)
    await rpc.call("evm_mine")
    assert (await task).is_success
    await sender.close()


async def test_two_processes_with_one_key(rpc: Rpc, rich: Sender) -> None:
    one = await fresh(rpc, rich, 0x79)
    two = Sender(rpc, PrivateKey((0x79).to_bytes(32)), CHAIN_ID, patience=HASTE)

    async def send_all(sender: Sender, value: int) -> int:
        done = 0
        for _ in range(6):
            try:
                await sender.send(TO, value=value)
                done += 1
            except UnavailableInclusion:
                continue
        return done

    # Amounts differ, because two equal transactions under one nonce would be one and the same.
    before = await rpc.get_balance(TO)
    ones, thousands = await asyncio.gather(send_all(one, 1), send_all(two, 1000))
    assert await rpc.get_balance(TO) == before + ones + 1000 * thousands
    assert await rpc.get_nonce(one.address) == ones + thousands
    assert ones + thousands >= 6
    await one.close()
    await two.close()


async def test_revert_in_a_block_says_why(rpc: Rpc, rich: Sender) -> None:
    addresses = await deploy_suite(rich, rpc, LOCAL, first_nonce=await rpc.get_nonce(RICH.address))
    credit = Contracts(rpc, addresses).credit
    sender = await fresh(rpc, rich, 0x7A)
    data = credit.contract.abi.get_function("transfer").encode_call((TO, 1))
    with pytest.raises(Reverted, match="balance") as caught:
        await sender.send(credit.address, data, gas=100_000)
    assert caught.value.receipt is not None
    with pytest.raises(Reverted, match="out of gas"):
        await sender.send(None, credit.contract.abi.get_function("transfer").selector * 9000, gas=1_500_000)
    await sender.close()


async def test_out_of_gas_money(rpc: Rpc, rich: Sender) -> None:
    sender = await fresh(rpc, rich, 0x7B)
    with pytest.raises(RefusedOutOfGasMoney):
        await sender.send(TO, value=10**18)
    with pytest.raises(RefusedOutOfGasMoney):
        await sender.send(TO, value=10**19)
    await sender.send(TO, value=10**17)
    assert await rpc.get_nonce(sender.address) == 1
    await sender.close()
