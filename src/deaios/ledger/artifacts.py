"""Compiled contracts as the wheel ships them: ABI, creation code, runtime code.

`tools/compile-contracts` writes them and checks them in CI; nothing here compiles. The contracts have no immutables,
so the code at an address is exactly the artifact's runtime code.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from deaios.ledger.abi import Abi, parse_abi
from deaios.primitives.encoding import decode_hex
from deaios.primitives.errors import Invalid

NAMES = (
    "Credit",
    "IdentityRegistry",
    "Catalogue",
    "Receipts",
    "Channels",
    "SharedStaking",
    "Beacon",
    "Disputes",
    "Forks",
    "DataAvailability",
    "Networks",
    "Equivocation",
    "Outbox",
    "Inbox",
    "Bridge",
    "Sponsorship",
)
"""Every contract of the suite, in order of deployment."""
FURTHER_NAMES = ("Credit", "ValsetMirror", "Outbox", "Inbox", "Bridge", "Channels")
"""Every contract of a further network, in order of deployment."""


class InvalidArtifact(Invalid):
    """A shipped artifact is missing or damaged: the installation is not whole."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One compiled contract.

    Attributes:
        creation: code that deploys it; encoded constructor arguments follow it.
        runtime: code that lies at its address.
    """

    name: str
    abi: Abi
    creation: bytes
    runtime: bytes


@lru_cache(maxsize=len(NAMES) + len(FURTHER_NAMES))
def load_artifact(name: str) -> Artifact:
    """One contract of `NAMES` or `FURTHER_NAMES`.

    Raises:
        InvalidArtifact: it is not installed, or damaged.
    """
    path = resources.files("deaios.ledger") / "artifacts" / f"{name}.json"
    try:
        document = json.loads(path.read_bytes())
        creation, size = decode_hex(document["bytecode"]), document["runtimeSize"]
        abi = parse_abi(document["abi"])
        found = document["contract"]
    except (OSError, ValueError, KeyError, TypeError, Invalid) as error:
        raise InvalidArtifact(f"artifact {name} cannot be read: {error!r}; install the package again") from error
    if found != name or not isinstance(size, int) or not 0 < size < len(creation):
        raise InvalidArtifact(f"artifact {name} names contract {found!r} of {size!r} bytes; install the package again")
    return Artifact(name, abi, creation, creation[-size:])
