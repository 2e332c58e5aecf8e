"""What a command opens for one piece of work in a state folder: its network, its user key, its gateway."""

import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from deaios.alignment.answer import Answer, encode_answer
from deaios.coding.workers import Workers
from deaios.da.client.blobs import BlobClient
from deaios.da.client.challenger import Challenger
from deaios.node.asking import Told, ask_gateway, complete_answer, embed_by_gateway
from deaios.node.folder import StateFolder
from deaios.node.joining import USER
from deaios.node.keystore import Keystore
from deaios.node.member import Member, open_member
from deaios.node.network import open_blobs, open_storage
from deaios.node.status import read_status
from deaios.primitives.errors import ConfigError
from deaios.runtime.client import HttpClient, InvalidResponse
from deaios.runtime.clock import SystemClock
from deaios.runtime.dice import SystemDice
from deaios.runtime.disk import write_atomic
from deaios.storage.client import StorageClient


def open_keystore(folder: StateFolder) -> Keystore:
    """The folder's keys, with the password from the environment where one is set."""
    return Keystore(folder.keys, SystemDice(), os.environ.get("DEAIOS_PASSWORD"))


@dataclass(frozen=True, slots=True)
class Session:
    """A command's connection to its network."""

    member: Member
    workers: Workers

    async def storage(self) -> StorageClient:
        """The network's storage nodes."""
        return await open_storage(self.member, SystemClock(), self.workers)

    def blobs(self) -> BlobClient:
        """The network's data availability; this key pays for what it publishes."""
        return open_blobs(self.member, SystemClock(), SystemDice(), self.workers)

    def challenger(self) -> Challenger:
        """Calls members of data availability to account; this key lays down the bonds."""
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


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


async def ask_question(
    folder: StateFolder,
    body: dict[str, object],
    *,
    gateway: str | None,
    key: str | None,
    model: str | None,
    save: Path | None,
    on_text: Callable[[str], None],
    on_wait: Callable[[str], None],
) -> tuple[Told, Answer | None]:
    """Ask a gateway, and save the answer with its proof when `save` is given.

    Raises:
        ConfigError: no gateway or key to be found; says where to get them.
    """
    url, secret = await _find_gateway(folder, gateway, key)
    async with HttpClient() as http:
        name = model or await _default_model(http, url, secret)
        told = await ask_gateway(http, url, secret, {"model": name, **body}, SystemDice(), on_text)
        if save is None:
            return told, None
        on_wait("\nwaiting for the receipt's batch on chain")
        answer = await complete_answer(http, url, secret, told, SystemClock())
    write_atomic(save, encode_answer(answer))
    return told, answer


async def embed_text(
    folder: StateFolder,
    text: str,
    *,
    gateway: str | None,
    key: str | None,
    model: str | None,
    save: Path | None,
    on_wait: Callable[[str], None],
) -> tuple[Told, tuple[float, ...], Answer | None]:
    """The vector of a text from a gateway, saved with its proof when `save` is given.

    Raises:
        ConfigError: no gateway or key to be found; says where to get them.
    """
    url, secret = await _find_gateway(folder, gateway, key)
    async with HttpClient() as http:
        name = model or await _default_model(http, url, secret)
        told, vector = await embed_by_gateway(http, url, secret, {"model": name, "input": text}, SystemDice())
        if save is None:
            return told, vector, None
        on_wait("waiting for the receipt's batch on chain")
        answer = await complete_answer(http, url, secret, told, SystemClock())
    write_atomic(save, encode_answer(answer))
    return told, vector, answer


async def _find_gateway(folder: StateFolder, gateway: str | None, key: str | None) -> tuple[str, str]:
    """Base URL without `/v1`, and an API key for it."""
    found = await read_status(folder)
    url = (gateway or found.gateway.url).removesuffix("/").removesuffix("/v1")
    secret = key or found.gateway.api_key
    if not url:
        raise ConfigError(f"no gateway in {folder.root}; start one with `deaios up` or name one with --gateway")
    if not secret:
        raise ConfigError("no API key; pass --key or set DEAIOS_API_KEY")
    return url, secret


async def _default_model(http: HttpClient, url: str, secret: str) -> str:
    models = await http.get_json(f"{url}/v1/models", _Models, {"Authorization": f"Bearer {secret}"})
    if not models.data:
        raise InvalidResponse(f"{url} serves no model")
    return models.data[0].id
