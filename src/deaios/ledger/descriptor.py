"""The network descriptor: one signed JSON file that is all a second machine needs to join a network.

The operator signs tagged_sha256("deaios/descriptor/1", canonical JSON of the descriptor). A descriptor has one byte
form; a second spelling, an unknown version or key, or a signature that is not the named operator's is refused. Keys of
a chain that takes blocks back are left out where they say what an embedded chain is. Whether the operator is the one
the reader meant is for the reader to say.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import cast
from urllib.parse import urlsplit

from deaios.ledger.further import FurtherAddresses
from deaios.ledger.settings import CONFIRMATIONS_MAX, NUMBER_MAX, NetworkSettings, decode_settings, encode_settings
from deaios.ledger.suite import SuiteAddresses
from deaios.primitives.encoding import Json, decode_hex, encode_canonical_json, encode_hex
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import tagged_sha256
from deaios.primitives.keys import (
    SIGNATURE_SIZE,
    Address,
    InvalidSignature,
    PrivateKey,
    parse_address,
    recover_address,
)

VERSION = 1
TAG = "deaios/descriptor/1"
DESCRIPTOR_BYTES_MAX = 64 << 10
URLS_MAX = 32
URL_CHARACTERS_MAX = 512
TEXT_CHARACTERS_MAX = 64
CHAIN_ID_MAX = (1 << 53) - 1
"""As wallets in JavaScript allow."""
DECIMALS_MAX = 36
NETWORKS_MAX = 32
SERVICES = ("payments", "compute", "storage", "da", "audit")
"""What can be bound to a further network; what is bound to none is on the root."""
NETWORK_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
_SCHEMES = ("http", "https")


class InvalidDescriptor(Invalid):
    """Bytes that are not a network descriptor of this version, in its one form, signed by its operator."""


@dataclass(frozen=True, slots=True)
class Token:
    """The payment token."""

    address: Address
    name: str
    symbol: str
    version: str
    decimals: int


@dataclass(frozen=True, slots=True)
class FurtherNetwork:
    """A network behind the same stake.

    Attributes:
        name: for people, unique in a descriptor.
        id: what it is called on the root and in every signature.
        rpc_urls: Ethereum JSON-RPC of its chain, best first.
        contracts: where they are.
        services: those of `SERVICES` that are bound to it.
        confirmations: blocks that must hold something before validators believe it.
        faucet_url: gives its native coin, if anything does.
    """

    name: str
    id: bytes
    chain_id: int
    rpc_urls: tuple[str, ...]
    contracts: FurtherAddresses
    services: tuple[str, ...] = ()
    confirmations: int = 1
    faucet_url: str | None = None

    def __post_init__(self) -> None:
        if not NETWORK_NAME.fullmatch(self.name):
            raise InvalidDescriptor(f"network name {self.name[:80]!r} is not {NETWORK_NAME.pattern}")
        if len(self.id) != 32 or not 0 < self.chain_id <= CHAIN_ID_MAX:
            raise InvalidDescriptor(f"network {self.name} has no id of 32 bytes, or chain id {self.chain_id}")
        if not 0 < self.confirmations <= CONFIRMATIONS_MAX:
            raise InvalidDescriptor(f"{self.confirmations} confirmations, 1 to {CONFIRMATIONS_MAX} allowed")
        if len(set(self.services)) != len(self.services) or not set(self.services) <= set(SERVICES):
            raise InvalidDescriptor(f"services {', '.join(self.services)}; known are {', '.join(SERVICES)}, once each")
        if not 0 < len(self.rpc_urls) <= URLS_MAX:
            raise InvalidDescriptor(f"network {self.name} names {len(self.rpc_urls)} RPC URLs, 1 to {URLS_MAX} allowed")
        for url in (*self.rpc_urls, *(() if self.faucet_url is None else (self.faucet_url,))):
            _validate_url(url)


@dataclass(frozen=True, slots=True)
class NetworkDescriptor:
    """A network by name of everything in it.

    Attributes:
        network_id: hash of the genesis block; every signature that is not EIP-712 carries it.
        rpc_urls: Ethereum JSON-RPC of the chain, best first.
        operator: who signs this file, and on the embedded engine who orders the blocks.
        default_model_record_id: what an answer is bought from when nothing else is asked for.
        windows: every window, delay and amount.
        confirmations: blocks that must hold something, its own included, before anybody acts on it for good.
        first_block: before it the chain holds nothing of this network.
        sponsor_url: lends newcomers their first stake, if anybody does.
    """

    network_id: bytes
    chain_id: int
    rpc_urls: tuple[str, ...]
    operator: Address
    contracts: SuiteAddresses
    token: Token
    windows: NetworkSettings
    default_model_record_id: bytes
    faucet_url: str | None = None
    gateways: tuple[str, ...] = ()
    storage_urls: tuple[str, ...] = ()
    confirmations: int = 1
    first_block: int = 0
    networks: tuple[FurtherNetwork, ...] = ()
    sponsor_url: str | None = None
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise InvalidDescriptor(f"descriptor has version {self.version!r}, this program reads {VERSION}")
        if len(self.network_id) != 32 or len(self.default_model_record_id) != 32:
            raise InvalidDescriptor("network id and model record id are 32 bytes each")
        if not 0 < self.chain_id <= CHAIN_ID_MAX:
            raise InvalidDescriptor(f"chain id is {self.chain_id}, 1 to {CHAIN_ID_MAX} allowed")
        if not self.rpc_urls:
            raise InvalidDescriptor("descriptor names no RPC URL")
        if not 0 < self.confirmations <= CONFIRMATIONS_MAX:
            raise InvalidDescriptor(f"{self.confirmations} confirmations, 1 to {CONFIRMATIONS_MAX} allowed")
        if not 0 <= self.first_block <= NUMBER_MAX:
            raise InvalidDescriptor(f"first block is {self.first_block}, 0 to {NUMBER_MAX} allowed")
        if not 0 <= self.token.decimals <= DECIMALS_MAX:
            raise InvalidDescriptor(f"token has {self.token.decimals} decimals, at most {DECIMALS_MAX} allowed")
        for text in (self.token.name, self.token.symbol, self.token.version):
            if not 0 < len(text) <= TEXT_CHARACTERS_MAX or not text.isprintable():
                raise InvalidDescriptor(f"token text {text!r} is not 1 to {TEXT_CHARACTERS_MAX} printable characters")
        self._validate_networks()
        for urls in (
            self.rpc_urls,
            self.gateways,
            self.storage_urls,
            () if self.faucet_url is None else (self.faucet_url,),
            () if self.sponsor_url is None else (self.sponsor_url,),
        ):
            if len(urls) > URLS_MAX:
                raise InvalidDescriptor(f"{len(urls)} URLs exceed {URLS_MAX}")
            for url in urls:
                _validate_url(url)

    def _validate_networks(self) -> None:
        if len(self.networks) > NETWORKS_MAX:
            raise InvalidDescriptor(f"{len(self.networks)} further networks exceed {NETWORKS_MAX}")
        for what, items in (
            ("name", [network.name for network in self.networks]),
            ("id", [network.id for network in self.networks]),
            ("service", [service for network in self.networks for service in network.services]),
        ):
            if len(set(items)) != len(items):
                raise InvalidDescriptor(f"a {what} belongs to two further networks")

    def get_network(self, name: str) -> FurtherNetwork | None:
        """A further network by its name."""
        return next((network for network in self.networks if network.name == name), None)


def _validate_url(url: str) -> None:
    if len(url) > URL_CHARACTERS_MAX or not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidDescriptor(f"URL is not at most {URL_CHARACTERS_MAX} ASCII characters: {url[:80]!r}")
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError as error:
        raise InvalidDescriptor(f"not a URL: {url[:80]!r}") from error
    if parts.scheme not in _SCHEMES or not parts.hostname or not port_is_valid or parts.username is not None:
        raise InvalidDescriptor(f"not an http or https URL of a host: {url[:80]!r}")


def encode_fields(descriptor: NetworkDescriptor) -> dict[str, Json]:
    """The descriptor as a JSON object: what is signed, and what `--json` output shows."""
    token = descriptor.token
    return {
        "version": descriptor.version,
        "networkId": encode_hex(descriptor.network_id),
        "chainId": descriptor.chain_id,
        "rpcUrls": list(descriptor.rpc_urls),
        "operator": encode_hex(descriptor.operator),
        "contracts": {name: encode_hex(address) for name, address in descriptor.contracts.by_field().items()},
        "token": {
            "address": encode_hex(token.address),
            "name": token.name,
            "symbol": token.symbol,
            "version": token.version,
            "decimals": token.decimals,
        },
        "windows": encode_settings(descriptor.windows),
        "defaultModelRecordId": encode_hex(descriptor.default_model_record_id),
        "faucetUrl": descriptor.faucet_url,
        "gateways": list(descriptor.gateways),
        "storageUrls": list(descriptor.storage_urls),
        "networks": [_encode_network(network) for network in descriptor.networks],
        **{key: value for key, value in _list_optional(descriptor) if value != _OPTIONAL[key]},
    }


def _encode_network(network: FurtherNetwork) -> Json:
    return {
        "name": network.name,
        "id": encode_hex(network.id),
        "chainId": network.chain_id,
        "rpcUrls": list(network.rpc_urls),
        "contracts": {name: encode_hex(address) for name, address in network.contracts.by_field().items()},
        "services": list(network.services),
        "confirmations": network.confirmations,
        "faucetUrl": network.faucet_url,
    }


def _list_optional(descriptor: NetworkDescriptor) -> tuple[tuple[str, int | str | None], ...]:
    return (
        ("confirmations", descriptor.confirmations),
        ("firstBlock", descriptor.first_block),
        ("sponsorUrl", descriptor.sponsor_url),
    )


def decode_fields(value: object) -> NetworkDescriptor:
    """Read a descriptor from parsed JSON.

    Raises:
        InvalidDescriptor: anything missing, unknown, out of range or of a wrong type.
    """
    present = value if isinstance(value, dict) else {}
    items = {**_OPTIONAL, **_read_object(value, (*_KEYS, *(key for key in _OPTIONAL if key in present)), "descriptor")}
    token = _read_object(items["token"], ("address", "name", "symbol", "version", "decimals"), "token")
    names = tuple(field.name for field in fields(SuiteAddresses))
    contracts = _read_object(items["contracts"], names, "contracts")
    faucet_url, sponsor_url = items["faucetUrl"], items["sponsorUrl"]
    try:
        return NetworkDescriptor(
            version=_read_int(items["version"], "version"),
            network_id=decode_hex(_read_text(items["networkId"]), 32),
            chain_id=_read_int(items["chainId"], "chainId"),
            rpc_urls=_read_texts(items["rpcUrls"], "rpcUrls"),
            operator=parse_address(_read_text(items["operator"])),
            contracts=SuiteAddresses(*(parse_address(_read_text(contracts[name])) for name in names)),
            token=Token(
                parse_address(_read_text(token["address"])),
                _read_text(token["name"]),
                _read_text(token["symbol"]),
                _read_text(token["version"]),
                _read_int(token["decimals"], "decimals"),
            ),
            windows=decode_settings(items["windows"]),
            default_model_record_id=decode_hex(_read_text(items["defaultModelRecordId"]), 32),
            faucet_url=None if faucet_url is None else _read_text(faucet_url),
            gateways=_read_texts(items["gateways"], "gateways"),
            storage_urls=_read_texts(items["storageUrls"], "storageUrls"),
            confirmations=_read_int(items["confirmations"], "confirmations"),
            first_block=_read_int(items["firstBlock"], "firstBlock"),
            sponsor_url=None if sponsor_url is None else _read_text(sponsor_url),
            networks=tuple(_decode_network(item) for item in _read_list(items["networks"], NETWORKS_MAX, "networks")),
        )
    except InvalidDescriptor:
        raise
    except Invalid as error:
        raise InvalidDescriptor(f"descriptor: {error}") from error


def _decode_network(value: object) -> FurtherNetwork:
    items = _read_object(value, _NETWORK_KEYS, "network")
    names = tuple(field.name for field in fields(FurtherAddresses))
    contracts = _read_object(items["contracts"], names, "contracts")
    faucet_url = items["faucetUrl"]
    return FurtherNetwork(
        name=_read_text(items["name"]),
        id=decode_hex(_read_text(items["id"]), 32),
        chain_id=_read_int(items["chainId"], "chainId"),
        rpc_urls=_read_texts(items["rpcUrls"], "rpcUrls"),
        contracts=FurtherAddresses(*(parse_address(_read_text(contracts[name])) for name in names)),
        services=_read_texts(items["services"], "services"),
        confirmations=_read_int(items["confirmations"], "confirmations"),
        faucet_url=None if faucet_url is None else _read_text(faucet_url),
    )


_KEYS = (
    "version",
    "networkId",
    "chainId",
    "rpcUrls",
    "operator",
    "contracts",
    "token",
    "windows",
    "defaultModelRecordId",
    "faucetUrl",
    "gateways",
    "storageUrls",
    "networks",
)
_NETWORK_KEYS = ("name", "id", "chainId", "rpcUrls", "contracts", "services", "confirmations", "faucetUrl")

_OPTIONAL: Mapping[str, int | None] = MappingProxyType({"confirmations": 1, "firstBlock": 0, "sponsorUrl": None})
"""With what they are where they are left out."""


def compute_descriptor_digest(descriptor: NetworkDescriptor) -> bytes:
    """The 32 bytes that the operator signs."""
    return tagged_sha256(TAG, encode_canonical_json(encode_fields(descriptor)))


def sign_descriptor(key: PrivateKey, descriptor: NetworkDescriptor) -> bytes:
    """Sign a descriptor as its operator; 65 bytes.

    Raises:
        InvalidDescriptor: the key is not the named operator's.
    """
    if key.address != descriptor.operator:
        raise InvalidDescriptor(
            f"descriptor names operator {encode_hex(descriptor.operator)}, the key is {encode_hex(key.address)}'s"
        )
    return key.sign_digest(compute_descriptor_digest(descriptor))


def verify_descriptor(descriptor: NetworkDescriptor, signature: bytes) -> bool:
    """Did the operator that the descriptor names sign it?"""
    try:
        signer = recover_address(compute_descriptor_digest(descriptor), signature)
    except InvalidSignature:
        return False
    return signer == descriptor.operator


def encode_descriptor(descriptor: NetworkDescriptor, signature: bytes) -> bytes:
    """The file's bytes."""
    document: Json = {"descriptor": encode_fields(descriptor), "signature": encode_hex(signature)}
    return encode_canonical_json(document) + b"\n"


def decode_descriptor(data: bytes) -> NetworkDescriptor:
    """Read a descriptor file and check its signature.

    Raises:
        InvalidDescriptor: too long, not the one form of a descriptor, or not signed by its operator.
    """
    if len(data) > DESCRIPTOR_BYTES_MAX:
        raise InvalidDescriptor(f"descriptor has {len(data)} bytes, at most {DESCRIPTOR_BYTES_MAX} allowed")
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidDescriptor(f"descriptor is not JSON: {error}") from error
    items = _read_object(value, ("descriptor", "signature"), "file")
    try:
        signature = decode_hex(_read_text(items["signature"]), SIGNATURE_SIZE)
    except Invalid as error:
        raise InvalidDescriptor(f"signature: {error}") from error
    descriptor = decode_fields(items["descriptor"])
    if encode_descriptor(descriptor, signature).rstrip(b"\n") != data.rstrip(b"\n"):
        raise InvalidDescriptor("descriptor is not in its canonical form (sorted keys, no spaces, no repeated key)")
    if not verify_descriptor(descriptor, signature):
        raise InvalidDescriptor(f"descriptor is not signed by its operator {encode_hex(descriptor.operator)}")
    return descriptor


def _read_object(value: object, keys: tuple[str, ...], where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise InvalidDescriptor(f"{where} is not a JSON object")
    if value.keys() != set(keys):
        missing, unknown = sorted(set(keys) - value.keys()), sorted(str(key) for key in value.keys() - set(keys))
        raise InvalidDescriptor(f"{where}: missing keys {missing}, unknown keys {unknown}")
    return cast("Mapping[str, object]", value)  # JSON objects have text keys


def _read_int(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidDescriptor(f"{where} is not an integer: {str(value)[:80]!r}")
    return value


def _read_text(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidDescriptor(f"text expected, found {str(value)[:80]!r}")
    return value


def _read_list(value: object, length_max: int, where: str) -> list[object]:
    if not isinstance(value, list) or len(value) > length_max:
        raise InvalidDescriptor(f"{where} is not a list of at most {length_max}")
    return value


def _read_texts(value: object, where: str) -> tuple[str, ...]:
    return tuple(_read_text(item) for item in _read_list(value, URLS_MAX, where))
