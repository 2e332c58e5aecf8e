"""Joining a network by its descriptor: a file or a URL is all that a second machine needs."""

import contextlib
from pathlib import Path

import msgspec

from deaios.ledger.client.contracts import Contracts
from deaios.ledger.client.deployment import fetch_network_id, verify_suite
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.descriptor import DESCRIPTOR_BYTES_MAX, NetworkDescriptor, decode_descriptor
from deaios.node.folder import StateFolder
from deaios.node.further import validate_further
from deaios.node.keystore import Keystore
from deaios.node.member import open_member, open_rpc
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import ConfigError, Invalid, Unavailable
from deaios.runtime.client import HttpClient, RefusedByPeer
from deaios.runtime.dice import SystemDice

USER = "user"


class InvalidNetwork(Invalid):
    """A descriptor and a chain that do not belong together."""


class Joined(msgspec.Struct, frozen=True):
    """What `join` reports."""

    network: str
    operator: str
    address: str
    credit: int


async def read_descriptor(http: HttpClient, source: str) -> bytes:
    """A descriptor's bytes from a file or a URL.

    Raises:
        ConfigError: no such file.
    """
    if source.startswith(("http://", "https://")):
        return await http.get_bytes(source, DESCRIPTOR_BYTES_MAX)
    return _read_file(Path(source))


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(DESCRIPTOR_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"cannot read descriptor {path}: {error}") from error


async def validate_network(descriptor: NetworkDescriptor, rpc: Rpc) -> None:
    """Is the chain behind this URL the one described, with the very contracts?

    Raises:
        InvalidNetwork: another genesis or chain id; names both.
    """
    network_id, chain_id = await fetch_network_id(rpc), await rpc.chain_id()
    if network_id != descriptor.network_id or chain_id != descriptor.chain_id:
        raise InvalidNetwork(
            f"{rpc.url} is network {encode_hex(network_id)} with chain id {chain_id}, the descriptor says "
            f"{encode_hex(descriptor.network_id)} with chain id {descriptor.chain_id}"
        )
    await verify_suite(rpc, descriptor.contracts, descriptor.windows)
    registry = Contracts(rpc, descriptor.contracts).networks
    for network in descriptor.networks:
        with contextlib.suppress(Unavailable):  # one that stands still keeps nobody from joining the others
            await validate_further(descriptor, network, registry)


async def join_network(folder: StateFolder, source: str, password: str | None = None) -> Joined:
    """Check a descriptor against its chain, keep it, make a key and fund it.

    Raises:
        ConfigError: the folder belongs to another network already.
        InvalidDescriptor, InvalidNetwork: the descriptor does not hold.
    """
    async with HttpClient() as http:
        data = await read_descriptor(http, source)
    descriptor = decode_descriptor(data)
    if folder.descriptor_path.exists() and folder.load_descriptor().network_id != descriptor.network_id:
        raise ConfigError(f"{folder.root} belongs to another network; use another folder with --dir")
    async with open_rpc(descriptor) as rpc:
        await validate_network(descriptor, rpc)
    folder.save_descriptor(data)
    key = Keystore(folder.keys, SystemDice(), password).open_key(USER)
    async with open_member(descriptor, key) as member:
        with contextlib.suppress(RefusedByPeer):  # a faucet may keep to its own: whoever has no money can still look on
            await member.ensure_funded(1 if descriptor.faucet_url else 0)
        credit = await member.contracts.credit.balance_of(member.address)
    return Joined(encode_hex(descriptor.network_id), encode_hex(descriptor.operator), encode_hex(key.address), credit)
