"""Foreign clients against the embedded chain in a process of its own: web3.py, cast, ethers 6, viem."""

import asyncio
import contextlib
import json
import os
import pty
import select
import subprocess

import pytest
from chain_values import USERS
from vyper import compile_code
from web3 import AsyncWeb3, Web3, WebSocketProvider
from web3.exceptions import ContractLogicError, TransactionNotFound, Web3RPCError

SOURCE = """
# pragma version 0.4.3
# pragma evm-version cancun

event Added:
    by: indexed(address)
    amount: uint256

value: public(uint256)
seen: public(HashMap[address, uint256])

@deploy
def __init__(start: uint256):
    self.value = start

@external
@payable
def add(amount: uint256) -> uint256:
    assert amount > 0, "nothing to add"
    self.value += amount
    self.seen[msg.sender] += 1
    log Added(by=msg.sender, amount=amount)
    return self.value
"""


@pytest.fixture(scope="session")
def counter():
    """(ABI, creation code) of a small contract."""
    compiled = compile_code(SOURCE, output_formats=["abi", "bytecode"])
    return compiled["abi"], compiled["bytecode"]


def hex_key(user):
    return "0x" + user.secret.hex()


def test_web3_py_does_what_an_application_does(chain, counter):
    abi, bytecode = counter
    web3 = Web3(Web3.HTTPProvider(chain.url))
    account = web3.eth.account.from_key(USERS[0].secret)
    web3.eth.default_account = account.address

    def send(function):
        fields = function.build_transaction(
            {"from": account.address, "nonce": web3.eth.get_transaction_count(account.address, "pending")}
        )
        sent = web3.eth.send_raw_transaction(account.sign_transaction(fields).raw_transaction)
        return web3.eth.wait_for_transaction_receipt(sent, poll_latency=0.02)

    deployed = send(web3.eth.contract(abi=abi, bytecode=bytecode).constructor(5))
    assert deployed.status == 1
    contract = web3.eth.contract(deployed.contractAddress, abi=abi)
    assert contract.functions.value().call() == 5
    receipt = send(contract.functions.add(37))
    assert contract.events.Added().process_receipt(receipt)[0]["args"] == {"by": account.address, "amount": 37}
    assert [log["args"]["amount"] for log in contract.events.Added().get_logs(from_block=0)] == [37]
    with pytest.raises(ContractLogicError, match="nothing to add"):
        contract.functions.add(0).call()
    with pytest.raises(ContractLogicError, match="nothing to add"):
        contract.functions.add(0).estimate_gas()
    with pytest.raises(TransactionNotFound):
        web3.eth.get_transaction(b"\1" * 32)
    found = web3.eth.get_transaction(receipt.transactionHash)
    assert (found["from"], found["blockNumber"], found["type"]) == (account.address, receipt.blockNumber, 2)
    block = web3.eth.get_block(receipt.blockNumber, full_transactions=True)
    assert block.transactions[0] == found
    assert web3.eth.get_block(block.hash).number == block.number
    assert web3.eth.get_storage_at(contract.address, 0) == (42).to_bytes(32)
    assert web3.eth.get_code(contract.address)
    assert web3.eth.fee_history(4, "latest", [25, 75]).baseFeePerGas
    assert (web3.is_connected(), web3.net.version) == (True, str(web3.eth.chain_id))
    with pytest.raises(Web3RPCError, match="nonce too low: next nonce 2, tx nonce 0"):
        web3.eth.send_raw_transaction(
            account.sign_transaction(
                {
                    "nonce": 0,
                    "to": account.address,
                    "gas": 21000,
                    "gasPrice": web3.eth.gas_price,
                    "chainId": web3.eth.chain_id,
                }
            ).raw_transaction
        )

    blocks, added = web3.eth.filter("latest"), contract.events.Added.create_filter(from_block="latest")
    arrivals = web3.eth.filter("pending")
    receipt = send(contract.functions.add(5))
    assert blocks.get_new_entries()[-1] == receipt.blockHash
    assert receipt.transactionHash in arrivals.get_new_entries()
    assert [log["args"]["amount"] for log in added.get_new_entries()] == [5]
    assert [log["args"]["amount"] for log in added.get_all_entries()] == [5]
    assert web3.eth.uninstall_filter(added.filter_id)
    call = {"from": account.address, "to": contract.address, "data": contract.encode_abi("add", [1])}
    listed = web3.eth.create_access_list(call)
    assert [item.address for item in listed.accessList] == [contract.address]
    pretended = {contract.address: {"stateDiff": {"0x" + "00" * 32: "0x" + (10).to_bytes(32).hex()}}}
    assert int.from_bytes(web3.eth.call(call, "latest", pretended)) == 11
    assert web3.geth.txpool.status()["queued"] == "0x0"


async def test_web3_py_is_told_of_news_over_websocket(chain, counter):
    abi, bytecode = counter
    async with AsyncWeb3(WebSocketProvider(chain.url.replace("http", "ws"))) as web3:
        account = web3.eth.account.from_key(USERS[5].secret)
        sender = {"from": account.address}

        async def send(function):
            nonce = await web3.eth.get_transaction_count(account.address, "pending")
            fields = await function.build_transaction(sender | {"nonce": nonce})
            return await web3.eth.send_raw_transaction(account.sign_transaction(fields).raw_transaction)

        made = await send(web3.eth.contract(abi=abi, bytecode=bytecode).constructor(5))
        deployed = await web3.eth.wait_for_transaction_receipt(made, poll_latency=0.02)
        contract = web3.eth.contract(deployed.contractAddress, abi=abi)
        heads = await web3.eth.subscribe("newHeads")
        logs = await web3.eth.subscribe("logs", {"address": contract.address})
        arrivals = await web3.eth.subscribe("newPendingTransactions")
        sent = await send(contract.functions.add(6))
        told = {}
        async with asyncio.timeout(20):
            async for message in web3.socket.process_subscriptions():
                told.setdefault(message["subscription"], message["result"])
                if len(told) == 3:
                    break
        receipt = await web3.eth.get_transaction_receipt(sent)
        assert told[arrivals] == sent
        assert told[heads]["number"] <= receipt.blockNumber
        assert contract.events.Added().process_log(told[logs])["args"]["amount"] == 6
        assert told[logs]["blockHash"] == receipt.blockHash
        assert await web3.eth.unsubscribe(logs)
        with pytest.raises(ContractLogicError, match="nothing to add"):
            await contract.functions.add(0).call()


def test_an_estimate_is_exact(chain, counter):
    """The transaction succeeds with the estimate and fails with one gas less."""
    abi, bytecode = counter
    web3 = Web3(Web3.HTTPProvider(chain.url))
    account = web3.eth.account.from_key(USERS[1].secret)

    def send(fields, nonce):
        fields = fields | {"nonce": nonce, "gasPrice": web3.eth.gas_price, "chainId": web3.eth.chain_id}
        sent = web3.eth.send_raw_transaction(account.sign_transaction(fields).raw_transaction)
        return web3.eth.wait_for_transaction_receipt(sent, poll_latency=0.02)

    data = web3.eth.contract(abi=abi, bytecode=bytecode).constructor(5).data_in_transaction
    creation = web3.eth.estimate_gas({"from": account.address, "data": data})
    assert send({"data": data, "gas": creation - 1}, 0).status == 0
    made = send({"data": data, "gas": creation}, 1)
    assert made.status == 1
    call = {"to": made.contractAddress, "data": web3.eth.contract(abi=abi).encode_abi("add", [3])}
    least = web3.eth.estimate_gas(call | {"from": account.address})
    assert send(call | {"gas": least - 1}, 2).status == 0
    assert send(call | {"gas": least}, 3).status == 1


def test_cast_reads_sends_and_decodes(chain, counter, peers):
    _, bytecode = counter
    key = hex_key(USERS[2])

    def cast(command, *arguments):
        done = peers.run_cast(command, "--rpc-url", chain.url, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert cast("chain-id") == str(int(chain.rpc("eth_chainId"), 16))
    start = bytecode + (5).to_bytes(32).hex()
    made = json.loads(cast("send", "--private-key", key, "--json", "--create", start))
    assert made["status"] == "0x1"
    address = made["contractAddress"]
    sent = json.loads(cast("send", "--private-key", key, "--json", address, "add(uint256)", "4"))
    assert (sent["status"], len(sent["logs"])) == ("0x1", 1)
    assert cast("call", address, "value()(uint256)") == "9"
    assert cast("balance", "0x" + USERS[2].address.hex()).isdigit()
    assert cast("nonce", "0x" + USERS[2].address.hex()) == "2"
    logs = json.loads(
        cast("logs", "--json", "--from-block", "0", "--address", address, "Added(address indexed,uint256)")
    )
    assert [int(log["data"], 16) for log in logs] == [4]
    assert (
        json.loads(cast("block", "latest", "--json"))["hash"]
        == chain.rpc("eth_getBlockByNumber", "latest", False)["hash"]
    )
    assert cast("estimate", address, "add(uint256)", "1").isdigit()
    refused = peers.run_cast("call", "--rpc-url", chain.url, address, "add(uint256)", "0")
    assert refused.returncode != 0
    assert "nothing to add" in refused.stderr
    legacy = json.loads(cast("send", "--private-key", key, "--json", "--legacy", address, "add(uint256)", "1"))
    assert (legacy["status"], legacy["type"]) == ("0x1", "0x0")
    listed = json.loads(cast("access-list", "--json", address, "add(uint256)", "1"))
    assert [item["address"] for item in listed["accessList"]] == [address]
    assert json.loads(cast("rpc", "txpool_status"))["pending"] == "0x0"
    socket = chain.url.replace("http", "ws")
    assert peers.run_cast("chain-id", "--rpc-url", socket).stdout.strip() == cast("chain-id")
    with listening(peers, socket, address) as heard:
        for _ in range(20):  # one event is enough, once the subscription is there
            cast("send", "--private-key", key, "--json", address, "add(uint256)", "3")
            if b"transactionIndex" in heard():
                break
        assert b"data: 0x" + (3).to_bytes(32).hex().encode() in heard()


@contextlib.contextmanager
def listening(peers, url, address):
    """`cast logs --subscribe` on a terminal, without which it keeps what it prints; yields what it printed so far."""
    ours, theirs = pty.openpty()
    printed = b""

    def heard():
        nonlocal printed
        while select.select([ours], [], [], 0.2)[0]:
            printed += os.read(ours, 65536)
        return printed

    command = [peers.cast, "logs", "--subscribe", "--rpc-url", url, "--address", address]
    with subprocess.Popen(command, stdout=theirs) as listener:
        try:
            yield heard
        finally:
            listener.kill()
            os.close(theirs)
            os.close(ours)


def test_ethers_deploys_sends_and_understands_errors(chain, counter, peers):
    abi, bytecode = counter
    found = json.loads(peers.run_script("ethers.mjs", chain.url, hex_key(USERS[3]), json.dumps(abi), bytecode))
    assert found.pop("address").startswith("0x")
    assert found.pop("network") == int(chain.rpc("eth_chainId"), 16)
    assert found == {
        "value": 5,
        "statuses": [1, 1, 1],
        "after": 11,
        "events": [[True, 1], [True, 2], [True, 3]],
        "reverted": [True, "nothing to add"],
        "poor": "INSUFFICIENT_FUNDS",
        "stale": "NONCE_EXPIRED",
        "legacy": 1,
        "listed": 1,
        "block": [True, True, True],
        "fees": True,
        "storage": 11,
        "told": [9, True, 9, True, True],
        "over": 20,
        "waited": 1,
    }


def test_viem_deploys_sends_in_batches_and_understands_errors(chain, counter, peers):
    abi, bytecode = counter
    chain_id = str(int(chain.rpc("eth_chainId"), 16))
    found = json.loads(peers.run_script("viem.mjs", chain.url, hex_key(USERS[4]), json.dumps(abi), bytecode, chain_id))
    assert found.pop("address").startswith("0x")
    assert found == {
        "status": "success",
        "value": 12,
        "rich": True,
        "block": [True, True],
        "logs": [7],
        "reverted": "nothing to add",
        "fees": True,
        "history": 3,
        "told": [8, True],
        "filtered": [[8], True, True, True],
        "listed": [True, 2, True],
        "overridden": 43,
    }
