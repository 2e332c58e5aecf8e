"""What auditors and defenders need from outside: an engine to recheck with, a shop, a shelf for evidence.

Protocols only, each with a live version and a fake that tests run against. No I/O here.
"""

from collections.abc import Sequence
from typing import Protocol

from deaios.alignment.evidence import Evidence
from deaios.compute.verification import Report
from deaios.market.orders import Order
from deaios.primitives.keys import Address


class Recheck(Protocol):
    """Re-execution of one purchase; the live one is `recheck.service`."""

    async def check(self, evidence: Evidence) -> Report:
        """One prefill: does every token hold, and the finish?

        Raises:
            Unavailable: the model that was ordered cannot be run here.
        """

    async def replay(self, evidence: Evidence) -> bool | None:
        """Does exact replay give the output, its end included? None where replay cannot be had here."""


class Shop(Protocol):
    """Where an auditor buys; the live one is the market's buyer."""

    async def list_providers(self, model_record_id: bytes) -> Sequence[Address]:
        """Providers of a model that sell now."""

    async def fetch_level(self, model_record_id: bytes, provider: Address) -> int:
        """The highest level that one of them sells."""

    async def buy(self, order: Order) -> Evidence:
        """Buy one answer to its end."""


class Shelf(Protocol):
    """Storage of evidence."""

    async def put_bytes(self, data: bytes) -> bytes:
        """Store; returns the manifest id."""

    async def get_bytes(self, manifest_id: bytes, bytes_max: int) -> bytes:
        """Fetch, verified.

        Raises:
            RefusedTooLarge: there is more than `bytes_max`.
            Unavailable: it cannot be had now.
            Invalid: what is stored is not what its id says.
        """
