"""`deaios chain follow` as a process: foreign clients read from it, and kill -9 loses nothing."""

import json
import os
import subprocess
import sys
import time

import pytest
from chain_values import USERS, transfer
from web3 import Web3

from deaios.chain.service.inspection import check_chain

TO = b"\x77" * 20
KILLS = 2
PER_USER = 30


class Follow:
    """The command over one folder."""

    def __init__(self, url, folder, anchor=None, code="from deaios.cli.main import main; main()"):
        arguments = ["chain", "follow", url, "--dir", str(folder), "--json"]
        arguments += ["--genesis-hash", anchor] if anchor else []
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"NO_COLOR": "1"},
        )
        self.ready = self._read()

    def _read(self):
        text = ""
        for line in self.process.stdout:
            text += line
            if line == "}\n":
                return json.loads(text)
        return None

    def end(self):
        """Its exit code and what it said last."""
        output, errors = self.process.communicate(timeout=30)
        return self.process.returncode, output, errors


@pytest.fixture
def follow():
    started = []

    def start(*arguments, **options):
        started.append(Follow(*arguments, **options))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()


def wait(read, wanted, timeout_s=30):
    """Poll another process until it says what is wanted."""
    end = time.monotonic() + timeout_s
    while (found := read()) != wanted:
        assert time.monotonic() < end, f"{found!r} after {timeout_s} s, {wanted!r} expected"
        time.sleep(0.01)


@pytest.mark.slow
async def test_web3_uses_a_follower_that_survives_kill_9_and_refuses_another_chain(tmp_path, spawn_chain, follow):
    chain = spawn_chain(tmp_path, block_ms=30, gather_ms=3)
    anchor = chain.rpc("eth_getBlockByNumber", "0x0", False)["hash"]
    first = follow(chain.url, tmp_path / "copy", anchor)
    assert (first.ready["source"], first.ready["genesis_hash"]) == (chain.url, anchor)
    here, there = Web3(Web3.HTTPProvider(first.ready["url"])), Web3(Web3.HTTPProvider(chain.url))
    account = here.eth.account.from_key(USERS[0].secret)
    # Deploys one byte of code and logs nothing; sent to the follower, included by the chain, read from the follower.
    fields = {"from": account.address, "data": "0x60016000526001601ff3", "value": 0}
    fields |= {"gas": here.eth.estimate_gas(fields), "gasPrice": here.eth.gas_price, "chainId": here.eth.chain_id}
    fields["nonce"] = here.eth.get_transaction_count(account.address, "pending")
    sent = here.eth.send_raw_transaction(account.sign_transaction(fields).raw_transaction)
    receipt = here.eth.wait_for_transaction_receipt(sent, timeout=30, poll_latency=0.02)
    assert receipt == there.eth.get_transaction_receipt(sent)
    assert bytes(here.eth.get_code(receipt.contractAddress)) == b"\x01"
    assert here.eth.get_block(receipt.blockNumber, True) == there.eth.get_block(receipt.blockNumber, True)
    raws = [transfer(user, there.eth.chain_id, nonce, TO, 1).raw for nonce in range(PER_USER) for user in USERS[1:]]
    running, share = first, len(raws) // (KILLS + 1)
    for kill in range(KILLS):
        height = here.eth.block_number
        send_all(chain, raws[kill * share : (kill + 1) * share])
        # In the middle of a run of blocks: the first of them are here, the rest are on their way.
        wait(lambda: here.eth.block_number > height, True)  # noqa: B023 # called at once
        running.process.kill()
        running.process.wait()
        running = follow(chain.url, tmp_path / "copy")
        assert running.ready["url"] == first.ready["url"]
    send_all(chain, raws[KILLS * share :])
    for raw in (raws[0], raws[-1]):
        assert there.eth.wait_for_transaction_receipt(Web3.keccak(raw), timeout=30, poll_latency=0.02).status == 1
    wait(lambda: there.eth.get_balance("0x" + TO.hex()), len(raws))
    wait(lambda: here.eth.block_number, there.eth.block_number)
    assert here.eth.get_block("latest") == there.eth.get_block("latest")
    assert here.eth.get_balance("0x" + TO.hex()) == len(raws)
    running.process.terminate()
    assert running.end()[0] == 0
    checked = await check_chain(tmp_path / "copy" / "roles" / "follower" / "chain.db", is_executing=True)
    assert (checked.height, checked.transactions) == (there.eth.block_number, len(raws) + 1)
    # The operator's file is lost, and it begins anew from the same genesis: another block 1 under the same key.
    (tmp_path / "other").mkdir()
    other = spawn_chain(tmp_path / "other", block_ms=30, gather_ms=3)
    other.wait_receipt(other.rpc("eth_sendRawTransaction", "0x" + raws[0].hex()))
    ended = follow(other.url, tmp_path / "copy")
    code, output, errors = ended.end()
    assert code == 1, errors
    # It may have said where it serves before it said why it ended.
    said = (ended.ready if "error" in ended.ready else json.loads(output))["error"]
    assert said["type"] == "Diverged"
    assert "block 1 differs in hash" in said["message"]
    (evidence,) = (tmp_path / "copy" / "roles" / "follower" / "evidence").iterdir()
    assert evidence.name == "equivocation-1.json"
    assert str(evidence) in said["message"]


def send_all(chain, raws):
    for start in range(0, len(raws), 10):
        body = [
            {"jsonrpc": "2.0", "id": number, "method": "eth_sendRawTransaction", "params": ["0x" + raw.hex()]}
            for number, raw in enumerate(raws[start : start + 10])
        ]
        assert all("result" in answer for answer in chain.exchange(body))
