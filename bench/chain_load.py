"""The chain bench's money: one genesis, one token, transfers signed before anything is timed.

Both nodes get the same bytes: the chain id is that of our genesis, and the token has the same address on both, because
it follows from deployer and nonce.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from deaios.chain.genesis import ETHER, Allocation, Genesis
from deaios.ledger.abi import encode_values
from deaios.ledger.artifacts import load_artifact
from deaios.ledger.rlp import encode_integer, encode_rlp
from deaios.ledger.suite import CREDIT_NAME, CREDIT_SYMBOL, CREDIT_VERSION
from deaios.ledger.transactions import DYNAMIC_FEE, Transaction, sign_transaction
from deaios.primitives.hashing import keccak256, sha256
from deaios.primitives.keys import Address, PrivateKey

SENDERS = 10
RECIPIENTS = 1000
OPERATOR = PrivateKey(sha256(b"bench operator"))
USERS = tuple(PrivateKey(sha256(b"bench user %d" % number)) for number in range(SENDERS))
GENESIS = Genesis(
    seed=sha256(b"bench genesis"),
    operator=OPERATOR.address,
    timestamp=1_700_000_000,
    allocations=tuple(Allocation(key.address, 1000 * ETHER) for key in (OPERATOR, *USERS)),
)
CREDIT = Address(keccak256(encode_rlp([OPERATOR.address, encode_integer(0)]))[12:])
SUPPLY = 10**15
MAX_FEE, TIP = 100 * 10**9, 10**6
GAS = 100_000
DEPLOY_GAS = 5_000_000
_RECEIVERS = tuple(Address(sha256(b"bench recipient %d" % number)[:20]) for number in range(RECIPIENTS))


def sign(key: PrivateKey, nonce: int, to: Address | None, data: bytes, gas: int) -> bytes:
    unsigned = Transaction(DYNAMIC_FEE, GENESIS.chain_id, nonce, MAX_FEE, TIP, gas, to, 0, data)
    return sign_transaction(key, unsigned).raw


def build_setup() -> tuple[bytes, ...]:
    """Deploy the token and give every sender its share, all from the operator."""
    artifact = load_artifact("Credit")
    values = (CREDIT_NAME, CREDIT_SYMBOL, CREDIT_VERSION, OPERATOR.address, SUPPLY, Address(bytes(20)), SUPPLY)
    deploy = sign(OPERATOR, 0, None, artifact.creation + encode_values(artifact.abi.constructor, values), DEPLOY_GAS)
    shares = (
        sign(OPERATOR, 1 + place, CREDIT, _encode_transfer(user.address, SUPPLY // (2 * SENDERS)), GAS)
        for place, user in enumerate(USERS)
    )
    return (deploy, *shares)


def _encode_transfer(to: Address, amount: int) -> bytes:
    return keccak256(b"transfer(address,uint256)")[:4] + encode_values(("address", "uint256"), (to, amount))


@dataclass
class Load:
    """Transfers in the order in which they are sent, round after round."""

    per_sender: int
    _sent: int = 0
    _receivers: Iterator[Address] = field(init=False)

    def __post_init__(self) -> None:
        self._receivers = _cycle(_RECEIVERS)

    def sign_round(self) -> tuple[bytes, ...]:
        """The next round's transfers, signed now, outside of what is timed."""
        first, self._sent = self._sent, self._sent + self.per_sender
        return tuple(
            sign(user, nonce, CREDIT, _encode_transfer(next(self._receivers), 1 + nonce), GAS)
            for nonce in range(first, self._sent)
            for user in USERS
        )


def _cycle(values: Sequence[Address]) -> Iterator[Address]:
    while True:
        yield from values
