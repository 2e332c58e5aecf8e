"""kill -9 while transactions stream in: what was acknowledged is included once, and headers never fork."""

import json
import sqlite3
import threading
import urllib.error

from chain_values import OPERATOR, USERS, transfer

from deaios.chain.blocks import decode_header
from deaios.chain.genesis import ETHER
from deaios.ledger.eip712 import decode_json, recover_signer
from deaios.ledger.structs import Header, header_domain
from deaios.primitives.encoding import decode_hex

PER_USER = 150
BATCH = 10
KILLS = 3
RECEIVER = b"\x99" * 20


def send_until_killed(running, batches, acknowledged, progressed):
    """Post batches in order; keep only hashes that came back."""
    while batches:
        body = [
            {"jsonrpc": "2.0", "id": number, "method": "eth_sendRawTransaction", "params": ["0x" + raw.hex()]}
            for number, raw in enumerate(batches[0])
        ]
        try:
            answers = running.exchange(body)
        except (urllib.error.URLError, ConnectionError, json.JSONDecodeError, OSError):
            return
        for answer in answers:
            # After a restart the same bytes may wait already, or be included: both mean that nothing was lost.
            text = answer.get("error", {}).get("message", "")
            assert "result" in answer or "already known" in text or "nonce too low" in text, answer
            if "result" in answer:
                acknowledged.add(answer["result"])
        batches.pop(0)
        progressed.set()


def test_acknowledged_transactions_survive_kill_9_and_are_included_once(tmp_path, spawn_chain):
    running = spawn_chain(tmp_path, block_ms=40, gather_ms=5)
    chain_id = int(running.rpc("eth_chainId"), 16)
    raws = [transfer(user, chain_id, nonce, RECEIVER, 1).raw for nonce in range(PER_USER) for user in USERS]
    batches = [raws[start : start + BATCH] for start in range(0, len(raws), BATCH)]
    headers = {}
    acknowledged = set()
    for kill in range(KILLS + 1):
        progressed = threading.Event()
        sender = threading.Thread(target=send_until_killed, args=(running, batches, acknowledged, progressed))
        sender.start()
        if kill == KILLS:
            sender.join()
            break
        assert progressed.wait(20)
        # Kill in the middle of the stream: some batches are acknowledged, some blocks are under way.
        while len(batches) > len(raws) // BATCH * (KILLS - kill) // (KILLS + 1):
            height = int(running.rpc("eth_blockNumber"), 16)
            headers[height] = running.rpc("deaios_getHeader", hex(height))
        running.kill()
        sender.join()
        running = spawn_chain(tmp_path, block_ms=40, gather_ms=5)
    assert batches == []
    for transaction_hash in acknowledged:
        assert running.wait_receipt(transaction_hash)["status"] == "0x1"
    for user in USERS:
        assert int(running.rpc("eth_getTransactionCount", "0x" + user.address.hex(), "latest"), 16) == PER_USER
    assert int(running.rpc("eth_getBalance", "0x" + RECEIVER.hex(), "latest"), 16) == len(raws)
    assert len(headers) > KILLS
    for height, before in headers.items():
        after = running.rpc("deaios_getHeader", hex(height))
        assert (before["header"], before["blockHash"]) == (after["header"], after["blockHash"])
        # The signature follows the durable block by a moment; once there, it is the only one.
        assert before["signature"] in (None, after["signature"])
        record = decode_json(Header, after["header"])
        signature = decode_hex(after["signature"])
        assert recover_signer(header_domain(chain_id), record, signature) == OPERATOR.address
    running.stop()
    check_file(tmp_path / "chain.db", len(raws))


def check_file(path, transactions):
    connection = sqlite3.connect(path)
    try:
        heights = [row[0] for row in connection.execute("SELECT number FROM blocks ORDER BY number")]
        assert heights == list(range(len(heights)))
        assert connection.execute("SELECT count(*) FROM places").fetchone() == (transactions,)
        assert connection.execute("SELECT count(*) FROM signed_headers WHERE signature IS NULL").fetchone() == (0,)
        total = sum(int.from_bytes(row[0]) for row in connection.execute("SELECT balance FROM accounts"))
        headers = [decode_header(row[0]) for row in connection.execute("SELECT header FROM blocks")]
        burned = sum(header.gas_used * header.base_fee for header in headers)
        assert total + burned == len(USERS) * 1000 * ETHER
    finally:
        connection.close()


def test_waiting_transactions_outlive_the_process_even_before_any_block(tmp_path, spawn_chain):
    """The block interval is long, so the only place where the acknowledged transaction can be is the journal."""
    running = spawn_chain(tmp_path, block_ms=50, gather_ms=60_000)
    chain_id = int(running.rpc("eth_chainId"), 16)
    signed = transfer(USERS[0], chain_id, 0, RECEIVER, 7)
    assert running.rpc("eth_sendRawTransaction", "0x" + signed.raw.hex()) == "0x" + signed.hash.hex()
    assert running.rpc("eth_blockNumber") == "0x0"
    running.kill()
    again = spawn_chain(tmp_path, block_ms=50, gather_ms=5)
    receipt = again.wait_receipt("0x" + signed.hash.hex())
    assert (receipt["status"], receipt["blockNumber"]) == ("0x1", "0x1")
