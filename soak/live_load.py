"""Clients of a live network: they chat, pay, store and fetch, and write down every word they were given.

Each client follows its protocol to the letter: a chat request that failed before its answer began is sent again as an
OpenAI SDK does, with the same bytes and a retry count; a transaction is sent again until the node has it; what breaks
off is written down as unfinished. Nothing here judges: `live_recount` does.
"""

import asyncio
import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from deaios.compute.commitments import hash_client
from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.rpc import RefusedByChain, Rpc
from deaios.ledger.client.sender import Sender
from deaios.ledger.transactions import DYNAMIC_FEE, Transaction, sign_transaction
from deaios.market.opening import Opening
from deaios.node.model_package import MODEL_NAME
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Invalid, Refused, Unavailable
from deaios.primitives.keys import Address, PrivateKey
from deaios.runtime.client import HttpClient
from deaios.storage.client import StorageClient
from soak.live_network import LiveNetwork

ATTEMPTS_MAX = 200
"""Tries of one request; with their pauses far longer than any restart."""
RETRY_S = 100.0
"""A chat request is not sent again later than this: gateways know retries for two minutes, SDKs give up sooner."""
REQUEST_S = 120.0
FILE_BYTES = (1_000, 200_000)
FILES_MAX = 400
TRANSFER_GAS = 120_000
FEE_MAX = 100_000_000_000
AMOUNTS = 1_000
"""Payments cost 1 to so many units in turn, so that hours of them do not empty a purse."""
TOLD_MAX = 64
"""Receipts looked up in one turn."""
QUESTIONS = (
    "Name a colour.",
    "Say a short greeting.",
    "Count to five.",
    "Which animal says meow?",
    "Finish: the sky is",
    "Give me one word that rhymes with tree.",
)


@dataclass(frozen=True)
class Answered:
    """A chat request that was answered to its end."""

    client_digest: bytes
    answer_id: str
    opening: Opening


@dataclass
class Transfer:
    """A payment that its node acknowledged; `told` is what a receipt said later."""

    sender: Address
    to: Address
    amount: int
    told: tuple[bytes, int, bool] | None = None


@dataclass
class Record:
    """Everything that clients were told."""

    answers: list[Answered] = field(default_factory=list)
    unfinished: set[bytes] = field(default_factory=set)
    """Client digests of requests whose answer broke off, was left, or never came."""
    transfers: dict[bytes, Transfer] = field(default_factory=dict)
    maybe_sent: list[Transfer] = field(default_factory=list)
    """Payments whose sender could not say what became of them."""
    files: dict[bytes, bytes] = field(default_factory=dict)
    """SHA-256 of the content by manifest id."""
    proofs: dict[tuple[Address, int], int] = field(default_factory=dict)
    """Batch index that the gateway named for a receipt."""
    events: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    """What no client should ever see, whatever dies."""


class Load:
    """All clients of one run; `start`, then `stop`."""

    def __init__(
        self,
        network: LiveNetwork,
        record: Record,
        seed: int,
        *,
        chats: int = 4,
        files: bool = True,
        pause_s: float = 0.3,
    ) -> None:
        self._network = network
        self._record = record
        self._seed = seed
        self._chats = chats
        self._files = files
        self._pause_s = pause_s
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._receiver = PrivateKey(hashlib.sha256(b"receiver").digest()).address
        self._session: aiohttp.ClientSession | None = None
        self._content: dict[bytes, bytes] = {}

    async def start(self) -> None:
        """Fund the wallets and set all clients going."""
        keys = [PrivateKey(hashlib.sha256(f"{self._seed} wallet {n}".encode()).digest()) for n in range(2)]
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_S))
        for key in keys:
            await self._fund(key)
        works: list[tuple[str, Callable[[random.Random], Awaitable[None]]]] = [
            *((f"chat {n}", self._chat) for n in range(self._chats)),
            ("raw wallet", lambda dice: self._pay_raw(dice, keys[0])),
            ("wallet", lambda dice: self._pay(dice, keys[1])),
            ("proofs", self._prove),
        ]
        if self._files:
            works.append(("files", lambda dice: self._store(dice, keys[0])))
        for name, work in works:
            dice = random.Random(f"{self._seed} {name}")
            self._tasks.append(asyncio.create_task(self._watched(name, work(dice)), name=name))

    async def stop(self) -> None:
        """Let every client end what it has begun."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)
        if self._session is not None:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        """The clients' pool."""
        assert self._session is not None
        return self._session

    async def _watched(self, name: str, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 - a client that dies is a finding, whatever killed it
            self._record.faults.append(f"client {name!r} died: {error!r}")

    async def _pause(self, dice: random.Random, mean_s: float) -> None:
        """Wait, but not beyond the end."""
        try:
            async with asyncio.timeout(dice.uniform(0, 2 * mean_s)):
                await self._stopping.wait()
        except TimeoutError:
            pass

    async def _fund(self, key: PrivateKey) -> None:
        url = self._network.url("chain") + "/faucet"
        async with self.session.post(url, json={"address": encode_hex(key.address)}) as response:
            assert response.status == 200, await response.text()

    # Chat

    async def _chat(self, dice: random.Random) -> None:
        while not self._stopping.is_set():
            await self._ask(dice)
            await self._pause(dice, self._pause_s)

    async def _ask(self, dice: random.Random) -> None:
        """One request to its end, whatever it takes."""
        how = dice.choices(("whole", "stream", "leave"), (4, 4, 1))[0]
        nonce = dice.randbytes(32)
        body = json.dumps(
            {
                "model": MODEL_NAME,
                "messages": [{"role": "user", "content": f"{dice.choice(QUESTIONS)} ({nonce[:4].hex()})"}],
                "max_tokens": dice.randint(4, 20),
                "stream": how != "whole",
            }
        ).encode()
        digest = hash_client(nonce, body)
        last_s = time.monotonic() + RETRY_S
        for attempt in range(ATTEMPTS_MAX):
            if time.monotonic() > last_s:
                break
            headers = {
                "Authorization": f"Bearer {self._network.api_key}",
                "Content-Type": "application/json",
                "X-DeAIOS-Nonce": encode_hex(nonce),
                "x-stainless-retry-count": str(attempt),
            }
            url = self._network.url("gateway") + "/v1/chat/completions"
            has_begun = False
            try:
                async with self.session.post(url, data=body, headers=headers) as response:
                    if response.status != 200:
                        if await self._is_final(response):
                            break
                    elif how == "whole":
                        self._note_answer(digest, await response.json())
                        return
                    else:
                        has_begun = True
                        left_after = dice.randint(1, 4) if how == "leave" else None
                        if (last := await self._read_stream(response, left_after)) is not None:
                            self._note_answer(digest, last)
                            return
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self._record.events[f"chat: {type(error).__name__}"] += 1
            if has_begun:  # no SDK sends a stream again that has begun
                self._record.events["chat: broke off or left"] += 1
                break
            await asyncio.sleep(dice.uniform(0.3, 1.0))
        self._record.unfinished.add(digest)

    async def _is_final(self, response: aiohttp.ClientResponse) -> bool:
        """Is this a refusal that no retry changes? Such a one is a fault: every request here is in order."""
        text = (await response.text())[:300]
        self._record.events[f"chat: status {response.status}"] += 1
        if response.status in (429, 502, 503, 504):
            return False
        self._record.faults.append(f"a request in order got {response.status}: {text}")
        return True

    async def _read_stream(self, response: aiohttp.ClientResponse, left_after: int | None) -> dict[str, Any] | None:
        """The last chunk, with the papers; None where the stream broke off, said so, or was left."""
        last: dict[str, Any] | None = None
        chunks = 0
        async for line in response.content:
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                return last
            chunk = json.loads(line[6:])
            if "error" in chunk:
                self._record.events["chat: error in stream"] += 1
                return None
            last = chunk if "deaios" in chunk else last
            chunks += 1
            if chunks == left_after:
                return None
        return None

    def _note_answer(self, digest: bytes, body: dict[str, Any]) -> None:
        opening = Opening.decode_json(body["deaios"]["opening"])
        self._record.answers.append(Answered(digest, body["id"], opening))
        self._record.events["chat: answered"] += 1
        if opening.ask.client_digest != digest:
            self._record.faults.append(f"answer {body['id']} is for another request")

    async def _prove(self, dice: random.Random) -> None:
        """Ask where on chain a receipt is; whatever is named must still be so at the end."""
        while not self._stopping.is_set():
            await self._pause(dice, 2.0)
            if not self._record.answers:
                continue
            receipt = (answered := dice.choice(self._record.answers[-50:])).opening.receipt
            provider = answered.opening.request.provider
            url = f"{self._network.url('gateway')}/v1/receipts/{encode_hex(provider)}/{receipt.counter}/proof"
            try:
                async with self.session.get(
                    url, headers={"Authorization": f"Bearer {self._network.api_key}"}
                ) as response:
                    if response.status == 200:
                        found = await response.json()
                        self._record.proofs[provider, receipt.counter] = found["proof"]["index"]
                        self._record.events["proof"] += 1
            except (aiohttp.ClientError, TimeoutError, OSError):
                continue

    # Payments

    async def _pay_raw(self, dice: random.Random, key: PrivateKey) -> None:
        """Signed transfers as any wallet sends them: acknowledged is what the node gave a hash for."""
        descriptor = self._network.descriptor
        async with Rpc(self._network.url("chain")) as rpc:
            credit = Contracts(rpc, descriptor.contracts).credit
            nonce = 0
            while not self._stopping.is_set():
                amount = 1 + nonce % AMOUNTS
                data = credit.contract.abi.get_function("transfer").encode_call((self._receiver, amount))
                signed = sign_transaction(
                    key,
                    Transaction(
                        DYNAMIC_FEE, descriptor.chain_id, nonce, FEE_MAX, 1, TRANSFER_GAS, credit.address, 0, data
                    ),
                )
                if not await self._submit(rpc, dice, signed):
                    return
                self._record.transfers[signed.hash] = Transfer(key.address, self._receiver, amount)
                nonce += 1
                await self._look_up(rpc, key.address)
                await self._pause(dice, self._pause_s)
            await self._look_up(rpc, key.address)

    async def _submit(self, rpc: Rpc, dice: random.Random, signed: Transaction) -> bool:
        for _ in range(ATTEMPTS_MAX):
            try:
                await rpc.send_raw_transaction(signed.raw)
            except Unavailable:
                self._record.events["transfer: chain away"] += 1
                await asyncio.sleep(dice.uniform(0.1, 0.5))
            except RefusedByChain as error:
                # Sent before, and the answer was lost: then the node knows it.
                try:
                    if await rpc.call("eth_getTransactionByHash", [encode_hex(signed.hash)]) is not None:
                        return True
                except Unavailable:
                    continue
                if "underpriced" in str(error) or "busy" in str(error):
                    await asyncio.sleep(dice.uniform(0.1, 0.5))
                    continue
                self._record.faults.append(f"a transfer in order was refused: {error}")
                return False
            else:
                self._record.events["transfer"] += 1
                return True
        return False

    async def _look_up(self, rpc: Rpc, sender: Address) -> None:
        """Ask for receipts that are still unknown; what they say is written down and must stay true."""
        unknown = [
            (item, transfer)
            for item, transfer in self._record.transfers.items()
            if transfer.told is None and transfer.sender == sender
        ]
        for transaction_hash, transfer in unknown[:TOLD_MAX]:
            try:
                receipt = await rpc.get_receipt(transaction_hash)
            except Unavailable:
                return
            if receipt is not None:
                transfer.told = (receipt.block_hash, receipt.block_number, receipt.is_success)

    async def _pay(self, dice: random.Random, key: PrivateKey) -> None:
        """Transfers through our own sender: acknowledged is what it returned from."""
        descriptor = self._network.descriptor
        amount = 0
        async with Rpc(self._network.url("chain")) as rpc:
            sender = Sender(rpc, key, descriptor.chain_id)
            credit = Contracts(rpc, descriptor.contracts).credit
            try:
                while not self._stopping.is_set():
                    amount += 1
                    transfer = Transfer(key.address, self._receiver, amount)
                    try:
                        receipt = await credit.transfer(sender, self._receiver, amount)
                    except (Unavailable, Refused, Invalid) as error:
                        self._record.events[f"sender: {type(error).__name__}"] += 1
                        self._record.maybe_sent.append(transfer)
                    else:
                        transfer.told = (receipt.block_hash, receipt.block_number, receipt.is_success)
                        self._record.transfers[receipt.transaction_hash] = transfer
                        self._record.events["sender: paid"] += 1
                    await self._pause(dice, 2 * self._pause_s)
            finally:
                await sender.close()

    # Files

    async def _store(self, dice: random.Random, key: PrivateKey) -> None:
        """Put files, and get back at random what was put."""
        descriptor = self._network.descriptor
        async with HttpClient() as http:
            client = StorageClient(http, list(descriptor.storage_urls), key, descriptor.network_id)
            while not self._stopping.is_set():
                await self._pause(dice, 2.0)
                try:
                    if len(self._record.files) < FILES_MAX:
                        data = dice.randbytes(dice.randint(*FILE_BYTES))
                        manifest = await client.put_bytes(data)
                        self._record.files[manifest] = hashlib.sha256(data).digest()
                        self._record.events["file put"] += 1
                    if self._record.files:
                        manifest, digest = dice.choice(list(self._record.files.items()))
                        if hashlib.sha256(await client.get_bytes(manifest, FILE_BYTES[1])).digest() != digest:
                            self._record.faults.append(f"file {manifest.hex()} came back changed")
                        self._record.events["file got"] += 1
                except (Unavailable, Refused) as error:
                    self._record.events[f"file: {type(error).__name__}"] += 1
