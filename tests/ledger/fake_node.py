"""A node that answers the few JSON-RPC methods a sender needs, and can be told to fail in every way a node fails."""

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from aiohttp import web

from deaios.ledger.transactions import Transaction, decode_transaction, recover_sender
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import Address

CHAIN_ID = 4242
BASE_FEE = 1_000_000_000
BLOCK_GAS_LIMIT = 30_000_000
ESTIMATE = 40_000


class VirtualClock:
    """Sleeping is instant and moves the time."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def now_ms(self) -> int:
        return int(self.time_s * 1000)

    def monotonic_s(self) -> float:
        return self.time_s

    async def sleep(self, seconds: float) -> None:
        self.time_s += seconds
        await asyncio.sleep(0)


def snake_case(method: str) -> str:
    return re.sub("[A-Z]", lambda match: "_" + match[0].lower(), method)


class NodeError(Exception):
    """A JSON-RPC error object."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.document = {"code": code, "message": message} | ({} if data is None else {"data": data})


class FakeNode:
    """One chain without an EVM: nonces, balances, a pool, blocks that can be taken back; data 0xdead… reverts."""

    def __init__(self) -> None:
        self.url = ""
        self.height = 1
        self.is_mining = True
        self.keeps_pool = True
        self.price_floor = 0
        self.default_balance = 10**20
        self.balances: dict[Address, int] = {}
        self.nonces: dict[Address, int] = {}
        self.pool: dict[tuple[Address, int], Transaction] = {}
        self.mined: list[Transaction] = []
        self.blocks: dict[int, list[Transaction]] = {}
        self.hashes: dict[int, bytes] = {}
        self.branch = 0
        self.nodes_pool_recovers = False
        self.receipts: dict[bytes, dict[str, Any]] = {}
        self.calls: list[str] = []
        self.estimate_reverts = True
        self.faults: list[Callable[[str], web.StreamResponse | None]] = []
        self.after: list[Callable[[str], None]] = []
        self.raw_answer: bytes | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        if self.raw_answer is not None:
            return web.Response(body=self.raw_answer, content_type="application/json")
        calls = body if isinstance(body, list) else [body]
        for call in calls:
            self.calls.append(call["method"])
            for fault in list(self.faults):
                response = fault(call["method"])
                if response is not None:
                    return response
        answers = [self.answer(call) for call in calls]
        for call in calls:
            for hook in list(self.after):
                hook(call["method"])
        return web.json_response(answers if isinstance(body, list) else answers[0])

    def answer(self, call: dict[str, Any]) -> dict[str, Any]:
        head = {"jsonrpc": "2.0", "id": call["id"]}
        try:
            return {**head, "result": getattr(self, snake_case(call["method"]))(*call["params"])}
        except NodeError as error:
            return {**head, "error": error.document}

    def eth_chain_id(self) -> str:
        return hex(CHAIN_ID)

    def eth_block_number(self) -> str:
        return hex(self.height)

    def eth_get_block_by_number(self, tag: str, _full: bool) -> dict[str, str] | None:
        if tag in ("safe", "finalized"):
            raise NodeError(-32602, "unknown block tag")
        number = self.height if tag == "latest" else int(tag, 16)
        if number > self.height:
            return None
        return {
            "number": hex(number),
            "hash": "0x" + self.hash_of(number).hex(),
            "parentHash": "0x" + self.hash_of(max(number - 1, 0)).hex(),
            "timestamp": hex(1000 + number),
            "gasLimit": hex(BLOCK_GAS_LIMIT),
            "baseFeePerGas": hex(BASE_FEE),
        }

    def hash_of(self, number: int) -> bytes:
        return self.hashes.get(number, number.to_bytes(32))

    def eth_max_priority_fee_per_gas(self) -> str:
        return hex(100)

    def eth_estimate_gas(self, call: dict[str, str]) -> str:
        if call["data"].startswith("0xdead") and self.estimate_reverts:
            raise self.revert()
        return hex(ESTIMATE)

    def eth_call(self, call: dict[str, str], _tag: str) -> str:
        if call["data"].startswith("0xdead"):
            raise self.revert()
        return "0x"

    @staticmethod
    def revert() -> NodeError:
        from deaios.ledger.abi import ERROR_SELECTOR, encode_values

        data = ERROR_SELECTOR + encode_values(("string",), ("it is dead",))
        return NodeError(3, "execution reverted: it is dead", "0x" + data.hex())

    def eth_get_balance(self, address: str, _tag: str) -> str:
        return hex(self.balances.get(Address(bytes.fromhex(address[2:])), self.default_balance))

    def eth_get_transaction_count(self, address: str, tag: str) -> str:
        sender = Address(bytes.fromhex(address[2:]))
        nonce = self.nonces.get(sender, 0)
        while tag == "pending" and (sender, nonce) in self.pool:
            nonce += 1
        return hex(nonce)

    def eth_get_transaction_by_hash(self, text: str) -> dict[str, str] | None:
        wanted = bytes.fromhex(text[2:])
        known = wanted in self.receipts or any(item.hash == wanted for item in self.pool.values())
        return {"hash": text} if known else None

    def eth_get_transaction_receipt(self, text: str) -> dict[str, Any] | None:
        return self.receipts.get(bytes.fromhex(text[2:]))

    def eth_send_raw_transaction(self, text: str) -> str:
        transaction = decode_transaction(bytes.fromhex(text[2:]))
        sender = recover_sender(transaction)
        assert transaction.chain_id == CHAIN_ID
        if self.eth_get_transaction_by_hash("0x" + transaction.hash.hex()) is not None:
            raise NodeError(-32000, "already known")
        if transaction.nonce < self.nonces.get(sender, 0):
            raise NodeError(-32000, "nonce too low")
        if self.balances.get(sender, self.default_balance) < transaction.value + transaction.gas * transaction.max_fee:
            raise NodeError(-32000, "insufficient funds for gas * price + value")
        old = self.pool.get((sender, transaction.nonce))
        if old is not None and transaction.max_fee < old.max_fee * 110 // 100:
            raise NodeError(-32000, "replacement transaction underpriced")
        if self.keeps_pool:
            self.pool[sender, transaction.nonce] = transaction
        if self.is_mining:
            self.mine()
        return "0x" + transaction.hash.hex()

    def mine(self) -> None:
        """One block of everything that is next in line and pays enough."""
        self.open_block()
        for (sender, nonce), transaction in sorted(self.pool.items()):
            if nonce == self.nonces.get(sender, 0) and transaction.max_fee >= self.price_floor:
                self.include(sender, transaction)

    def open_block(self) -> None:
        self.height += 1
        self.blocks[self.height] = []
        self.hashes[self.height] = keccak256(bytes([self.branch]) + self.height.to_bytes(8))

    def include(self, sender: Address, transaction: Transaction) -> None:
        self.pool.pop((sender, transaction.nonce), None)
        self.nonces[sender] = transaction.nonce + 1
        self.mined.append(transaction)
        self.blocks[self.height].append(transaction)
        self.receipts[transaction.hash] = self.build_receipt(transaction)

    def reorganise(self, depth: int, again: Sequence[tuple[int, Transaction]] = ()) -> list[Transaction]:
        """Take blocks back and put as many others in their place, with (place, transaction) in them where it fits.

        Gives what is in no block any more; it is back in the pool only where `nodes_pool_recovers`.
        """
        depth = min(depth, len(self.blocks))
        lost: list[Transaction] = []
        for height in range(self.height, self.height - depth, -1):
            lost += self.blocks.pop(height)
        for transaction in lost:
            self.mined.remove(transaction)
            del self.receipts[transaction.hash]
            sender = recover_sender(transaction)
            self.nonces[sender] = min(self.nonces[sender], transaction.nonce)
        self.height -= depth
        self.branch += 1
        for place in range(depth):
            self.open_block()
            for wanted, transaction in again:
                sender = recover_sender(transaction)
                if wanted == place and transaction in lost and transaction.nonce == self.nonces[sender]:
                    self.include(sender, transaction)
                    lost.remove(transaction)
        if self.nodes_pool_recovers:
            self.pool |= {(recover_sender(item), item.nonce): item for item in lost}
        return lost

    def build_receipt(self, transaction: Transaction) -> dict[str, Any]:
        return {
            "transactionHash": "0x" + transaction.hash.hex(),
            "blockNumber": hex(self.height),
            "blockHash": "0x" + self.hash_of(self.height).hex(),
            "gasUsed": hex(21_000),
            "effectiveGasPrice": hex(BASE_FEE),
            "status": "0x0" if transaction.data.startswith(b"\xde\xad") else "0x1",
            "contractAddress": None,
            "logs": [],
        }

    def fail_times(self, method: str, times: int, status: int = 503) -> None:
        """Answer the next calls of a method with an HTTP status."""
        left = [times]

        def fault(called: str) -> web.StreamResponse | None:
            if called != method or left[0] == 0:
                return None
            left[0] -= 1
            return web.Response(status=status)

        self.faults.append(fault)
