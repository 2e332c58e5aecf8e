"""What a coded matrix is made of: `k` data rows, `n` rows in all, payload length; everything else follows from these.

Row size, depths and number of tests are recomputed here from (k, n, length), never read from a message, so a peer
cannot choose a weaker check or a larger allocation. Knows no bytes of the payload.
"""

from dataclasses import dataclass
from functools import cached_property
from math import comb

from deaios.primitives.errors import Invalid
from deaios.primitives.merkle import tree_depth

LEAF_BYTES = 1024
"""What one storage challenge opens; fixed by version 1."""

ROWS_MAX = (1 << 16) - 1
"""What two bytes count."""

VERIFIABLE_ROWS_MAX = 256
"""Above this the union bound over row sets needs a `y` too large to ride with a row: such codes are sampled."""

POINTS_MAX = 1 << 16
"""Elements of the field: rows and padding of a code have a point each."""

LENGTH_MAX = 64 << 20
"""Largest payload of one matrix; larger files are several matrices under a manifest."""

MATRIX_BYTES_MAX = 1 << 30
"""Largest matrix, all rows together: thin codes have smaller payloads."""

SECURITY_BITS = 192
"""Bits left after the union bound over all sets of k + 1 rows: room for grinding the Fiat-Shamir hash."""

BITS_PER_TEST = 14
"""One random combination misses a fault with probability at most 4 / 2^16 (degree-4 multilinear, Schwartz-Zippel)."""

PARAMETERS_BYTES = 12


class InvalidParameters(Invalid):
    """Row counts or a length outside what version 1 allows."""


@dataclass(frozen=True)
class Profile:
    """How many rows hold the data and how many there are.

    Any `data_rows` of the `rows` rows give the payload back. Up to 256 rows each row can be verified alone. A larger
    code is *sampled*: its rows are bound by the root, but a single one proves nothing about the others, and what was
    decoded is checked by coding it again.
    """

    data_rows: int
    rows: int

    def __post_init__(self) -> None:
        if not 1 <= self.data_rows < self.rows <= ROWS_MAX:
            raise InvalidParameters(
                f"profile ({self.data_rows}, {self.rows}): 1 <= data rows < rows <= {ROWS_MAX} must hold"
            )
        recovery = self.rows - self.data_rows
        data_width, recovery_width = (1 << (count - 1).bit_length() for count in (self.data_rows, recovery))
        points = min(data_width, recovery_width) + (recovery if data_width < recovery_width else self.data_rows)
        if points > POINTS_MAX:
            raise InvalidParameters(
                f"profile ({self.data_rows}, {self.rows}) takes {points} points; the field has {POINTS_MAX}"
            )

    @property
    def is_sampled(self) -> bool:
        """Too many rows to verify one alone."""
        return self.rows > VERIFIABLE_ROWS_MAX

    @cached_property
    def tests(self) -> int:
        """Number of random combinations: ceil((192 + log2 C(n, k + 1)) / 14), in exact integers; none if sampled."""
        if self.is_sampled:
            return 0
        sets = comb(self.rows, self.data_rows + 1)
        bits = SECURITY_BITS + (sets - 1).bit_length()
        return -(-bits // BITS_PER_TEST)

    @property
    def combination_bytes(self) -> int:
        """Size of `y`: one 16-bit symbol per data row and test."""
        return 2 * self.data_rows * self.tests

    @property
    def depth(self) -> int:
        """Length of a row's path to the root."""
        return tree_depth(self.rows)


PROFILE_LOCAL = Profile(2, 3)
"""Three nodes, one may be missing."""

PROFILE_HOT = Profile(32, 64)
"""The default of the storage market."""

PROFILE_ARCHIVE = Profile(64, 96)
"""Cheaper and slower to repair, for staked nodes."""

PROFILE_SAMPLED = Profile(1024, 4096)
"""For light clients of an open network, who take random rows and none of whom is trusted."""


def build_committee_profile(seats: int) -> Profile:
    """The profile of a committee with one row per seat: rows of the honest third are enough.

    With a certificate of two thirds of the seats and at most one third of them dishonest, a third holds its rows.

    Raises:
        InvalidParameters: fewer than 3 seats, or more than rows can be verified.
    """
    if not 3 <= seats <= VERIFIABLE_ROWS_MAX:
        raise InvalidParameters(f"a committee of {seats} seats; 3 to {VERIFIABLE_ROWS_MAX} allowed")
    return Profile(seats // 3, seats)


@dataclass(frozen=True)
class Parameters:
    """Profile and payload length of one matrix."""

    profile: Profile
    length: int

    def __post_init__(self) -> None:
        if not 1 <= self.length <= LENGTH_MAX:
            raise InvalidParameters(f"payload of {self.length} bytes; 1 to {LENGTH_MAX} allowed")
        if self.profile.rows * self.row_bytes > MATRIX_BYTES_MAX:
            raise InvalidParameters(
                f"a matrix of {self.profile.rows} rows of {self.row_bytes} bytes; {MATRIX_BYTES_MAX} bytes allowed"
            )

    @cached_property
    def leaves_per_row(self) -> int:
        """1 KiB leaves in each row."""
        return -(-self.length // (self.profile.data_rows * LEAF_BYTES))

    @property
    def row_bytes(self) -> int:
        """Size of each row, a whole number of leaves."""
        return self.leaves_per_row * LEAF_BYTES

    @property
    def leaf_depth(self) -> int:
        """Length of a leaf's path to its row."""
        return tree_depth(self.leaves_per_row)

    def encode(self) -> bytes:
        """The 12 bytes that the commitment binds: k and n as uint16, length as uint64, big-endian."""
        return self.profile.data_rows.to_bytes(2) + self.profile.rows.to_bytes(2) + self.length.to_bytes(8)


def decode_parameters(data: bytes) -> Parameters:
    """Read what `Parameters.encode` wrote.

    Raises:
        InvalidParameters: another size, or values that version 1 refuses.
    """
    if len(data) != PARAMETERS_BYTES:
        raise InvalidParameters(f"parameters have {len(data)} bytes, {PARAMETERS_BYTES} expected")
    profile = Profile(int.from_bytes(data[:2]), int.from_bytes(data[2:4]))
    return Parameters(profile, int.from_bytes(data[4:]))
