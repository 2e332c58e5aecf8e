"""Budgets of running answers: the most an answer may cost is set aside before it is bought.

Invariant: spent + reserved never exceeds a key's budget, so a balance is never negative, however many answers run at
once. Reservations live in memory: after a crash they are gone, and what was not charged was not promised. Charges wait
for the disk on a thread; those that come meanwhile share the next transaction.
"""

import asyncio
import sqlite3
from dataclasses import dataclass
from functools import partial

from deaios.gateway.errors import InternalFault, RefusedBudget
from deaios.gateway.store import Charge, KeyStore
from deaios.primitives.errors import DeaiosError, Unavailable
from deaios.primitives.units import format_credit
from deaios.runtime.logs import get_logger

log = get_logger("gateway")

_Group = list[tuple[Charge, "asyncio.Future[bool]"]]


class UnavailableLedger(Unavailable):
    """The disk did not take a charge; the answer is not given out."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """What is set aside for one answer."""

    key_id: str
    amount: int


class Budgets:
    """Reservations over one key store; one instance per gateway process."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store
        self._reserved: dict[str, int] = {}
        self._waiting: _Group = []
        self._is_writing = False

    def reserved(self, key_id: str) -> int:
        """What is set aside for a key's running answers."""
        return self._reserved.get(key_id, 0)

    def find_charges(self, request: bytes, from_ms: int, to_ms: int) -> list[Charge]:
        """What a request was charged in a time."""
        return self._store.find_charges(request, from_ms, to_ms)

    def reserve(self, key_id: str, amount: int) -> Reservation:
        """Set an amount aside.

        Raises:
            RefusedBudget: the key's budget does not cover it.
            NotFound: no such key.
        """
        record = self._store.get(key_id)
        if record.budget is not None:
            free = record.budget - record.spent - self.reserved(key_id)
            if amount > free:
                raise RefusedBudget(
                    f"this request may cost up to {format_credit(amount)} credits, "
                    f"but the key's budget has {format_credit(max(0, free))} left; "
                    "ask for less (max_tokens, term, bytes) or raise the budget"
                )
        self._reserved[key_id] = self.reserved(key_id) + amount
        return Reservation(key_id, amount)

    async def settle(self, reservation: Reservation, charge: Charge) -> bool:
        """Charge what an answer cost and give back the rest; on return the charge is on disk.

        Returns:
            False where the answer or its receipt had been charged before.

        Raises:
            UnavailableLedger: the disk did not take it.
        """
        assert charge.key_id == reservation.key_id
        assert 0 <= charge.amount <= reservation.amount
        loop = asyncio.get_running_loop()
        written: asyncio.Future[bool] = loop.create_future()
        self._waiting.append((charge, written))
        if not self._is_writing:
            self._is_writing = True
            loop.call_soon(self._write)  # not now, so that charges of one step share a transaction
        try:
            return await written
        finally:
            self.release(reservation)

    def _write(self) -> None:
        """Write what waits, all of it in one transaction. Callbacks, not a task: every answer passes here."""
        group, self._waiting = self._waiting, []
        self._is_writing = bool(group)
        if group:
            charges = [charge for charge, _ in group]
            try:
                work = asyncio.get_running_loop().run_in_executor(None, self._store.charge, charges)
            except RuntimeError as error:  # the threads were shut down
                self._is_writing = False
                _fail(group, UnavailableLedger(f"the charge could not be written: {error}"))
                return
            work.add_done_callback(partial(self._note_written, group))

    def _note_written(self, group: _Group, work: "asyncio.Future[list[bool]]") -> None:
        """Tell those who wait, and write what came meanwhile."""
        fault = asyncio.CancelledError() if work.cancelled() else work.exception()
        if isinstance(fault, sqlite3.Error):
            _fail(group, UnavailableLedger(f"the charge could not be written: {fault}"))
        elif fault is not None:
            log.error("internal fault", charges=len(group), exc_info=fault)
            _fail(group, InternalFault("the charge failed"))
        else:
            for (_, written), result in zip(group, work.result(), strict=True):
                if not written.done():
                    written.set_result(result)
        self._write()

    def release(self, reservation: Reservation) -> None:
        """Give a reservation back uncharged."""
        left = self._reserved[reservation.key_id] - reservation.amount
        assert left >= 0
        if left:
            self._reserved[reservation.key_id] = left
        else:
            del self._reserved[reservation.key_id]


def _fail(group: _Group, error: DeaiosError) -> None:
    for _, written in group:
        if not written.done():
            written.set_exception(error)
