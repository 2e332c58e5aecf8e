"""Products of packed symbols and constants of the field, in the instructions of a tier.

Multiplying by a constant is linear over bits, so 64 bytes of symbols (32 low bytes, 32 high bytes) take a few table
instructions. The tables of a constant have 128 bytes in every tier. Knows bit products, not the field.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from deaios.coding.kernels.assembly import Assembly

TABLE_BYTES = 128
CHUNK_BYTES = 64

Value = TypeVar("Value")
"""Names of the vectors that hold one chunk."""


class Multiplier(ABC, Generic[Value]):
    """Writes arithmetic on chunks; one per tier.

    Attributes:
        declarations: what the code needs beside its functions.
    """

    declarations: str

    @abstractmethod
    def build_tables(self, products: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """Tables of constants, (..., 128) uint8, from their products with the 16 single bits, (..., 16) uint16."""

    @abstractmethod
    def load(self, code: Assembly, pointer: str) -> Value:
        """The chunk at a pointer."""

    @abstractmethod
    def store(self, code: Assembly, value: Value, pointer: str) -> None:
        """Write a chunk at a pointer."""

    @abstractmethod
    def add(self, code: Assembly, left: Value, right: Value) -> Value:
        """Sum of two chunks."""

    @abstractmethod
    def load_tables(self, code: Assembly, pointer: str) -> tuple[str, ...]:
        """The vectors of a constant's tables."""

    @abstractmethod
    def split(self, code: Assembly, value: Value) -> tuple[str, ...]:
        """What all products of a chunk share."""

    @abstractmethod
    def multiply(self, code: Assembly, parts: Sequence[str], tables: Sequence[str]) -> Value:
        """The product of a chunk that was split and a constant."""


WIDE = "<64 x i8>"
_AFFINE = "@llvm.x86.vgf2p8affineqb.512"


class GaloisMultiplier(Multiplier[str]):
    """Two affine maps of 64 bytes: each 64-bit lane has a matrix of 8 by 8 bits (AVX-512 and GFNI)."""

    declarations = f"declare {WIDE} {_AFFINE}({WIDE}, {WIDE}, i8)\n"
    chunks = 4
    """Chunks that are worked on side by side."""

    constants = 5
    """Constants whose products are summed side by side."""

    def build_tables(self, products: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """As the class says: rows of a matrix lie from the highest output bit to the lowest."""
        lead = products.shape[:-1]
        bits = np.unpackbits(products.astype("<u2").view(np.uint8).reshape(*lead, 16, 2), axis=-1, bitorder="little")
        columns = np.packbits(np.swapaxes(bits, -1, -2), axis=-1, bitorder="little")  # (..., output bit, input byte)
        tables = np.empty((*lead, 2, 2, 4, 8), np.uint8)
        for output in (0, 1):
            matrix = columns[..., 8 * output : 8 * output + 8, :][..., ::-1, :]
            tables[..., 0, output, :, :] = matrix[..., output][..., None, :]
            tables[..., 1, output, :, :] = matrix[..., 1 - output][..., None, :]
        return tables.reshape(*lead, TABLE_BYTES)

    def zero(self) -> str:
        """A chunk of zeros."""
        return "zeroinitializer"

    def load(self, code: Assembly, pointer: str) -> str:
        """As the base class says."""
        return code.load(WIDE, pointer)

    def store(self, code: Assembly, value: str, pointer: str) -> None:
        """As the base class says."""
        code.store(WIDE, value, pointer)

    def add(self, code: Assembly, left: str, right: str) -> str:
        """As the base class says."""
        return code.value(f"xor {WIDE} {left}, {right}")

    def load_tables(self, code: Assembly, pointer: str) -> tuple[str, ...]:
        """As the base class says."""
        return code.load(WIDE, pointer), code.load(WIDE, pointer, CHUNK_BYTES)

    def split(self, code: Assembly, value: str) -> tuple[str, ...]:
        """As the base class says."""
        swapped = code.shuffle(WIDE, value, "poison", [(place + 32) % 64 for place in range(64)])
        return value, swapped

    def multiply(self, code: Assembly, parts: Sequence[str], tables: Sequence[str]) -> str:
        """As the base class says."""
        same, other = (
            code.value(f"call {WIDE} {_AFFINE}({WIDE} {part}, {WIDE} {table}, i8 0)")
            for part, table in zip(parts, tables, strict=True)
        )
        return code.value(f"xor {WIDE} {same}, {other}")


_HALF = "<32 x i8>"
_LOOK_UP = "@llvm.x86.avx2.pshuf.b"


class ShuffleMultiplier(Multiplier[tuple[str, str]]):
    """Eight look-ups of half bytes in tables of 16 (AVX2); low and high bytes are a vector each."""

    declarations = f"declare {_HALF} {_LOOK_UP}({_HALF}, {_HALF})\n"

    def build_tables(self, products: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """Products with every value of every half byte: of all low bytes, then of all high ones."""
        lead = products.shape[:-1]
        bits = products.reshape(*lead, 4, 4)
        whole = np.zeros((*lead, 4, 16), np.uint16)
        for bit in range(4):
            width = 1 << bit
            whole[..., width : 2 * width] = whole[..., :width] ^ bits[..., bit : bit + 1]
        tables = np.stack((whole & 0xFF, whole >> 8), axis=-3).astype(np.uint8)
        return tables.reshape(*lead, TABLE_BYTES)

    def load(self, code: Assembly, pointer: str) -> tuple[str, str]:
        """As the base class says."""
        return code.load(_HALF, pointer), code.load(_HALF, pointer, 32)

    def store(self, code: Assembly, value: tuple[str, str], pointer: str) -> None:
        """As the base class says."""
        code.store(_HALF, value[0], pointer)
        code.store(_HALF, value[1], pointer, 32)

    def add(self, code: Assembly, left: tuple[str, str], right: tuple[str, str]) -> tuple[str, str]:
        """As the base class says."""
        low, high = (code.value(f"xor {_HALF} {one}, {two}") for one, two in zip(left, right, strict=True))
        return low, high

    def load_tables(self, code: Assembly, pointer: str) -> tuple[str, ...]:
        """As the base class says."""
        return tuple(self._load_table(code, pointer, number) for number in range(8))

    def _load_table(self, code: Assembly, pointer: str, number: int) -> str:
        table = code.load("<16 x i8>", pointer, 16 * number)
        return code.shuffle("<16 x i8>", table, "poison", [place % 16 for place in range(32)])

    def split(self, code: Assembly, value: tuple[str, str]) -> tuple[str, ...]:
        """As the base class says."""
        fifteens = ", ".join(["i8 15"] * 32)
        fours = ", ".join(["i8 4"] * 32)
        parts = []
        for half in value:
            parts.append(code.value(f"and {_HALF} {half}, <{fifteens}>"))
            parts.append(code.value(f"lshr {_HALF} {half}, <{fours}>"))
        return tuple(parts)

    def multiply(self, code: Assembly, parts: Sequence[str], tables: Sequence[str]) -> tuple[str, str]:
        """As the base class says."""
        low, high = (self._sum(code, parts, tables[start : start + 4]) for start in (0, 4))
        return low, high

    def _sum(self, code: Assembly, parts: Sequence[str], tables: Sequence[str]) -> str:
        found = [
            code.value(f"call {_HALF} {_LOOK_UP}({_HALF} {table}, {_HALF} {part})")
            for part, table in zip(parts, tables, strict=True)
        ]
        while len(found) > 1:
            found = [code.value(f"xor {_HALF} {one}, {two}") for one, two in zip(found[::2], found[1::2], strict=True)]
        return found[0]


class SmallMultiplier(ShuffleMultiplier):
    """Constants of GF(256), and symbols as two elements of it, a byte each: half the look-ups, and one table for both.

    A symbol's two bytes are such elements only in another basis (`transform`). The first of a constant's tables are
    those that take low bytes to low bytes, which is all of a product in GF(256).
    """

    def load_tables(self, code: Assembly, pointer: str) -> tuple[str, ...]:
        """As the base class says."""
        return tuple(self._load_table(code, pointer, number) for number in range(2))

    def multiply(self, code: Assembly, parts: Sequence[str], tables: Sequence[str]) -> tuple[str, str]:
        """As the base class says."""
        low, high = (self._sum(code, parts[start : start + 2], tables) for start in (0, 2))
        return low, high

    def load_basis(self, code: Assembly, pointer: str) -> tuple[str, ...]:
        """The vectors of a change of basis: what of a high byte is added to the low one, and what it becomes."""
        return tuple(self._load_table(code, pointer, number) for number in range(4))

    def turn(self, code: Assembly, value: tuple[str, str], tables: Sequence[str]) -> tuple[str, str]:
        """A chunk in the other basis."""
        low, high = value
        parts = self.split(code, (high, high))[:2]
        added, found = (self._sum(code, parts, tables[start : start + 2]) for start in (0, 2))
        return code.value(f"xor {_HALF} {low}, {added}"), found
