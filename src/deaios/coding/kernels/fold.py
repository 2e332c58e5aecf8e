"""Random combinations on the AVX-512 tier: the two levels of coefficients that touch every byte, chunk by chunk.

What is left is one chunk per row and test, whose 32 symbols the caller combines. Coefficients come as tables of a
`Multiplier`; the order of sums changes no bit, since addition is exclusive or.
"""

import ctypes
from functools import cache

import numpy as np
from numpy.typing import NDArray

from deaios.coding.kernels.assembly import Assembly
from deaios.coding.kernels.compiler import Function, compile_functions
from deaios.coding.kernels.multipliers import CHUNK_BYTES, TABLE_BYTES, GaloisMultiplier
from deaios.coding.kernels.sums import Sums


def fold(rows: NDArray[np.uint8], blocks: NDArray[np.uint8], groups: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Sum of group coefficient times sum of block coefficient times chunk, for each row and test.

    Args:
        rows: (rows, size) uint8, size = groups * blocks * 64.
        blocks: (passes, blocks, constants, 128) tables of the block coefficients, `constants` tests in each pass.
        groups: (passes, groups, constants, 128) tables of the group coefficients.

    Returns:
        (rows, passes * constants, 64) uint8.
    """
    passes, block_count, constants, _ = blocks.shape
    group_count = groups.shape[1]
    assert rows.shape[1] == block_count * group_count * CHUNK_BYTES, "rows do not fit the coefficient tables"
    rows = np.ascontiguousarray(rows)
    folded = np.empty((len(rows), passes * constants, CHUNK_BYTES), np.uint8)
    function = _compile()
    for number in range(passes):
        function(
            rows.ctypes.data,
            len(rows),
            group_count,
            block_count,
            blocks[number].ctypes.data,
            groups[number].ctypes.data,
            folded.ctypes.data + number * constants * CHUNK_BYTES,
            folded.strides[0],
        )
    return folded


@cache
def _compile() -> Function:
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    signature = (pointer, number, number, number, pointer, pointer, pointer, number)
    return compile_functions(write_fold("fold", GaloisMultiplier()), {"fold": signature})["fold"]


def write_fold(name: str, multiplier: GaloisMultiplier) -> str:
    """`name(rows, count, groups, blocks, block tables, group tables, sums, bytes from one row's sums to the next's)`.

    Several groups of a row run side by side while there are so many; the rest runs one by one.
    """
    code = Assembly()
    code.line(
        f"define void @{name}(ptr %rows, i64 %count, i64 %groups, i64 %blocks, ptr %first, ptr %second, ptr %sums, "
        "i64 %sums_bytes) {"
    )
    code.line("entry:")
    code.line(f"  %group_bytes = mul i64 %blocks, {CHUNK_BYTES}")
    code.line("  %row_bytes = mul i64 %groups, %group_bytes")
    code.line("  br label %row")
    code.line("row:")
    code.line("  %number = phi i64 [0, %entry], [%number_next, %row_end]")
    code.line("  %source_offset = mul i64 %number, %row_bytes")
    code.line("  %source = getelementptr i8, ptr %rows, i64 %source_offset")
    code.line("  %target_offset = mul i64 %number, %sums_bytes")
    code.line("  %target = getelementptr i8, ptr %sums, i64 %target_offset")
    for constant in range(multiplier.constants):
        multiplier.store(code, multiplier.zero(), code.at("%target", constant * CHUNK_BYTES))
    code.line("  br label %many_test")
    _write_groups(code, multiplier, multiplier.chunks, "many", "row", "one_test")
    _write_groups(code, multiplier, 1, "one", "many_test", "row_end")
    code.line("row_end:")
    code.line("  %number_next = add i64 %number, 1")
    code.line("  %more = icmp ult i64 %number_next, %count")
    code.line("  br i1 %more, label %row, label %end")
    code.line("end:")
    code.line("  ret void")
    code.line("}")
    return f"{code}\n{multiplier.declarations}"


def _write_groups(code: Assembly, multiplier: GaloisMultiplier, width: int, name: str, before: str, after: str) -> None:
    """A loop over groups, `width` at a time, while there are so many."""
    start = "0" if before == "row" else f"%{before.removesuffix('_test')}_group"
    code.line(f"{name}_test:")
    code.line(f"  %{name}_group = phi i64 [{start}, %{before}], [%{name}_next, %{name}_sum]")
    code.line(f"  %{name}_next = add i64 %{name}_group, {width}")
    code.line(f"  %{name}_fits = icmp ule i64 %{name}_next, %groups")
    code.line(f"  br i1 %{name}_fits, label %{name}_begin, label %{after}")
    code.line(f"{name}_begin:")
    bases = [code.at("%source", code.value(f"mul i64 %{name}_group, %group_bytes"))]
    for _ in range(width - 1):
        bases.append(code.at(bases[-1], "%group_bytes"))
    code.line(f"  br label %{name}_block")
    code.line(f"{name}_block:")
    code.line(f"  %{name}_number = phi i64 [0, %{name}_begin], [%{name}_number_next, %{name}_block]")
    sums = Sums(multiplier, width, name)
    sums.write_start(code, f"{name}_begin", f"{name}_block")
    offset = code.value(f"mul i64 %{name}_number, {CHUNK_BYTES}")
    tables_at = code.at("%first", code.value(f"mul i64 %{name}_number, {multiplier.constants * TABLE_BYTES}"))
    sums.write_turn(code, [code.at(base, offset) for base in bases], tables_at)
    code.line(f"  %{name}_number_next = add i64 %{name}_number, 1")
    code.line(f"  %{name}_more = icmp ult i64 %{name}_number_next, %blocks")
    code.line(f"  br i1 %{name}_more, label %{name}_block, label %{name}_sum")
    code.line(f"{name}_sum:")
    tables_at = code.at("%second", code.value(f"mul i64 %{name}_group, {multiplier.constants * TABLE_BYTES}"))
    for constant in range(multiplier.constants):
        target = code.at("%target", constant * CHUNK_BYTES)
        total = multiplier.load(code, target)
        for place in range(width):
            tables = multiplier.load_tables(
                code, code.at(tables_at, (place * multiplier.constants + constant) * TABLE_BYTES)
            )
            parts_of = multiplier.split(code, sums.ends[place, constant])
            total = multiplier.add(code, total, multiplier.multiply(code, parts_of, tables))
        multiplier.store(code, total, target)
    code.line(f"  br label %{name}_test")
