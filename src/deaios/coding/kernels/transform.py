"""Recovery rows by additive Fourier transforms: the fast way to make many rows at once, strip by strip in the cache.

Data rows, in parts as long as the transform, are taken to coefficients and summed; each part of the recovery rows is
the sum evaluated elsewhere. A butterfly multiplies by one constant, whose tables come in the order in which they are
used. Source: Lin, Chung, Han 2014; Leopard (BSD licence) for the order of steps.
"""

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deaios.coding.kernels.assembly import Assembly
from deaios.coding.kernels.compiler import Function, compile_functions
from deaios.coding.kernels.multipliers import CHUNK_BYTES, TABLE_BYTES, Multiplier, SmallMultiplier
from deaios.coding.kernels.room import make_aligned
from deaios.coding.kernels.tiers import get_multiplier

STRIP_BYTES_MAX = 4096
"""Columns worked on at once: long enough that the rows' memory is read and written in long pieces."""

STRIP_BYTES_MIN = 256
"""Rows are a multiple of this."""

WORK_BYTES = 256 << 10
"""What a strip of a transform takes at most, unless that were too narrow: it stays in the second-level cache."""


def transform(
    sources: NDArray[np.uint8],
    targets: NDArray[np.uint8],
    inverse: NDArray[np.uint8],
    forward: NDArray[np.uint8],
    bases: NDArray[np.uint8] | None = None,
) -> None:
    """Compute recovery rows from data rows.

    Args:
        sources: (data rows, size), size a multiple of 256 bytes, each row in one piece.
        targets: (recovery rows, size) to write, each in one piece.
        inverse: (parts of the data rows, width - 1, 128) tables of their transforms, layer by layer upwards.
        forward: (parts of the recovery rows, width - 1, 128) tables of theirs, layer by layer downwards.
        bases: where all constants are in GF(256) and the tier has use for it: tables of the changes to and from the
            basis in which a symbol is two elements of GF(256), (2, 2, 2, 16): to and from; what of a high byte is
            added to the low one, and what it becomes; by its low and its high half.
    """
    width = inverse.shape[1] + 1
    size = sources.shape[1]
    assert size % STRIP_BYTES_MIN == 0
    assert len(inverse) == -(-len(sources) // width)
    assert len(forward) == -(-len(targets) // width)
    assert targets.shape[1] == size
    assert sources.strides[1] == targets.strides[1] == 1
    assert inverse.flags.c_contiguous
    assert forward.flags.c_contiguous
    strip = min(size, STRIP_BYTES_MAX, max(STRIP_BYTES_MIN, WORK_BYTES // width))
    work = make_aligned(2 * width * strip)
    read, written = _list_pointers(sources), _list_pointers(targets)
    _compile(bases is not None)(
        read,
        len(sources),
        written,
        len(targets),
        inverse.ctypes.data,
        forward.ctypes.data,
        work.ctypes.data,
        width,
        size,
        strip,
        *(() if bases is None else (bases[0].ctypes.data, bases[1].ctypes.data)),
    )


def _list_pointers(rows: NDArray[np.uint8]) -> ctypes.Array[ctypes.c_void_p]:
    """Where rows begin."""
    start, step = rows.ctypes.data, rows.strides[0]
    return (ctypes.c_void_p * len(rows))(*(start + step * index for index in range(len(rows))))


@cache
def _compile(is_small: bool) -> Function:
    multiplier = SmallMultiplier() if is_small else get_multiplier()
    assert multiplier is not None, "this tier transforms nothing"
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    signature = [pointer, number, pointer, number, pointer, pointer, pointer, number, number, number]
    if is_small:
        signature += [pointer, pointer]
    return compile_functions(write_transform("extend", multiplier), {"extend": tuple(signature)})["extend"]


def write_transform(name: str, multiplier: Multiplier[Any]) -> str:  # Any: whatever the multiplier calls a chunk
    """`name(source pointers, sources, target pointers, targets, inverse, forward, work, width, row, strip)`.

    `row` and `strip` are bytes. `work` has room for two transforms of one strip: the sum, then the part in the making;
    the last part is made where the sum was. Where all constants are in GF(256), tables of the changes to and from that
    field's basis follow.
    """
    parts = [
        _write_layers("inverse", multiplier, is_inverse=True),
        _write_layers("forward", multiplier, is_inverse=False),
        *([_write_turn("turn", multiplier)] if isinstance(multiplier, SmallMultiplier) else []),
        _write_strips(name, is_small=isinstance(multiplier, SmallMultiplier)),
        multiplier.declarations,
        "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)",
        "declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)",
        "declare i64 @llvm.umin.i64(i64, i64)",
    ]
    return "\n".join(parts) + "\n"


def _write_layers(name: str, multiplier: Multiplier[Any], *, is_inverse: bool) -> str:  # Any: as above
    """`name(rows, size, strip bytes, tables)`: all layers in place; `size` is the bytes of all rows."""
    code = Assembly()
    code.line(f"define internal void @{name}(ptr %rows, i64 %size, i64 %strip, ptr %tables) {{")
    code.line("entry:")
    code.line("  %half_size = lshr i64 %size, 1")
    code.line("  %is_one = icmp eq i64 %size, %strip")
    code.line("  br i1 %is_one, label %end, label %layer")
    code.line("layer:")
    start = "%strip" if is_inverse else "%half_size"
    code.line(f"  %half = phi i64 [{start}, %entry], [%half_next, %layer_end]")
    code.line("  %layer_tables = phi ptr [%tables, %entry], [%tables_next, %layer_end]")
    code.line("  %whole = shl i64 %half, 1")
    code.line("  br label %run")
    code.line("run:")
    code.line("  %run_start = phi i64 [0, %layer], [%run_next, %run_end]")
    code.line("  %run_tables = phi ptr [%layer_tables, %layer], [%tables_next, %run_end]")
    tables = multiplier.load_tables(code, "%run_tables")
    code.line("  %first = getelementptr i8, ptr %rows, i64 %run_start")
    code.line("  %second = getelementptr i8, ptr %first, i64 %half")
    code.line("  br label %step")
    code.line("step:")
    code.line("  %offset = phi i64 [0, %run], [%offset_next, %step]")
    one, two = code.at("%first", "%offset"), code.at("%second", "%offset")
    low, high = multiplier.load(code, one), multiplier.load(code, two)
    if is_inverse:
        high = multiplier.add(code, high, low)
    low = multiplier.add(code, low, multiplier.multiply(code, multiplier.split(code, high), tables))
    if not is_inverse:
        high = multiplier.add(code, high, low)
    multiplier.store(code, low, one)
    multiplier.store(code, high, two)
    code.line(f"  %offset_next = add i64 %offset, {CHUNK_BYTES}")
    code.line("  %more_steps = icmp ult i64 %offset_next, %half")
    code.line("  br i1 %more_steps, label %step, label %run_end")
    code.line("run_end:")
    code.line(f"  %tables_next = getelementptr i8, ptr %run_tables, i64 {TABLE_BYTES}")
    code.line("  %run_next = add i64 %run_start, %whole")
    code.line("  %more_runs = icmp ult i64 %run_next, %size")
    code.line("  br i1 %more_runs, label %run, label %layer_end")
    code.line("layer_end:")
    if is_inverse:
        code.line("  %half_next = shl i64 %half, 1")
        code.line("  %more_layers = icmp ult i64 %half_next, %size")
    else:
        code.line("  %half_next = lshr i64 %half, 1")
        code.line("  %more_layers = icmp uge i64 %half_next, %strip")
    code.line("  br i1 %more_layers, label %layer, label %end")
    code.line("end:")
    code.line("  ret void")
    code.line("}")
    return str(code)


def _write_turn(name: str, multiplier: SmallMultiplier) -> str:
    """`name(target, source, bytes, tables of a basis, next)`: a copy in another basis.

    `next` is where the next row begins, which is asked of the memory meanwhile: the processor does not foresee it.
    """
    code = Assembly()
    tables = multiplier.load_basis(code, "%tables")
    code.line("  br label %chunk")
    code.line("chunk:")
    code.line("  %offset = phi i64 [0, %entry], [%offset_next, %chunk]")
    code.line(f"  call void @llvm.prefetch.p0(ptr {code.at('%next', '%offset')}, i32 0, i32 3, i32 1)")
    chunk = multiplier.load(code, code.at("%source", "%offset"))
    multiplier.store(code, multiplier.turn(code, chunk, tables), code.at("%target", "%offset"))
    code.line(f"  %offset_next = add i64 %offset, {CHUNK_BYTES}")
    code.line("  %more = icmp ult i64 %offset_next, %bytes")
    code.line("  br i1 %more, label %chunk, label %end")
    return f"""
define internal void @{name}(ptr %target, ptr %source, i64 %bytes, ptr %tables, ptr %next) {{
entry:
{code}
end:
  ret void
}}
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)"""


def _write_strips(name: str, *, is_small: bool) -> str:
    """The loop over strips: gather and transform the data's parts, sum, then transform and scatter the recovery's."""
    bases = ", ptr %to_basis, ptr %from_basis" if is_small else ""
    return f"""
define void @{name}(ptr %sources, i64 %source_count, ptr %targets, i64 %target_count, ptr %inverse, ptr %forward,
                    ptr %work, i64 %width, i64 %row_bytes, i64 %strip_bytes{bases}) {{
entry:
  %table_count = sub i64 %width, 1
  %table_bytes = mul i64 %table_count, {TABLE_BYTES}
  br label %strip
strip:
  %start = phi i64 [0, %entry], [%start_next, %strip_end]
  %rest = sub i64 %row_bytes, %start
  %bytes = call i64 @llvm.umin.i64(i64 %rest, i64 %strip_bytes)
  %size = mul i64 %bytes, %width
  %part = getelementptr i8, ptr %work, i64 %size
  br label %data
data:
  %data_first = phi i64 [0, %strip], [%data_next, %data_end]
  %data_tables = phi ptr [%inverse, %strip], [%data_tables_next, %data_end]
  %is_first = icmp eq i64 %data_first, 0
  %into = select i1 %is_first, ptr %work, ptr %part
  %data_rest = sub i64 %source_count, %data_first
  %data_rows = call i64 @llvm.umin.i64(i64 %data_rest, i64 %width)
  br label %gather
{_write_copies("gather", "data", "pad", "%sources", "%into", is_gather=True, is_small=is_small)}
pad:
  %filled = mul i64 %data_rows, %bytes
  %empty_at = getelementptr i8, ptr %into, i64 %filled
  %empty = sub i64 %size, %filled
  call void @llvm.memset.p0.i64(ptr %empty_at, i8 0, i64 %empty, i1 false)
  call void @inverse(ptr %into, i64 %size, i64 %bytes, ptr %data_tables)
  br i1 %is_first, label %data_end, label %sum
sum:
  %sum_offset = phi i64 [0, %pad], [%sum_next, %sum]
  %sum_at = getelementptr i8, ptr %work, i64 %sum_offset
  %add_at = getelementptr i8, ptr %part, i64 %sum_offset
  %sum_old = load <64 x i8>, ptr %sum_at, align 1
  %sum_add = load <64 x i8>, ptr %add_at, align 1
  %sum_new = xor <64 x i8> %sum_old, %sum_add
  store <64 x i8> %sum_new, ptr %sum_at, align 1
  %sum_next = add i64 %sum_offset, {CHUNK_BYTES}
  %sum_more = icmp ult i64 %sum_next, %size
  br i1 %sum_more, label %sum, label %data_end
data_end:
  %data_tables_next = getelementptr i8, ptr %data_tables, i64 %table_bytes
  %data_next = add i64 %data_first, %width
  %data_more = icmp ult i64 %data_next, %source_count
  br i1 %data_more, label %data, label %recovery
recovery:
  %recovery_first = phi i64 [0, %data_end], [%recovery_next, %recovery_end]
  %recovery_tables = phi ptr [%forward, %data_end], [%recovery_tables_next, %recovery_end]
  %recovery_rest = sub i64 %target_count, %recovery_first
  %recovery_rows = call i64 @llvm.umin.i64(i64 %recovery_rest, i64 %width)
  %is_last = icmp ule i64 %recovery_rest, %width
  %out = select i1 %is_last, ptr %work, ptr %part
  %copied = select i1 %is_last, i64 0, i64 %size
  call void @llvm.memcpy.p0.p0.i64(ptr %part, ptr %work, i64 %copied, i1 false)
  call void @forward(ptr %out, i64 %size, i64 %bytes, ptr %recovery_tables)
  br label %scatter
{_write_copies("scatter", "recovery", "recovery_end", "%targets", "%out", is_gather=False, is_small=is_small)}
recovery_end:
  %recovery_tables_next = getelementptr i8, ptr %recovery_tables, i64 %table_bytes
  %recovery_next = add i64 %recovery_first, %width
  %recovery_more = icmp ult i64 %recovery_next, %target_count
  br i1 %recovery_more, label %recovery, label %strip_end
strip_end:
  %start_next = add i64 %start, %bytes
  %strips_more = icmp ult i64 %start_next, %row_bytes
  br i1 %strips_more, label %strip, label %end
end:
  ret void
}}"""


def _write_copies(
    name: str, before: str, after: str, rows: str, packed: str, *, is_gather: bool, is_small: bool
) -> str:
    """A loop that copies a strip of each of a part's rows to where strips lie packed, or back."""
    source, target = (f"%{name}_row_at", f"%{name}_packed_at")[:: 1 if is_gather else -1]
    copy = f"  call void @llvm.memcpy.p0.p0.i64(ptr {target}, ptr {source}, i64 %bytes, i1 false)"
    if is_small:
        tables = "%to_basis" if is_gather else "%from_basis"
        copy = f"""  %{name}_rest = sub i64 %{before}_rows, %{name}_number
  %{name}_is_last = icmp eq i64 %{name}_rest, 1
  %{name}_step = select i1 %{name}_is_last, i64 0, i64 1
  %{name}_after = getelementptr ptr, ptr %{name}_place, i64 %{name}_step
  %{name}_row_after = load ptr, ptr %{name}_after
  %{name}_next_at = getelementptr i8, ptr %{name}_row_after, i64 %start
  call void @turn(ptr {target}, ptr {source}, i64 %bytes, ptr {tables}, ptr %{name}_next_at)"""
    return f"""{name}:
  %{name}_number = phi i64 [0, %{before}], [%{name}_next, %{name}]
  %{name}_index = add i64 %{before}_first, %{name}_number
  %{name}_place = getelementptr ptr, ptr {rows}, i64 %{name}_index
  %{name}_row = load ptr, ptr %{name}_place
  %{name}_row_at = getelementptr i8, ptr %{name}_row, i64 %start
  %{name}_offset = mul i64 %{name}_number, %bytes
  %{name}_packed_at = getelementptr i8, ptr {packed}, i64 %{name}_offset
{copy}
  %{name}_next = add i64 %{name}_number, 1
  %{name}_more = icmp ult i64 %{name}_next, %{before}_rows
  br i1 %{name}_more, label %{name}, label %{after}"""
