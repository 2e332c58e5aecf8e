"""A network on a chain that is not ours: which one, as whom, how deep it settles, and the windows that fit its blocks.

What is found out at the first start is noted in `chain.json` before anything is sent, so that a founding that is cut
goes on with the very same values. The deployer's key becomes the operator's: it is copied, encrypted under the
folder's password, because its duties last as long as the network.
"""

from dataclasses import fields, replace
from pathlib import Path

import msgspec

from deaios.ledger.artifacts import NAMES, load_artifact
from deaios.ledger.client.deployment import fetch_network_id
from deaios.ledger.client.fees import GWEI
from deaios.ledger.client.probe import GAS_PER_CREATION_BYTE, ChainTraits, probe_chain
from deaios.ledger.client.rpc import Rpc
from deaios.ledger.client.sender import RefusedOutOfGasMoney
from deaios.ledger.descriptor import encode_descriptor, sign_descriptor
from deaios.ledger.settings import CONFIRMATIONS_MAX, LOCAL, NetworkSettings
from deaios.node.config import ChainConfig
from deaios.node.folder import StateFolder
from deaios.node.keyfile import KEYFILE_BYTES_MAX, decode_keyfile
from deaios.node.keystore import Keystore
from deaios.node.member import build_fees
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import ConfigError, Invalid
from deaios.primitives.hashing import tagged_sha256
from deaios.primitives.keys import PrivateKey
from deaios.runtime.disk import write_atomic

OPERATOR = "operator"
"""Name of the operator's role and key in the folder of a network on a foreign chain."""
CONFIRMATIONS = 4
"""Unless the operator says otherwise."""
SALT_TAG = "deaios/suite-salt/1"
NAME_CHARACTERS_MAX = 64
TIGHT_WINDOWS = (
    "beacon_commit_s",
    "beacon_reveal_s",
    "verdict_commit_s",
    "verdict_reveal_s",
    "appeal_s",
    "claim_challenge_s",
    "da_answer_s",
)
"""Windows within which somebody must see a settled block and answer it."""
WINDOW_LAGS = 3
"""Such a window lasts at least this many times what seeing and answering takes."""
LAG_BLOCKS = 2
"""Beyond the confirmations: one for the answer, one for luck."""
GRANT_GAS = 5_000_000
"""Units of gas whose price a role of this folder gets to begin with, and is topped up to."""
FOUNDING_GAS = 8_000_000
"""Units for everything in founding but the contracts' creation."""


class ForeignChain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The chain of a network founded here, as `chain.json` has it.

    Attributes:
        url: Ethereum JSON-RPC.
        confirmations: blocks that must hold something before it counts as settled.
        salt: names the contracts' addresses together with the operator's address; hex.
        network_id: hash of the chain's genesis block; hex.
        first_block: height at the first start.
        first_nonce: the operator's nonce at the first start.
        block_s: whole seconds between blocks, measured at the first start.
        gas_grant_wei: what a role of this folder gets to begin with.
    """

    url: str
    confirmations: int
    salt: str
    chain_id: int
    network_id: str
    first_block: int
    first_nonce: int
    block_s: int
    gas_grant_wei: int


class Wanted(msgspec.Struct, frozen=True):
    """What the command line asks for.

    Attributes:
        deployer: a keystore of version 3; None where the folder has the key already.
        password: opens it.
        name: tells networks of one operator on one chain apart.
    """

    url: str
    deployer: Path | None = None
    password: bytes = b""
    confirmations: int = CONFIRMATIONS
    name: str = ""


def load_foreign(folder: StateFolder) -> ForeignChain | None:
    """The foreign chain that a folder's network was founded on; None where it has its own, or there is no network.

    Raises:
        ConfigError: the note is damaged.
    """
    if not folder.chain_path.exists():
        return None
    try:
        return msgspec.json.decode(folder.chain_path.read_bytes(), type=ForeignChain)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ConfigError(f"{folder.chain_path} is damaged: {error}; restore it") from error


async def choose_foreign(folder: StateFolder, keystore: Keystore, wanted: Wanted, config: ChainConfig) -> ForeignChain:
    """Look at a chain and take the operator's key; nothing is sent.

    Raises:
        ConfigError: the folder's network is another one, or the key is missing; says what to do.
        InvalidChain: the chain cannot carry a network; says why.
        RefusedOutOfGasMoney: the deployer cannot pay for founding.
    """
    known = load_foreign(folder)
    if known is None and folder.descriptor_path.exists():
        raise ConfigError(f"the network in {folder.root} has a chain of its own; use another folder with --dir")
    if not 0 < wanted.confirmations <= CONFIRMATIONS_MAX or len(wanted.name) > NAME_CHARACTERS_MAX:
        raise ConfigError(
            f"--confirmations is 1 to {CONFIRMATIONS_MAX}, --network-name at most {NAME_CHARACTERS_MAX} characters"
        )
    key = _take_key(keystore, wanted)
    confirmations = wanted.confirmations if known is None else known.confirmations
    async with Rpc(wanted.url, confirmations=confirmations) as rpc:
        traits = await probe_chain(rpc)
        network_id = encode_hex(await fetch_network_id(rpc))
        if known is not None:
            return _move(folder, key, known, wanted.url, traits.chain_id, network_id)
        fee, _ = build_fees(config).price(traits.base_fee, GWEI)
        needed, balance = _count_founding_gas() * fee, await rpc.get_balance(key.address)
        if balance < needed:
            raise RefusedOutOfGasMoney(key.address, balance, needed)
        chain = ForeignChain(
            url=wanted.url,
            confirmations=confirmations,
            salt=encode_hex(tagged_sha256(SALT_TAG, wanted.name.encode())),
            chain_id=traits.chain_id,
            network_id=network_id,
            first_block=traits.height,
            first_nonce=await rpc.get_nonce(key.address),
            block_s=_round_block_time(traits),
            gas_grant_wei=GRANT_GAS * fee,
        )
    fit_windows(chain)  # said now, not after money was spent
    _save(folder, chain)
    return chain


def fit_windows(chain: ForeignChain) -> NetworkSettings:
    """Windows of a local network, stretched where the chain's blocks leave too little time to see and to answer.

    Raises:
        ConfigError: so many confirmations of so slow blocks that the windows contradict each other.
    """
    least = WINDOW_LAGS * (chain.confirmations + LAG_BLOCKS) * chain.block_s
    stretched = {name: max(getattr(LOCAL, name), least) for name in TIGHT_WINDOWS}
    assert stretched.keys() <= {field.name for field in fields(NetworkSettings)}
    try:
        return replace(LOCAL, **stretched, faucet_native=chain.gas_grant_wei)
    except Invalid as error:
        raise ConfigError(
            f"{chain.confirmations} confirmations of {chain.block_s} s leave no consistent windows: {error}; ask for "
            "fewer with --confirmations"
        ) from error


def _take_key(keystore: Keystore, wanted: Wanted) -> PrivateKey:
    if wanted.deployer is None:
        if OPERATOR not in keystore.names():
            raise ConfigError("a network on a foreign chain needs a key that pays for it: --deployer KEYSTORE")
        return keystore.open_key(OPERATOR)
    try:
        with wanted.deployer.open("rb") as file:
            key = decode_keyfile(file.read(KEYFILE_BYTES_MAX + 1), wanted.password)
    except (OSError, Invalid) as error:
        raise ConfigError(f"--deployer {wanted.deployer} cannot be opened: {error}") from error
    keystore.import_key(OPERATOR, key)
    return key


def _move(
    folder: StateFolder, key: PrivateKey, known: ForeignChain, url: str, chain_id: int, network_id: str
) -> ForeignChain:
    """The same chain, perhaps by another URL: then descriptor and note are written anew."""
    if (chain_id, network_id) != (known.chain_id, known.network_id):
        raise ConfigError(
            f"{url} is chain {chain_id} with genesis {network_id}, the network in {folder.root} is on chain "
            f"{known.chain_id} with genesis {known.network_id}; use another folder with --dir"
        )
    if url == known.url:
        return known
    moved = msgspec.structs.replace(known, url=url)
    if folder.descriptor_path.exists():
        descriptor = replace(folder.load_descriptor(), rpc_urls=(url,))
        folder.save_descriptor(encode_descriptor(descriptor, sign_descriptor(key, descriptor)))
    _save(folder, moved)
    return moved


def _count_founding_gas() -> int:
    creation = sum(len(load_artifact(name).creation) for name in NAMES)
    return FOUNDING_GAS + GAS_PER_CREATION_BYTE * creation


def _round_block_time(traits: ChainTraits) -> int:
    return max(1, round(traits.block_s))


def _save(folder: StateFolder, chain: ForeignChain) -> None:
    write_atomic(folder.chain_path, msgspec.json.format(msgspec.json.encode(chain)))
