"""Calls, estimates and access lists under overrides: the same questions to this chain and to anvil."""

import eth_abi
import pytest
from chain_values import GWEI, USERS, transaction
from rpc_world import CHAIN_ID, ME, running, word
from vyper import compile_code
from web3 import Web3

from deaios.chain import overrides
from deaios.ledger.suite import compute_contract_address
from deaios.primitives.keys import Address

SOURCE = """
# pragma version 0.4.3
# pragma evm-version cancun

interface Other:
    def poke(amount: uint256) -> uint256: nonpayable

value: public(uint256)
seen: public(HashMap[address, uint256])
other: public(address)

@external
@view
def environment() -> (uint256, uint256, uint256, address, bytes32):
    return block.number, block.timestamp, block.gaslimit, block.coinbase, block.prevrandao

@external
@view
def price() -> uint256:
    return tx.gasprice

@external
@view
def wealth(who: address) -> (uint256, uint256, bytes32):
    return who.balance, who.codesize, who.codehash

@external
def set_other(other: address):
    self.other = other

@external
def poke(amount: uint256) -> uint256:
    assert amount < 1000, "too much"
    self.value += amount
    self.seen[msg.sender] += 1
    return self.value

@external
def poke_other(amount: uint256) -> uint256:
    self.seen[msg.sender] += 1
    return extcall Other(self.other).poke(amount)

@external
def make() -> address:
    made: address = create_minimal_proxy_to(self)
    extcall Other(made).poke(3)
    return made
"""
ANSWER = "0x602a60005260206000f3"
"""Code that returns 42."""


def call(signature, *values):
    name, _, kinds = signature.partition("(")
    types = [kind for kind in kinds[:-1].split(",") if kind]
    return "0x" + (Web3.keccak(text=f"{name}({kinds}")[:4] + eth_abi.encode(types, values)).hex()


@pytest.fixture
async def world(tmp_path):
    async with running(tmp_path) as found:
        yield found


@pytest.fixture
async def twins(world, anvil):
    """Two contracts at the same addresses on this chain and on anvil; (world, anvil, first, second)."""
    code = bytes.fromhex(compile_code(SOURCE, output_formats=["bytecode"])["bytecode"][2:])
    sender = USERS[0]
    first, second = ("0x" + compute_contract_address(sender.address, nonce).hex() for nonce in (0, 1))
    link = bytes.fromhex(call("set_other(address)", second)[2:])
    anvil.rpc("anvil_setBalance", ME, hex(100 * 10**18))
    steps = [(None, code), (None, code), (first, link)]
    for nonce, (to, data) in enumerate(steps):
        target = None if to is None else bytes.fromhex(to[2:])
        receipt = await world.include(target, data=data, gas=2_000_000)
        signed = transaction(sender, 1337, nonce, target, data=data, gas=2_000_000)
        anvil.rpc("eth_sendRawTransaction", "0x" + signed.raw.hex())
        anvil.rpc("evm_mine")
        assert anvil.rpc("eth_getTransactionReceipt", "0x" + signed.hash.hex())["status"] == receipt["status"] == "0x1"
    return world, anvil, first, second


async def test_overridden_calls_answer_as_anvils(twins):
    world, anvil, first, second = twins
    before = await state_of(world, first, second)
    poor = "0x" + "99" * 20
    questions = [
        (call("value()"), {first: {"stateDiff": {word(0): word(77)}}}),
        (call("value()"), {first: {"state": {word(0): word(78)}}}),
        (call("other()"), {first: {"state": {word(0): word(78)}}}),
        (call("other()"), {first: {"stateDiff": {word(0): word(78)}}}),
        (call("wealth(address)", poor), {poor: {"balance": "0x7b", "code": ANSWER}}),
        (call("wealth(address)", poor), {poor: {"nonce": "0x5"}}),
        (call("wealth(address)", second), {second: {"code": "0x"}}),
        (call("poke_other(uint256)", 5), {second: {"code": ANSWER}}),
        (call("poke_other(uint256)", 5), {second: {"stateDiff": {word(0): word(900)}}}),
        (call("poke_other(uint256)", 5), None),
        (call("value()"), {}),
    ]
    for data, given in questions:
        request = [{"from": ME, "to": first, "data": data}, "latest", given]
        assert await world.result("eth_call", *request) == anvil.rpc("eth_call", *request), (data, given)
    rich = {"from": poor, "to": first, "value": "0x0", "data": call("poke(uint256)", 1), "gasPrice": hex(2 * GWEI)}
    for given in ({poor: {"balance": hex(10**18)}}, {poor: {"balance": hex(10**18), "nonce": "0x9"}}):
        assert await world.result("eth_call", rich, "latest", given) == anvil.rpc("eth_call", rich, "latest", given)
    error = await world.error("eth_call", rich, "latest")
    assert error["message"].startswith("insufficient funds")
    assert await state_of(world, first, second) == before
    # A block afterwards holds nothing of what was pretended.
    receipt = await world.include(
        bytes.fromhex(first[2:]), data=bytes.fromhex(call("poke(uint256)", 4)[2:]), gas=200_000
    )
    assert receipt["status"] == "0x1"
    assert await world.result("eth_getStorageAt", first, "0x0") == word(4)
    assert not [change for change in world.chain.state.accounts if change == bytes.fromhex(poor[2:])]


async def state_of(world, *addresses):
    found = [await world.result("eth_call", {"to": address, "data": call("value()")}) for address in addresses]
    return found, [
        await world.result("eth_getStorageAt", address, hex(slot)) for address in addresses for slot in range(3)
    ]


async def test_overridden_blocks_are_seen_by_code_as_in_anvil(twins):
    world, anvil, first, _ = twins
    given = {
        "number": "0x99",
        "time": "0x7fffffff",
        "feeRecipient": "0x" + "ab" * 20,
        "prevRandao": word(12345),
    }
    request = [{"from": ME, "to": first, "data": call("environment()")}, "latest", None, given]
    seen = await world.result("eth_call", *request)
    assert seen == anvil.rpc("eth_call", *request)
    assert eth_abi.decode(["uint256", "uint256", "uint256", "address", "bytes32"], bytes.fromhex(seen[2:])) == (
        0x99,
        0x7FFFFFFF,
        30_000_000,
        "0x" + "ab" * 20,
        (12345).to_bytes(32),
    )
    priced = {
        "from": ME,
        "to": first,
        "data": call("price()"),
        "maxFeePerGas": "0x77359400",
        "maxPriorityFeePerGas": "0x1",
    }
    base = [priced, "latest", None, {"baseFeePerGas": "0x3b9aca00"}]
    assert await world.result("eth_call", *base) == word(0x3B9ACA01)


async def test_access_lists_are_anvils_and_save_what_they_say(twins):
    world, anvil, first, second = twins
    for data, value in (
        (call("poke_other(uint256)", 5), 0),
        (call("poke(uint256)", 5), 0),
        (call("wealth(address)", "0x" + "99" * 20), 0),
        (call("make()"), 0),
        ("0x", 1),
    ):
        to = "0x" + "98" * 20 if value else first
        request = {"from": ME, "to": to, "data": data, "value": hex(value), "gas": "0xf4240"}
        found, foreign = await world.result("eth_createAccessList", request), anvil.rpc("eth_createAccessList", request)
        assert sorted_list(found) == sorted_list(foreign), data
        assert found["gasUsed"] == foreign["gasUsed"], data
    request = {"from": ME, "to": first, "data": call("poke_other(uint256)", 5)}
    found = await world.result("eth_createAccessList", request)
    entries = tuple(
        (Address(bytes.fromhex(item["address"][2:])), tuple(int(key, 16) for key in item["storageKeys"]))
        for item in found["accessList"]
    )
    assert {address for address, _ in entries} == {bytes.fromhex(first[2:]), bytes.fromhex(second[2:])}
    receipt = await send_listed(world, first, request["data"], entries)
    assert (receipt["status"], receipt["gasUsed"]) == ("0x1", found["gasUsed"])
    failing = await world.result("eth_createAccessList", request | {"data": call("poke(uint256)", 1000)})
    assert (failing["error"], failing["accessList"]) == ("execution reverted: too much", [])
    found = await world.result("eth_createAccessList", request)
    overridden = await world.result(
        "eth_createAccessList", request, "latest", {first: {"stateDiff": {word(2): word(int(second, 16))}}}
    )
    assert overridden["gasUsed"] == found["gasUsed"]


def sorted_list(answer):
    return sorted((item["address"], sorted(item["storageKeys"])) for item in answer["accessList"])


async def send_listed(world, to, data, entries):
    from deaios.ledger.transactions import DYNAMIC_FEE, Transaction, sign_transaction

    fields = (DYNAMIC_FEE, CHAIN_ID, world.nonces[0], 3 * GWEI, 1, 300_000, Address(bytes.fromhex(to[2:])), 0)
    signed = sign_transaction(USERS[0], Transaction(*fields, bytes.fromhex(data[2:]), entries))
    world.nonces[0] += 1
    return await world.receipt(await world.result("eth_sendRawTransaction", "0x" + signed.raw.hex()))


async def test_estimates_hold_under_overrides(twins):
    world, _, first, second = twins
    request = {"from": ME, "to": first, "data": call("poke_other(uint256)", 5)}
    plain = int(await world.result("eth_estimateGas", request), 16)
    cheap = int(await world.result("eth_estimateGas", request, "latest", {second: {"code": ANSWER}}), 16)
    assert cheap < plain
    error = await world.error("eth_estimateGas", request | {"data": call("poke(uint256)", 1000)}, "latest", {})
    assert (error["code"], error["message"]) == (3, "execution reverted: too much")
    poor = {"from": "0x" + "99" * 20, "to": first, "value": "0x5", "gasPrice": hex(2 * GWEI)}
    assert (await world.error("eth_estimateGas", poor))["message"] == "insufficient funds for transfer"
    rich = {"0x" + "99" * 20: {"balance": hex(10**18)}}
    assert await world.result("eth_estimateGas", poor | {"to": ME}, "latest", rich) == hex(21_000)


async def test_what_cannot_be_pretended_is_named(twins, monkeypatch):
    world, _, first, _ = twins
    request = {"to": first, "data": call("value()")}
    precompile = "0x" + "00" * 19 + "02"

    async def refusal(*given):
        error = await world.error("eth_call", request, "latest", *given)
        return error["code"], error["message"]

    assert await refusal(5) == (-32602, "invalid argument 2: a state override object is expected")
    for given in (
        {"0x12": {}},
        {first: 5},
        {first: {"state": 5}},
        {first: {"stateDiff": {"0x1": word(1)}}},
        {first: {"balance": "x"}},
        {first: {"storage": {}}},
    ):
        assert (await refusal(given))[0] == -32602, given
    assert await refusal({first: {"state": {}, "stateDiff": {}}}) == (
        -32000,
        f"account {first} has both 'state' and 'stateDiff'",
    )
    for given in ({precompile: {"code": "0x00"}}, {precompile: {"movePrecompileToAddress": first}}):
        code, message = await refusal(given)
        assert code == -32000
        assert "cannot move or replace precompiles" in message
        assert "--chain URL" in message
    assert "BASEFEE" in (await refusal({first: {"code": "0x4800"}}))[1]
    assert await refusal(None, {"blobBaseFee": "0x1"}) == (
        -32000,
        'block override "blobBaseFee" is not supported for this RPC method',
    )
    assert (await refusal(None, {"gasLimit": "0x1312d00"}))[0] == -32000
    assert (await refusal(None, {"coinbase": ME}))[0] == -32602
    monkeypatch.setattr(overrides, "OVERRIDES_MAX", 3)
    assert "more than 3" in (await refusal({first: {"stateDiff": {word(n): word(n) for n in range(4)}}}))[1]
    monkeypatch.setattr(overrides, "REPLACED_SLOTS_MAX", 0)
    assert "too many to replace" in (await refusal({first: {"state": {}}}))[1]
