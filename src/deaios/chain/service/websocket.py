"""JSON-RPC over WebSocket on the port of HTTP: the same requests and batches, and subscriptions.

One message of a connection is answered after the other, and the next is read when the answer is on its way, so that a
peer that does not read cannot make this process remember for it. What the peer sends is bounded by `MESSAGE_BYTES_MAX`
for one message and by `runtime.connections` for all of them; what waits for it, by its line (`subscriptions`). A peer
that answers no ping is cut off. Where all places are taken, one that subscribed to nothing and was silent for longest
gives way.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from functools import partial

from aiohttp import WSCloseCode, WSMsgType, web

from deaios.chain.service.dispatch import answer_body
from deaios.chain.service.methods import Methods
from deaios.chain.service.subscriptions import Line, Newsroom
from deaios.runtime.connections import Connection
from deaios.runtime.dice import Dice
from deaios.runtime.errors import RefusedBusy
from deaios.runtime.logs import get_logger

WEBSOCKETS_MAX = 512
"""Each may wake us for every transaction; those who only ask have HTTP."""
MESSAGE_BYTES_MAX = 8 << 20
"""As one body of HTTP."""
HEARTBEAT_S = 30.0
"""As geth: a connection on which nothing came for so long is pinged, and has half of it to answer."""
CLOSE_S = 2.0
"""How long a peer may take to say goodbye."""
BURST_MAX = 64
"""Messages sent to one peer before others have their turn."""

_log = get_logger("chain")


@dataclass(slots=True, eq=False)
class _Peer:
    connection: Connection
    socket: web.WebSocketResponse
    line: Line


def _cut(connection: Connection, reason: str) -> None:
    """End a connection at once; what waits for the peer is forgotten."""
    connection.crowd.count(reason)
    if connection.transport is not None:
        connection.transport.abort()


def _cut_off(connection: Connection, sending: "asyncio.Task[None]") -> None:
    """Who is told nothing more has to notice; what the fault was, `serve` raises."""
    if not sending.cancelled() and sending.exception() is not None:
        _cut(connection, "fault")


class WebSockets:
    """All WebSocket connections of one chain."""

    def __init__(self, methods: Methods, newsroom: Newsroom, dice: Dice) -> None:
        self._methods = methods
        self._newsroom = newsroom
        self._dice = dice
        self._peers: dict[_Peer, None] = {}
        """Those that were silent for longest come first."""

    def __len__(self) -> int:
        return len(self._peers)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Serve one connection to its end.

        Raises:
            RefusedBusy: every place is taken by somebody who subscribed.
        """
        connection = request.protocol
        assert isinstance(connection, Connection), "requests come through serve()"
        self._make_room()
        socket = web.WebSocketResponse(
            heartbeat=HEARTBEAT_S, timeout=CLOSE_S, max_msg_size=MESSAGE_BYTES_MAX, compress=False, decode_text=False
        )
        await socket.prepare(request)
        # Nothing that the line holds leads back to it: what a lost peer had sent goes with the last reference.
        peer = _Peer(connection, socket, Line(self._dice, partial(_cut, connection, "unread news")))
        self._peers[peer] = None
        self._newsroom.add(peer.line)
        connection.upgrade()
        sending = asyncio.create_task(self._send(peer), name="websocket")
        sending.add_done_callback(partial(_cut_off, connection))
        try:
            await self._receive(peer)
        finally:
            self._newsroom.remove(peer.line)
            self._peers.pop(peer, None)
            sending.cancel()
            try:
                with contextlib.suppress(asyncio.CancelledError):
                    await sending
            finally:
                # Its timer would keep what a lost peer had sent until the next ping is due.
                await socket.close(drain=False)
        return socket

    async def close(self) -> None:
        """Say goodbye to everybody."""
        farewells = [peer.socket.close(code=WSCloseCode.GOING_AWAY, message=b"the chain ends") for peer in self._peers]
        await asyncio.gather(*farewells, return_exceptions=True)

    def _make_room(self) -> None:
        if len(self._peers) < WEBSOCKETS_MAX:
            return
        silent = next((peer for peer in self._peers if not peer.line.has_subscriptions), None)
        if silent is None:
            raise RefusedBusy(f"all {WEBSOCKETS_MAX} WebSocket connections are in use; retry later")
        del self._peers[silent]
        _cut(silent.connection, "crowded")

    async def _receive(self, peer: _Peer) -> None:
        async for message in peer.socket:
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                break
            body: bytes = message.data
            if peer in self._peers:
                self._peers[peer] = self._peers.pop(peer)
            peer.connection.wake()
            try:
                await peer.line.answer(await answer_body(self._methods, body, peer.line))
            finally:
                peer.connection.finish_message(len(body))
            if not peer.line.has_subscriptions:
                peer.connection.rest()

    async def _send(self, peer: _Peer) -> None:
        try:
            while True:
                for index, message in enumerate(await peer.line.next_messages(), start=1):
                    await peer.socket.send_frame(message, WSMsgType.TEXT)
                    if index % BURST_MAX == 0:
                        await asyncio.sleep(0)
        except ConnectionError as error:
            _log.info("client went away", error=repr(error))
            _cut(peer.connection, "went away")
