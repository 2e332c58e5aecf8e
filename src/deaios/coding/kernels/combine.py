"""Sums of table look-ups: how every tier combines the symbols of rows where there are no Galois-field instructions.

The code uses generic vectors only, so it runs wherever LLVM does. It knows packed words, not the field: tables carry
all arithmetic.
"""

import ctypes
from collections.abc import Generator, Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from deaios.coding.kernels.compiler import Function, compile_functions

LANES = (16, 24, 32)
"""Tests done in one pass, 16 bits each: one 256-bit vector to two. Tables of fewer are in the cache more often."""

POSITIONS = 32
CHAINS = 4
"""Independent sums, so that table look-ups overlap."""


def combine(
    rows: NDArray[np.uint8],
    low: NDArray[np.uint16],
    high: NDArray[np.uint16],
    blocks: NDArray[np.uint16],
    groups: NDArray[np.uint16],
) -> NDArray[np.uint16]:
    """Combine each row's symbols under several coefficient vectors at once.

    Args:
        rows: (rows, size) uint8; size = groups * blocks * 64.
        low: (32, 256, lanes) products of each position's coefficients and each low byte.
        high: (32, 256, lanes) the same for high bytes.
        blocks: (blocks, 16, lanes) products of each block's coefficients and each single bit.
        groups: (groups, 16, lanes) products of each group's coefficients and each single bit.

    Returns:
        (rows, lanes) uint16.
    """
    lanes = low.shape[2]
    assert lanes in LANES, f"{lanes} lanes; {LANES} are compiled"
    assert rows.shape[1] == len(groups) * len(blocks) * 2 * POSITIONS, "rows do not fit the coefficient tables"
    tables = [np.ascontiguousarray(table) for table in (low, high, blocks, groups)]
    rows = np.ascontiguousarray(rows)
    out = np.empty((len(rows), lanes), np.uint16)
    addresses = [rows.ctypes.data, *(table.ctypes.data for table in tables), out.ctypes.data]
    _compile(lanes)(*addresses, len(rows), len(groups), len(blocks))
    return out


@cache
def _compile(lanes: int) -> Function:
    signature = (*[ctypes.c_void_p] * 6, *[ctypes.c_int64] * 3)
    return compile_functions("\n".join(_write_code(lanes)), {"combine": signature})["combine"]


def _write_code(lanes: int) -> Iterator[str]:
    """LLVM assembly: for each row, group and block, sum the look-ups, then multiply and add level by level."""
    vector = f"<{lanes} x i16>"
    yield "define void @combine(ptr %rows, ptr %low, ptr %high, ptr %blocks, ptr %groups, ptr %out,"
    yield "                     i64 %row_count, i64 %group_count, i64 %block_count) {"
    yield "entry:"
    yield "  br label %row"
    yield "row:"
    yield "  %source0 = phi ptr [%rows, %entry], [%source_end, %row_end]"
    yield "  %r = phi i64 [0, %entry], [%r_next, %row_end]"
    yield "  br label %group"
    yield "group:"
    yield "  %source1 = phi ptr [%source0, %row], [%source_next, %group_end]"
    yield "  %g = phi i64 [0, %row], [%g_next, %group_end]"
    yield f"  %group_sum = phi {vector} [zeroinitializer, %row], [%group_sum_next, %group_end]"
    yield "  br label %block"
    yield "block:"
    yield "  %source = phi ptr [%source1, %group], [%source_next, %block]"
    yield "  %b = phi i64 [0, %group], [%b_next, %block]"
    yield f"  %block_sum = phi {vector} [zeroinitializer, %group], [%block_sum_next, %block]"
    total = yield from _write_lookups(lanes, vector)
    yield from _write_product("block", "%blocks", "%b", total, lanes, vector)
    yield "  %source_next = getelementptr i8, ptr %source, i64 64"
    yield "  %b_next = add i64 %b, 1"
    yield "  %b_more = icmp ult i64 %b_next, %block_count"
    yield "  br i1 %b_more, label %block, label %group_end"
    yield "group_end:"
    yield from _write_product("group", "%groups", "%g", "%block_sum_next", lanes, vector)
    yield "  %g_next = add i64 %g, 1"
    yield "  %g_more = icmp ult i64 %g_next, %group_count"
    yield "  br i1 %g_more, label %group, label %row_end"
    yield "row_end:"
    yield "  %source_end = getelementptr i8, ptr %source_next, i64 0"
    yield f"  %place = getelementptr [{lanes} x i16], ptr %out, i64 %r"
    yield f"  store {vector} %group_sum_next, ptr %place, align 2"
    yield "  %r_next = add i64 %r, 1"
    yield "  %r_more = icmp ult i64 %r_next, %row_count"
    yield "  br i1 %r_more, label %row, label %end"
    yield "end:"
    yield "  ret void"
    yield "}"


def _write_lookups(lanes: int, vector: str) -> Generator[str, None, str]:
    """Sum of both bytes' products over the 32 positions of a chunk; returns the name of the sum."""
    chains: list[str] = []
    for number in range(2 * POSITIONS):
        position, table = number // 2, ("%low", "%high")[number % 2]
        offset = position + (number % 2) * POSITIONS
        yield f"  %p{number} = getelementptr i8, ptr %source, i64 {offset}"
        yield f"  %x{number} = load i8, ptr %p{number}"
        yield f"  %i{number} = zext i8 %x{number} to i64"
        yield f"  %t{number} = getelementptr i8, ptr {table}, i64 {position * 256 * lanes * 2}"
        yield f"  %q{number} = getelementptr [{lanes} x i16], ptr %t{number}, i64 %i{number}"
        yield f"  %v{number} = load {vector}, ptr %q{number}, align 2"
        if number < CHAINS:
            chains.append(f"%v{number}")
        else:
            yield f"  %s{number} = xor {vector} {chains[number % CHAINS]}, %v{number}"
            chains[number % CHAINS] = f"%s{number}"
    total = chains[0]
    for number, chain in enumerate(chains[1:]):
        yield f"  %total{number} = xor {vector} {total}, {chain}"
        total = f"%total{number}"
    return total


def _write_product(name: str, table: str, index: str, value: str, lanes: int, vector: str) -> Iterator[str]:
    """Add value times this level's coefficients: for each set bit, the coefficient's product with it."""
    yield f"  %{name}_row = getelementptr [16 x [{lanes} x i16]], ptr {table}, i64 {index}"
    total = f"%{name}_sum"
    top = ", ".join(["i16 15"] * lanes)
    for bit in range(16):
        here = f"{name}_{bit}"
        up = ", ".join([f"i16 {15 - bit}"] * lanes)
        yield f"  %{here}_up = shl {vector} {value}, <{up}>"
        yield f"  %{here}_mask = ashr {vector} %{here}_up, <{top}>"
        yield f"  %{here}_at = getelementptr [{lanes} x i16], ptr %{name}_row, i64 {bit}"
        yield f"  %{here}_product = load {vector}, ptr %{here}_at, align 2"
        yield f"  %{here}_chosen = and {vector} %{here}_mask, %{here}_product"
        result = f"%{name}_sum_next" if bit == 15 else f"%{here}_total"
        yield f"  {result} = xor {vector} {total}, %{here}_chosen"
        total = result
