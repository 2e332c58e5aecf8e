"""The inner loop that combinations and sums of rows share (AVX-512): products, summed in registers."""

from collections.abc import Sequence

from deaios.coding.kernels.assembly import Assembly
from deaios.coding.kernels.multipliers import CHUNK_BYTES, TABLE_BYTES, WIDE, GaloisMultiplier


class Sums:
    """One sum for each of some chunks side by side and each constant of a pass, over the turns of a loop.

    Attributes:
        ends: the sums after a turn, by (chunk, constant).
    """

    def __init__(self, multiplier: GaloisMultiplier, width: int, prefix: str) -> None:
        self._multiplier = multiplier
        self._width = width
        keys = [(place, constant) for place in range(width) for constant in range(multiplier.constants)]
        self._totals = {key: f"%{prefix}_sum_{key[0]}_{key[1]}" for key in keys}
        self.ends = {key: f"%{prefix}_end_{key[0]}_{key[1]}" for key in keys}

    def write_start(self, code: Assembly, before: str, loop: str) -> None:
        """Zeros at first; among the first lines of the loop's block."""
        for key, total in self._totals.items():
            code.line(f"  {total} = phi {WIDE} [zeroinitializer, %{before}], [{self.ends[key]}, %{loop}]")

    def write_turn(self, code: Assembly, chunks: Sequence[str], tables: str) -> None:
        """Add what a turn brings: the chunks at these pointers, times the constants whose tables follow each other."""
        multiplier = self._multiplier
        parts = [multiplier.split(code, multiplier.load(code, chunk)) for chunk in chunks]
        for constant in range(multiplier.constants):
            loaded = multiplier.load_tables(code, code.at(tables, constant * TABLE_BYTES))
            for place in range(self._width):
                key = place, constant
                product = multiplier.multiply(code, parts[place], loaded)
                code.line(f"  {self.ends[key]} = xor {WIDE} {self._totals[key]}, {product}")


def list_neighbours(code: Assembly, base: str, count: int) -> list[str]:
    """Pointers to chunks that follow each other."""
    return [code.at(base, place * CHUNK_BYTES) for place in range(count)]
