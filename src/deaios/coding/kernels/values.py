"""Sums of products with half the look-ups (AVX2): elements as polynomials over GF(16), by values at seven points.

Elements are polynomials of degree 3 over GF(16), so a product has degree 6 and follows from its values at seven points.
Values multiply point by point, each a half byte, and one look-up multiplies a value by two constants. So a sum of
products is, for each pair of constants, seven sums of look-ups. Chunks are evaluated once for all constants, and the
seven sums become chunks again at the end, by tables. Knows those tables' layout, not the field.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from deaios.coding.kernels.assembly import Assembly
from deaios.coding.kernels.compiler import Function, compile_functions
from deaios.coding.kernels.multipliers import CHUNK_BYTES
from deaios.coding.kernels.room import make_aligned

POINTS = 7
CONSTANTS = 4
"""Constants in a pass: two pairs."""

PLACES = 4
"""Chunks that are summed side by side, so that a table serves several of them."""

SHARING = 2
"""Chunks that are evaluated side by side: their half bytes stay in registers."""

PARTS = 4
"""Half bytes of a symbol."""

FOLDED_MAX = 64
"""Blocks in a group: what holds their values stays small."""

MAP_BYTES = 4 * PARTS * 16
"""Tables of the evaluation: (4 bytes of two values each, 4 half bytes of a symbol, 16) uint8."""

CLOSING_BYTES = POINTS * 2 * 16
"""Tables from values to a symbol, times a constant: (7 points, 2 bytes of a symbol, 16) uint8."""

STEPS_BYTES = POINTS * 2 * 2
"""Where such tables stand among all there are, for digits in place of symbols: (7, 2) uint16."""

_VECTOR = "<32 x i8>"
_VECTOR_BYTES = 32
_LOOK_UP = "@llvm.x86.avx2.pshuf.b"
_PAIRS = CONSTANTS // 2
_SUMS_BYTES = PLACES * POINTS * _VECTOR_BYTES
"""Values of all places of one pair of constants."""
_SPACE_BYTES = 256
"""Between the values at one point and those at the next: else all stand in the same sets of the first cache."""


def mix_values(
    sources: Sequence[NDArray[np.uint8]],
    maps: NDArray[np.uint8],
    tables: NDArray[np.uint8],
    closing: NDArray[np.uint8],
    targets: Sequence[NDArray[np.uint8]],
) -> None:
    """Let each target be the sum of all sources, each times its constant for that target.

    Args:
        sources: rows of one size, a multiple of 256 bytes, each in one piece.
        maps: tables of the evaluation.
        tables: (7, passes, sources, 2, 16): products of two constants' values and every value, constant by constant
            of the targets in turn.
        closing: tables from values to symbols.
        targets: rows to write, of the same size, each in one piece.
    """
    points, passes, count, *_ = tables.shape
    size = sources[0].size
    assert (points, count, maps.size, closing.size) == (POINTS, len(sources), MAP_BYTES, CLOSING_BYTES)
    assert passes * CONSTANTS >= len(targets)
    assert size % (PLACES * CHUNK_BYTES) == 0, "rows are whole steps"
    assert all(row.size == size and row.flags.c_contiguous for row in (*sources, *targets))
    assert all(array.flags.c_contiguous for array in (maps, tables, closing))
    spare = np.empty(size if passes * CONSTANTS > len(targets) else 0, np.uint8)
    _room, addresses = _make_room(count, passes)  # held until the kernel returns
    _compile()["mix"](
        _list_pointers(sources),
        count,
        maps.ctypes.data,
        tables.ctypes.data,
        passes,
        *addresses,
        closing.ctypes.data,
        _list_pointers([*targets, *[spare] * (passes * CONSTANTS - len(targets))]),
        size,
    )


class ValueFolds:
    """Sums of group coefficient times sum of block coefficient times chunk, for each row and test."""

    __slots__ = ("_arrays", "_folded", "_function", "_row_bytes", "_shape", "_tables")

    def __init__(
        self,
        maps: NDArray[np.uint8],
        blocks: NDArray[np.uint8],
        multiples: NDArray[np.uint8],
        groups: NDArray[np.uint16],
    ) -> None:
        """Look at the tables once, since a row is short work.

        Args:
            maps: tables of the evaluation.
            blocks: (7, passes, blocks, 2, 16) tables of the block coefficients, four tests in each pass.
            multiples: (256, 16) tables from values to bytes of a symbol's digits.
            groups: (groups, passes * 4, 7, 2): where in `multiples` those of the group coefficients stand, in bytes.
        """
        points, passes, count, *_ = blocks.shape
        assert (points, maps.size) == (POINTS, MAP_BYTES)
        assert count <= FOLDED_MAX
        assert groups[0].nbytes == passes * CONSTANTS * STEPS_BYTES
        assert all(array.flags.c_contiguous for array in (maps, blocks, multiples, groups))
        self._row_bytes = len(groups) * count * CHUNK_BYTES
        self._shape = (passes * CONSTANTS, CHUNK_BYTES)
        sources = np.arange(count) * CHUNK_BYTES
        self._arrays = (sources, maps, blocks, multiples, groups)  # the kernel has their addresses
        self._tables = (
            sources.ctypes.data,
            count,
            maps.ctypes.data,
            blocks.ctypes.data,
            passes,
            multiples.ctypes.data,
            groups.ctypes.data,
        )
        self._folded = (len(groups), count * CHUNK_BYTES)
        self._function = _compile()["fold"]

    def fold(self, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Fold rows: (rows, groups * blocks * 64) to digits of symbols, (rows, passes * 4, 64) uint8."""
        assert rows.shape[1] == self._row_bytes, "rows do not fit the coefficient tables"
        rows = np.ascontiguousarray(rows)
        count = len(rows)
        folded = np.zeros((count, *self._shape), np.uint8)
        self._function(*self._tables, rows.ctypes.data, folded.ctypes.data, count, *self._folded)
        return folded


def _make_room(count: int, passes: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """For the values of a step's chunks, and their sums: what holds it, and both addresses."""
    values = POINTS * (count * PLACES * _VECTOR_BYTES + _SPACE_BYTES)
    room = make_aligned(values + passes * _PAIRS * _SUMS_BYTES)
    start: int = room.ctypes.data
    return room, (start, start + values)


def _list_pointers(rows: Sequence[NDArray[np.uint8]]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(rows))(*(row.ctypes.data for row in rows))


@cache
def _compile() -> dict[str, Function]:
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    shared = (pointer, number, pointer, pointer, number)
    signatures = {"mix": (*shared, *[pointer] * 4, number), "fold": (*shared, *[pointer] * 4, number, number, number)}
    return compile_functions(write_sums(), signatures)


def write_sums() -> str:
    """`mix` and `fold`, and what they share."""
    parts = [
        _write_evaluate(),
        _write_accumulate(),
        _write_mix(),
        _write_fold(),
        f"declare {_VECTOR} {_LOOK_UP}({_VECTOR}, {_VECTOR})",
        "declare i64 @llvm.umin.i64(i64, i64)",
        "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)",
    ]
    return "\n".join(parts) + "\n"


def _write_evaluate() -> str:
    """`evaluate(source pointers, sources, places, ahead, maps, values)`: a step's values, by point, source and place.

    `places` are offsets of the chunks from each source's pointer, in bytes. Chunks are read once, where they are; those
    `ahead` are asked of the memory, because the work on one source hides no other source's wait.
    """
    starting, evaluating = Assembly("s"), Assembly("e")
    offsets = [starting.load("i64", "%places", 8 * place) for place in range(PLACES)]
    planes = ["%values"]
    for _ in range(POINTS - 1):
        planes.append(starting.at(planes[-1], "%plane"))
    planes = [evaluating.at(plane, "%offset") for plane in planes]
    for place in range(PLACES):
        ahead = evaluating.at(evaluating.at("%source", offsets[place]), "%ahead")
        evaluating.line(f"  call void @llvm.prefetch.p0(ptr {ahead}, i32 0, i32 3, i32 1)")
    for first in range(0, PLACES, SHARING):
        places = range(first, first + SHARING)
        parts = []
        for place in places:
            chunk = evaluating.at("%source", offsets[place])
            halves = [evaluating.load(_VECTOR, chunk, half) for half in (0, _VECTOR_BYTES)]
            parts.append([part for half in halves for part in _split(evaluating, half)])
        for number in range(-(-POINTS // 2)):
            tables = [_load_table(evaluating, "%maps", 16 * (PARTS * number + part)) for part in range(PARTS)]
            for place, its_parts in zip(places, parts, strict=True):
                found = [_look_up(evaluating, table, part) for table, part in zip(tables, its_parts, strict=True)]
                total = _sum(evaluating, found)
                planes_here = planes[2 * number : 2 * number + 2]
                values = _split(evaluating, total) if len(planes_here) > 1 else (total,)
                for plane, value in zip(planes_here, values, strict=True):
                    evaluating.store(_VECTOR, value, plane, place * _VECTOR_BYTES)
    return f"""
define internal void @evaluate(ptr %sources, i64 %count, ptr %places, i64 %ahead, ptr %maps, ptr %values) {{
entry:
  %count_bytes = mul i64 %count, {PLACES * _VECTOR_BYTES}
  %plane = add i64 %count_bytes, {_SPACE_BYTES}
{starting}
  br label %turn
turn:
  %number = phi i64 [0, %entry], [%number_next, %turn]
  %source_place = getelementptr ptr, ptr %sources, i64 %number
  %source = load ptr, ptr %source_place
  %offset = mul i64 %number, {PLACES * _VECTOR_BYTES}
{evaluating}
  %number_next = add i64 %number, 1
  %more = icmp ult i64 %number_next, %count
  br i1 %more, label %turn, label %end
end:
  ret void
}}"""


def _write_accumulate() -> str:
    """`accumulate(values, sources, tables, passes, sums)`: sums by pair of constants, place and point."""
    keys = [(pair, place) for pair in range(_PAIRS) for place in range(PLACES)]
    starting, adding, ending = Assembly("s"), Assembly("a"), Assembly("e")
    for pair, place in keys:
        starting.line(f"  %sum_{pair}_{place} = phi {_VECTOR} [zeroinitializer, %pass], [%end_{pair}_{place}, %source]")
    values = [adding.load(_VECTOR, "%values_at", place * _VECTOR_BYTES) for place in range(PLACES)]
    tables = [_load_table(adding, "%tables_at", 16 * pair) for pair in range(_PAIRS)]
    for pair, place in keys:
        product = _look_up(adding, tables[pair], values[place])
        adding.line(f"  %end_{pair}_{place} = xor {_VECTOR} %sum_{pair}_{place}, {product}")
    for pair, place in keys:
        offset = pair * _SUMS_BYTES + place * POINTS * _VECTOR_BYTES
        ending.store(_VECTOR, f"%end_{pair}_{place}", "%sums_at", offset)
    return f"""
define internal void @accumulate(ptr %values, i64 %count, ptr %tables, i64 %passes, ptr %sums) {{
entry:
  %tables_bytes = mul i64 %count, {_PAIRS * 16}
  %count_bytes = mul i64 %count, {PLACES * _VECTOR_BYTES}
  %values_bytes = add i64 %count_bytes, {_SPACE_BYTES}
  br label %point
point:
  %point_number = phi i64 [0, %entry], [%point_next, %point_end]
  %point_values = phi ptr [%values, %entry], [%values_next, %point_end]
  %point_tables = phi ptr [%tables, %entry], [%tables_next, %point_end]
  %point_offset = mul i64 %point_number, {_VECTOR_BYTES}
  %point_sums = getelementptr i8, ptr %sums, i64 %point_offset
  br label %pass
pass:
  %pass_number = phi i64 [0, %point], [%pass_next, %pass_end]
  %pass_tables = phi ptr [%point_tables, %point], [%tables_next, %pass_end]
  br label %source
source:
  %tables_offset = phi i64 [0, %pass], [%tables_offset_next, %source]
{starting}
  %values_offset = mul i64 %tables_offset, {PLACES * _VECTOR_BYTES // (_PAIRS * 16)}
  %values_at = getelementptr i8, ptr %point_values, i64 %values_offset
  %tables_at = getelementptr i8, ptr %pass_tables, i64 %tables_offset
{adding}
  %tables_offset_next = add i64 %tables_offset, {_PAIRS * 16}
  %more_sources = icmp ult i64 %tables_offset_next, %tables_bytes
  br i1 %more_sources, label %source, label %pass_end
pass_end:
  %sums_offset = mul i64 %pass_number, {_PAIRS * _SUMS_BYTES}
  %sums_at = getelementptr i8, ptr %point_sums, i64 %sums_offset
{ending}
  %tables_next = getelementptr i8, ptr %pass_tables, i64 %tables_bytes
  %pass_next = add i64 %pass_number, 1
  %more_passes = icmp ult i64 %pass_next, %passes
  br i1 %more_passes, label %pass, label %point_end
point_end:
  %values_next = getelementptr i8, ptr %point_values, i64 %values_bytes
  %point_next = add i64 %point_number, 1
  %more_points = icmp ult i64 %point_next, {POINTS}
  br i1 %more_points, label %point, label %end
end:
  ret void
}}"""


_TABLES = "ptr %sources, i64 %count, ptr %maps, ptr %tables, i64 %passes"
_SUM = """
  call void @evaluate(ptr %sources, i64 %count, ptr %places, i64 %ahead, ptr %maps, ptr %values)
  call void @accumulate(ptr %values, i64 %count, ptr %tables, i64 %passes, ptr %sums)
"""


def _write_mix() -> str:
    """`mix(…, closing, target pointers, row bytes)`: a step makes some neighbouring chunks of every target."""
    placing, closing = Assembly("p"), Assembly("c")
    for place in range(PLACES):
        offset = placing.value(f"add i64 %offset, {place * CHUNK_BYTES}")
        placing.store("i64", offset, "%places", 8 * place)

    def load_table(_constant: int, place: int) -> str:
        return _load_table(closing, "%closing", 16 * place)

    targets = []
    for half in range(2):
        row = closing.load("ptr", "%targets_at", 8 * half)
        targets.append(closing.at(row, "%offset"))
    for place in range(PLACES):
        source = closing.at("%sums_at", place * POINTS * _VECTOR_BYTES)
        for target, chunk in zip(targets, _close(closing, source, load_table), strict=True):
            for half, value in enumerate(chunk):
                closing.store(_VECTOR, value, target, place * CHUNK_BYTES + half * _VECTOR_BYTES)
    return f"""
define void @mix({_TABLES}, ptr %values, ptr %sums, ptr %closing, ptr %targets, i64 %row_bytes) {{
entry:
  %places = alloca [{PLACES} x i64]
  %pairs = mul i64 %passes, {_PAIRS}
  %ahead = add i64 0, {PLACES * CHUNK_BYTES}
  br label %step
step:
  %offset = phi i64 [0, %entry], [%offset_next, %step_end]
{placing}
{_SUM}
  br label %pair
pair:
  %pair_number = phi i64 [0, %step], [%pair_next, %pair]
  %sums_offset = mul i64 %pair_number, {_SUMS_BYTES}
  %sums_at = getelementptr i8, ptr %sums, i64 %sums_offset
  %targets_at = getelementptr [2 x ptr], ptr %targets, i64 %pair_number
{closing}
  %pair_next = add i64 %pair_number, 1
  %more_pairs = icmp ult i64 %pair_next, %pairs
  br i1 %more_pairs, label %pair, label %step_end
step_end:
  %offset_next = add i64 %offset, {PLACES * CHUNK_BYTES}
  %more_steps = icmp ult i64 %offset_next, %row_bytes
  br i1 %more_steps, label %step, label %end
end:
  ret void
}}"""


def _write_fold() -> str:
    """`fold(…, multiples, steps, rows, folded, count of rows, groups, group bytes)`: some groups of a row at a time.

    Where fewer groups are left the last one stands at several places and counts once. `folded` begins as zeros. The
    sources are offsets in a group, and the room is on the stack, at most 72 KiB: so a call costs little.
    """
    placing, closing = Assembly("p"), Assembly("c")
    for place in range(PLACES):
        wanted = placing.value(f"add i64 %group, {place}")
        found = placing.value(f"call i64 @llvm.umin.i64(i64 {wanted}, i64 %last)")
        offset = placing.value(f"mul i64 {found}, %group_bytes")
        placing.store("i64", placing.value(f"add i64 {offset}, %row_at"), "%places", 8 * place)

    def load_table(constant: int, place: int) -> str:
        step = closing.load("i16", "%closing", constant * STEPS_BYTES + 2 * place)
        table = closing.at("%multiples", closing.value(f"zext i16 {step} to i64"))
        return _load_table(closing, table, 0)

    for constant, chunk in enumerate(_close(closing, "%sums_at", load_table)):
        for half, value in enumerate(chunk):
            at = constant * CHUNK_BYTES + half * _VECTOR_BYTES
            old = closing.load(_VECTOR, "%target", at)
            closing.store(_VECTOR, closing.value(f"xor {_VECTOR} {old}, {value}"), "%target", at)
    return f"""
define void @fold({_TABLES}, ptr %multiples, ptr %closings, ptr %rows, ptr %folded, i64 %row_count, i64 %groups,
                  i64 %group_bytes) {{
entry:
  %places = alloca [{PLACES} x i64]
  %pairs = mul i64 %passes, {_PAIRS}
  %count_bytes = mul i64 %count, {PLACES * _VECTOR_BYTES}
  %plane = add i64 %count_bytes, {_SPACE_BYTES}
  %values_bytes = mul i64 %plane, {POINTS}
  %values = alloca i8, i64 %values_bytes, align 64
  %sums_bytes = mul i64 %pairs, {_SUMS_BYTES}
  %sums = alloca i8, i64 %sums_bytes, align 64
  %rows_at = ptrtoint ptr %rows to i64
  %last = sub i64 %groups, 1
  %ahead = mul i64 %group_bytes, {PLACES}
  %row_bytes = mul i64 %groups, %group_bytes
  %folded_bytes = mul i64 %pairs, {2 * CHUNK_BYTES}
  br label %row
row:
  %row_number = phi i64 [0, %entry], [%row_next, %row_end]
  %row_offset = mul i64 %row_number, %row_bytes
  %row_at = add i64 %rows_at, %row_offset
  %folded_offset = mul i64 %row_number, %folded_bytes
  %row_folded = getelementptr i8, ptr %folded, i64 %folded_offset
  br label %step
step:
  %group = phi i64 [0, %row], [%group_next, %step_end]
{placing}
{_SUM}
  %left = sub i64 %groups, %group
  %used = call i64 @llvm.umin.i64(i64 %left, i64 {PLACES})
  br label %place
place:
  %place_number = phi i64 [0, %step], [%place_next, %place_end]
  %place_group = add i64 %group, %place_number
  %first_pair = mul i64 %place_group, %pairs
  %place_offset = mul i64 %place_number, {POINTS * _VECTOR_BYTES}
  %place_sums = getelementptr i8, ptr %sums, i64 %place_offset
  br label %pair
pair:
  %pair_number = phi i64 [0, %place], [%pair_next, %pair]
  %sums_offset = mul i64 %pair_number, {_SUMS_BYTES}
  %sums_at = getelementptr i8, ptr %place_sums, i64 %sums_offset
  %closing_number = add i64 %first_pair, %pair_number
  %closing_offset = mul i64 %closing_number, {2 * STEPS_BYTES}
  %closing = getelementptr i8, ptr %closings, i64 %closing_offset
  %target_offset = mul i64 %pair_number, {2 * CHUNK_BYTES}
  %target = getelementptr i8, ptr %row_folded, i64 %target_offset
{closing}
  %pair_next = add i64 %pair_number, 1
  %more_pairs = icmp ult i64 %pair_next, %pairs
  br i1 %more_pairs, label %pair, label %place_end
place_end:
  %place_next = add i64 %place_number, 1
  %more_places = icmp ult i64 %place_next, %used
  br i1 %more_places, label %place, label %step_end
step_end:
  %group_next = add i64 %group, {PLACES}
  %more_steps = icmp ult i64 %group_next, %groups
  br i1 %more_steps, label %step, label %row_end
row_end:
  %row_next = add i64 %row_number, 1
  %more_rows = icmp ult i64 %row_next, %row_count
  br i1 %more_rows, label %row, label %end
end:
  ret void
}}"""


def _close(code: Assembly, sums: str, load_table: Callable[[int, int], str]) -> list[tuple[str, str]]:
    """Chunks of a pair of constants from their values, which lie point by point; the first has the low half bytes.

    Tables are asked for by constant, and place among 7 points times 2 bytes of a symbol.
    """
    values = [_split(code, code.load(_VECTOR, sums, point * _VECTOR_BYTES)) for point in range(POINTS)]
    chunks = []
    for constant in range(2):
        low, high = (
            _sum(
                code,
                [
                    _look_up(code, load_table(constant, 2 * point + half), values[point][constant])
                    for point in range(POINTS)
                ],
            )
            for half in (0, 1)
        )
        chunks.append((low, high))
    return chunks


def _split(code: Assembly, value: str) -> tuple[str, str]:
    """Low and high half bytes."""
    fifteens, fours = (", ".join([f"i8 {number}"] * _VECTOR_BYTES) for number in (15, 4))
    return code.value(f"and {_VECTOR} {value}, <{fifteens}>"), code.value(f"lshr {_VECTOR} {value}, <{fours}>")


def _load_table(code: Assembly, pointer: str, offset: int) -> str:
    """A table of 16 bytes, in both halves of a vector."""
    table = code.load("<16 x i8>", pointer, offset)
    return code.shuffle("<16 x i8>", table, "poison", [place % 16 for place in range(_VECTOR_BYTES)])


def _look_up(code: Assembly, table: str, places: str) -> str:
    return code.value(f"call {_VECTOR} {_LOOK_UP}({_VECTOR} {table}, {_VECTOR} {places})")


def _sum(code: Assembly, values: Sequence[str]) -> str:
    """Exclusive or of all, in a tree, so that none waits for all others."""
    level = list(values)
    while len(level) > 1:
        pairs = [code.value(f"xor {_VECTOR} {one}, {two}") for one, two in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[2 * len(pairs) :]
    return level[0]
