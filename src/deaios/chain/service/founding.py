"""The first block of a file: written where there is none yet, compared where there is."""

from pathlib import Path

from deaios.chain.blocks import header_record
from deaios.chain.genesis import Genesis, build_genesis_changes, build_genesis_commitment, build_genesis_header
from deaios.chain.store import ChainStore
from deaios.ledger.eip712 import hash_struct
from deaios.primitives.errors import ConfigError


def settle_genesis(store: ChainStore, wanted: Genesis | None, path: Path) -> Genesis:
    """The genesis of the file; a new file is given `wanted`.

    Raises:
        ConfigError: none is wanted for a new file, or another for one that has its own.
    """
    kept = store.load_genesis()
    if kept is None:
        if wanted is None:
            raise ConfigError(f"{path} holds no chain yet; give a genesis")
        changes = build_genesis_changes(wanted)
        commitment = build_genesis_commitment(changes)
        header = build_genesis_header(wanted, commitment)
        store.create(wanted, header, changes, commitment, hash_struct(header_record(header.hash, header)))
        return wanted
    if wanted is not None and wanted != kept:
        raise ConfigError(f"{path} holds a chain with another genesis; use another --dir, or start it as it was made")
    return kept
