"""Rows as sums of products of other rows and constants, chunk by chunk, on the AVX-512 tier."""

import ctypes
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from deaios.coding.kernels.assembly import Assembly
from deaios.coding.kernels.compiler import Function, compile_functions
from deaios.coding.kernels.multipliers import CHUNK_BYTES, TABLE_BYTES, GaloisMultiplier
from deaios.coding.kernels.sums import Sums, list_neighbours

STRIP_CHUNKS = 64
"""Chunks of every source that stay in the second-level cache while all targets are made from them."""


def mix(sources: Sequence[NDArray[np.uint8]], tables: NDArray[np.uint8], targets: Sequence[NDArray[np.uint8]]) -> None:
    """Let each target be the sum of all sources, each times its constant for that target.

    Args:
        sources: rows of one size, a multiple of 256 bytes, each in one piece.
        tables: (passes, sources, constants, 128): tables of `constants` targets in each pass; those of the last pass
            for which there is no target are unused.
        targets: rows to write, of the same size, each in one piece.
    """
    passes, count, constants, _ = tables.shape
    size = sources[0].size
    assert count == len(sources)
    assert passes * constants >= len(targets)
    assert size % (4 * CHUNK_BYTES) == 0, "every tier works on whole steps"
    assert all(row.size == size and row.flags.c_contiguous for row in (*sources, *targets))
    assert tables.flags.c_contiguous
    spare = np.empty(size if passes * constants > len(targets) else 0, np.uint8)
    rows = [*targets, *[spare] * (passes * constants - len(targets))]
    read = (ctypes.c_void_p * count)(*(row.ctypes.data for row in sources))
    written = (ctypes.c_void_p * len(rows))(*(row.ctypes.data for row in rows))
    _compile()(read, count, tables.ctypes.data, written, passes, size // CHUNK_BYTES)


@cache
def _compile() -> Function:
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    signature = (pointer, number, pointer, pointer, number, number)
    return compile_functions(write_mix("mix", GaloisMultiplier()), {"mix": signature})["mix"]


def write_mix(name: str, multiplier: GaloisMultiplier) -> str:
    """`name(source pointers, sources, tables, target pointers, passes, chunks)`: strips, in them passes, in them steps.

    A step makes some neighbouring chunks of some targets, whose sums stay in registers over all sources.
    """
    width, constants = multiplier.chunks, multiplier.constants
    sums = Sums(multiplier, width, "row")
    starting, adding, ending = Assembly("s"), Assembly("a"), Assembly("e")
    sums.write_start(starting, "step", "source")
    sums.write_turn(adding, list_neighbours(adding, "%base", width), "%tables_at")
    for constant in range(constants):
        ending.line(f"  %row_{constant}_number = add i64 %row_number, {constant}")
        ending.line(f"  %row_{constant}_place = getelementptr ptr, ptr %targets, i64 %row_{constant}_number")
        ending.line(f"  %row_{constant} = load ptr, ptr %row_{constant}_place")
        ending.line(f"  %row_{constant}_at = getelementptr i8, ptr %row_{constant}, i64 %offset")
    for constant in range(constants):
        for place, target in enumerate(list_neighbours(ending, f"%row_{constant}_at", width)):
            multiplier.store(ending, sums.ends[place, constant], target)
    return f"""
define void @{name}(ptr %sources, i64 %count, ptr %tables, ptr %targets, i64 %passes, i64 %chunks) {{
entry:
  %pass_bytes = mul i64 %count, {constants * TABLE_BYTES}
  br label %strip
strip:
  %strip_start = phi i64 [0, %entry], [%strip_end, %strip_done]
  %strip_next = add i64 %strip_start, {STRIP_CHUNKS}
  %strip_end = call i64 @llvm.umin.i64(i64 %strip_next, i64 %chunks)
  br label %pass
pass:
  %pass_number = phi i64 [0, %strip], [%pass_next, %pass_done]
  %pass_offset = mul i64 %pass_number, %pass_bytes
  %pass_tables = getelementptr i8, ptr %tables, i64 %pass_offset
  %row_number = mul i64 %pass_number, {constants}
  br label %step
step:
  %position = phi i64 [%strip_start, %pass], [%position_next, %step_done]
  %offset = mul i64 %position, {CHUNK_BYTES}
  br label %source
source:
  %number = phi i64 [0, %step], [%number_next, %source]
{starting}
  %source_place = getelementptr ptr, ptr %sources, i64 %number
  %source_row = load ptr, ptr %source_place
  %base = getelementptr i8, ptr %source_row, i64 %offset
  %tables_offset = mul i64 %number, {constants * TABLE_BYTES}
  %tables_at = getelementptr i8, ptr %pass_tables, i64 %tables_offset
{adding}
  %number_next = add i64 %number, 1
  %more_sources = icmp ult i64 %number_next, %count
  br i1 %more_sources, label %source, label %step_done
step_done:
{ending}
  %position_next = add i64 %position, {width}
  %more_steps = icmp ult i64 %position_next, %strip_end
  br i1 %more_steps, label %step, label %pass_done
pass_done:
  %pass_next = add i64 %pass_number, 1
  %more_passes = icmp ult i64 %pass_next, %passes
  br i1 %more_passes, label %pass, label %strip_done
strip_done:
  %more_strips = icmp ult i64 %strip_end, %chunks
  br i1 %more_strips, label %strip, label %end
end:
  ret void
}}
{multiplier.declarations}declare i64 @llvm.umin.i64(i64, i64)
"""
