"""A chain in this process with its door, and clients for HTTP and WebSocket. Not a test module."""

import asyncio
import contextlib
import json
from concurrent.futures import ThreadPoolExecutor

import aiohttp
from chain_values import OPERATOR, USERS, transaction

from deaios.chain.genesis import ETHER, Allocation, Genesis
from deaios.chain.service import ChainService, Limits, build_application
from deaios.chain.service.time_travel import MovedClock
from deaios.runtime.clock import SystemClock
from deaios.runtime.http import serve

GENESIS = Genesis(
    b"\x31" * 32, OPERATOR.address, 1_700_000_000, tuple(Allocation(user.address, 100 * ETHER) for user in USERS)
)
CHAIN_ID = GENESIS.chain_id
ME = "0x" + USERS[0].address.hex()
EMITTER = bytes.fromhex("6003" + "6002" + "600035" + "6020" + "6000" + "a300")
"""Logs 32 bytes of memory with the topics (input word, 2, 3)."""
ANSWER_S = 20


def word(number):
    return "0x" + number.to_bytes(32).hex()


class World:
    """A client of one chain.

    Attributes:
        nonces: of `USERS`, counted here.
    """

    def __init__(self, url, session, chain):
        self.url, self.session, self.chain = url, session, chain
        self.nonces = [0] * len(USERS)

    async def post(self, body):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(self.url, data=data, headers={"Content-Type": "application/json"}) as response:
            text = await response.read()
            return response.status, json.loads(text) if text else None

    async def ask(self, method, *params):
        _, answer = await self.post({"jsonrpc": "2.0", "id": 7, "method": method, "params": list(params)})
        assert answer["id"] == 7
        return answer

    async def result(self, method, *params):
        answer = await self.ask(method, *params)
        assert "error" not in answer, (method, params, answer)
        return answer["result"]

    async def error(self, method, *params):
        answer = await self.ask(method, *params)
        assert "error" in answer, (method, params, answer)
        return answer["error"]

    def sign(self, to, *, user=0, **fields):
        signed = transaction(USERS[user], CHAIN_ID, self.nonces[user], to, **fields)
        self.nonces[user] += 1
        return signed

    async def send(self, to, **fields):
        """Sends a transaction of its own making; its hash."""
        return await self.result("eth_sendRawTransaction", "0x" + self.sign(to, **fields).raw.hex())

    async def include(self, to, **fields):
        """The same, and its receipt."""
        return await self.receipt(await self.send(to, **fields))

    async def receipt(self, transaction_hash):
        async with asyncio.timeout(ANSWER_S):
            while (found := await self.result("eth_getTransactionReceipt", transaction_hash)) is None:
                await asyncio.sleep(0)
        return found

    async def deploy(self, runtime):
        head = bytes.fromhex(f"61{len(runtime):04x}600e60003961{len(runtime):04x}6000f3")
        receipt = await self.include(None, data=head + runtime, gas=900_000)
        assert receipt["status"] == "0x1"
        return receipt["contractAddress"]

    async def emit(self, address, number):
        """A log of `EMITTER`; its receipt."""
        return await self.include(bytes.fromhex(address[2:]), data=number.to_bytes(32), gas=100_000)

    @contextlib.asynccontextmanager
    async def websocket(self):
        async with self.session.ws_connect(self.url, max_msg_size=0) as socket:
            yield Socket(socket)


class Socket:
    """A WebSocket client that keeps what it is told apart from what it is answered."""

    def __init__(self, socket):
        self.socket = socket
        self.told = []
        self.count = 0

    async def read(self):
        async with asyncio.timeout(ANSWER_S):
            message = await self.socket.receive()
        assert message.type is aiohttp.WSMsgType.TEXT, message
        return json.loads(message.data)

    async def ask(self, method, *params):
        self.count += 1
        await self.socket.send_json({"jsonrpc": "2.0", "id": self.count, "method": method, "params": list(params)})
        return await self.answer(self.count)

    async def answer(self, identity):
        while True:
            found = await self.read()
            if found.get("method") == "eth_subscription":
                self.told.append(found["params"])
            else:
                assert found["id"] == identity
                return found

    async def result(self, method, *params):
        answer = await self.ask(method, *params)
        assert "error" not in answer, answer
        return answer["result"]

    async def error(self, method, *params):
        return (await self.ask(method, *params))["error"]

    async def news(self, count):
        """The next so many notifications, as (subscription, result)."""
        while len(self.told) < count:
            found = await self.read()
            assert found["method"] == "eth_subscription", found
            self.told.append(found["params"])
        taken, self.told = self.told[:count], self.told[count:]
        return [(item["subscription"], item["result"]) for item in taken]


@contextlib.asynccontextmanager
async def running(path, *, limits=None, moved=False, door_limits=None):
    with ThreadPoolExecutor(3) as executor:
        clock = MovedClock(SystemClock()) if moved else SystemClock()
        chain = await ChainService.start(
            path / "chain.db",
            OPERATOR,
            GENESIS,
            executor=executor,
            clock=clock,
            limits=limits or Limits(block_ms=20, gather_ms=1),
        )
        task = asyncio.create_task(chain.run())
        try:
            application = build_application(chain, clock if moved else None)
            async with serve(application, limits=door_limits) as url, aiohttp.ClientSession() as session:
                yield World(url, session, chain)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await chain.close()
