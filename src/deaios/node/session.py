"""What a command opens for one piece of work in a state folder: its network and its user key."""

import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deaios.coding.workers import Workers
from deaios.node.folder import StateFolder
from deaios.node.joining import USER
from deaios.node.keystore import open_keystore
from deaios.node.member import Member, open_member
from deaios.node.status import read_status
from deaios.runtime.clock import SystemClock
from deaios.runtime.dice import SystemDice

if TYPE_CHECKING:
    from deaios.da.client.blobs import BlobClient
    from deaios.da.client.challenger import Challenger
    from deaios.storage.client import StorageClient


@dataclass(frozen=True, slots=True)
class Session:
    """A command's connection to its network; what a command does not use of it is not loaded."""

    member: Member
    workers: Workers

    async def storage(self) -> "StorageClient":
        """The network's storage nodes."""
        from deaios.node.network import open_storage  # noqa: PLC0415 - commands that only look at the chain are quick

        return await open_storage(self.member, SystemClock(), self.workers)

    def blobs(self) -> "BlobClient":
        """The network's data availability; this key pays for what it publishes."""
        from deaios.node.network import open_blobs  # noqa: PLC0415 - commands that only look at the chain are quick

        return open_blobs(self.member, SystemClock(), SystemDice(), self.workers)

    def challenger(self) -> "Challenger":
        """Calls members of data availability to account; this key lays down the bonds."""
        from deaios.da.client.challenger import Challenger  # noqa: PLC0415 - commands that only look at the chain are quick

        bond = self.member.descriptor.windows.da_challenge_bond
        return Challenger(self.member.contracts, self.member.sender, bond, SystemClock())


@asynccontextmanager
async def open_session(folder: StateFolder, key_name: str = USER) -> AsyncIterator[Session]:
    """Connect as one of the folder's keys.

    Raises:
        ConfigError: the folder belongs to no network.
    """
    descriptor = folder.load_descriptor()
    found = await read_status(folder)
    url = found.chain.url or descriptor.rpc_urls[0]
    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores, thread_name_prefix="coding") as pool:
        async with open_member(descriptor, open_keystore(folder).open_key(key_name), url) as member:
            yield Session(member, Workers(pool, cores))
