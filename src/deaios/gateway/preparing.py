"""The money of a request that makes several purchases: all of it is set aside before any of them begins.

Invariant: what is set aside for a purchase goes to who takes it or is given back, whoever was cancelled when.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from deaios.gateway.answer import Prepared
from deaios.gateway.budgets import Budgets
from deaios.market.orders import Order
from deaios.primitives.errors import DeaiosError

Priced = list[tuple[Order, int]]


class Together:
    """Orders that are made once, for several answers that each take theirs."""

    def __init__(self, build: Callable[[], Coroutine[Any, Any, Priced]], key_id: str, budgets: Budgets) -> None:
        # Any: what a coroutine is sent and yields is the event loop's matter.
        self._key_id = key_id
        self._budgets = budgets
        self._task: asyncio.Task[Priced] = asyncio.create_task(build(), name="orders")
        self._prepared: dict[int, Prepared] | None = None
        self._refusal: DeaiosError | None = None
        self._gone: set[int] = set()
        self._takers = 0

    async def take(self, place: int) -> Prepared:
        """One order with its money.

        Raises:
            RefusedBudget: the key's budget does not cover all of them; nothing is set aside.
            Invalid: one of them cannot be made.
        """
        self._takers += 1
        try:
            priced = await asyncio.shield(self._task)
        except asyncio.CancelledError:
            self._leave(place)
            raise
        if self._prepared is None:
            self._prepared = self._reserve(priced)
        if self._refusal is not None:
            raise self._refusal
        return self._prepared.pop(place)

    def _reserve(self, priced: Priced) -> dict[int, Prepared]:
        prepared: dict[int, Prepared] = {}
        try:
            for place, (order, most) in enumerate(priced):
                if place not in self._gone:
                    prepared[place] = Prepared(order, self._budgets.reserve(self._key_id, most))
        except DeaiosError as refusal:
            self._refusal = refusal
            for item in prepared.values():
                self._budgets.release(item.reservation)
            return {}
        return prepared

    def _leave(self, place: int) -> None:
        """Who was cancelled takes nothing; the last to go ends the work."""
        self._gone.add(place)
        if self._prepared is not None and place in self._prepared:
            self._budgets.release(self._prepared.pop(place).reservation)
        if len(self._gone) == self._takers:
            self._task.cancel()
