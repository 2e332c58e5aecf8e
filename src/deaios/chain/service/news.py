"""Who is told what a running chain does: each new head, and each transaction admitted to the pool.

Listeners are called on the event loop, in the order in which they were added, in the same step in which readers can
see the news; so whoever reads the chain and adds a listener without a break between misses nothing and hears nothing
twice. A listener only takes notes: it never blocks and never raises.
"""

import asyncio
from typing import Protocol

from deaios.chain.blocks import Block
from deaios.chain.pool import Waiting


class Listener(Protocol):
    """What hears of a chain's news; filters, subscriptions and tests."""

    def on_block(self, block: Block) -> None:
        """A block became the head."""

    def on_transaction(self, waiting: Waiting) -> None:
        """A transaction was admitted; it is on disk before its sender is told so."""


class Bell:
    """Rings at each new head, for any number of waiters; a listener.

    Take `coming` before looking whether what is waited for is there, and wait for it afterwards: nothing is missed.
    """

    def __init__(self) -> None:
        self._coming: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def coming(self) -> asyncio.Future[None]:
        """The next ring; shared, so that it is shielded by whoever awaits it."""
        return self._coming

    def on_block(self, _block: Block) -> None:
        """A block became the head."""
        rung, self._coming = self._coming, asyncio.get_running_loop().create_future()
        rung.set_result(None)

    def on_transaction(self, waiting: Waiting) -> None:
        """Not rung for."""


class Listeners:
    """The listeners of one chain."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def add(self, listener: Listener) -> None:
        """Tell this one too from now on."""
        self._listeners.append(listener)

    def remove(self, listener: Listener) -> None:
        """Tell this one no more; nothing happens where it was never added."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def tell_block(self, block: Block) -> None:
        """A block became the head."""
        for listener in self._listeners:
            listener.on_block(block)

    def tell_transaction(self, waiting: Waiting) -> None:
        """A transaction was admitted."""
        for listener in self._listeners:
            listener.on_transaction(waiting)
