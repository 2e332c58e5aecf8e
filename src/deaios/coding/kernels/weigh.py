"""Sums of a chunk's 32 symbols, each times a constant of its own: the last step of random combinations.

A product is a sum over the bits of a symbol, so the tables hold every constant's products with the 16 single bits. The
code uses generic vectors only. Knows packed words, not the field.
"""

import ctypes
from functools import cache

import numpy as np
from numpy.typing import NDArray

from deaios.coding.kernels.assembly import Assembly
from deaios.coding.kernels.compiler import Function, compile_functions
from deaios.coding.kernels.multipliers import CHUNK_BYTES

SYMBOLS = 32
_BYTES, _WORDS = f"<{SYMBOLS} x i8>", f"<{SYMBOLS} x i16>"


class Weights:
    """Constants of 32 symbols, for each of some tests."""

    __slots__ = ("_arguments", "_function", "_tables")

    def __init__(self, tables: NDArray[np.uint16]) -> None:
        """Take tables, (tests, 16, 32): products of the constants of a test and every single bit."""
        self._tables = np.ascontiguousarray(tables)
        self._arguments = (self._tables.ctypes.data, len(tables))
        self._function = _compile()

    def weigh(self, chunks: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Sum the symbols of chunks.

        Args:
            chunks: (rows, tests and perhaps more, 64), C order.

        Returns:
            (rows, tests) uint16.
        """
        rows, width, _ = chunks.shape
        tests = len(self._tables)
        assert width >= tests
        assert chunks.flags.c_contiguous
        sums = np.empty((rows, tests), np.uint16)
        self._function(chunks.ctypes.data, rows, width * CHUNK_BYTES, *self._arguments, sums.ctypes.data)
        return sums


@cache
def _compile() -> Function:
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    signature = (pointer, number, number, pointer, number, pointer)
    return compile_functions(_write_code(), {"weigh": signature})["weigh"]


def _write_code() -> str:
    """`weigh(chunks, rows, bytes from one row's chunks to the next's, tables, tests, sums)`."""
    code = Assembly()
    sevens = ", ".join(["i8 7"] * SYMBOLS)
    total = "zeroinitializer"
    for half in range(2):
        symbols = code.load(_BYTES, "%chunk", half * SYMBOLS)
        for bit in range(8):
            shifts = ", ".join([f"i8 {7 - bit}"] * SYMBOLS)
            raised = code.value(f"shl {_BYTES} {symbols}, <{shifts}>")
            mask = code.value(f"ashr {_BYTES} {raised}, <{sevens}>")
            mask = code.value(f"sext {_BYTES} {mask} to {_WORDS}")
            products = code.load(_WORDS, "%table", (8 * half + bit) * 2 * SYMBOLS)
            total = code.value(f"xor {_WORDS} {total}, {code.value(f'and {_WORDS} {mask}, {products}')}")
    result = code.value(f"call i16 @llvm.vector.reduce.xor.v{SYMBOLS}i16({_WORDS} {total})")
    return f"""
define void @weigh(ptr %chunks, i64 %rows, i64 %row_bytes, ptr %tables, i64 %tests, ptr %sums) {{
entry:
  br label %row
row:
  %row_number = phi i64 [0, %entry], [%row_next, %row_end]
  %row_offset = mul i64 %row_number, %row_bytes
  %row_chunks = getelementptr i8, ptr %chunks, i64 %row_offset
  %first = mul i64 %row_number, %tests
  %row_sums = getelementptr i16, ptr %sums, i64 %first
  br label %test
test:
  %number = phi i64 [0, %row], [%number_next, %test]
  %chunk_offset = mul i64 %number, {CHUNK_BYTES}
  %chunk = getelementptr i8, ptr %row_chunks, i64 %chunk_offset
  %table_offset = mul i64 %number, {16 * 2 * SYMBOLS}
  %table = getelementptr i8, ptr %tables, i64 %table_offset
{code}
  %sum = getelementptr i16, ptr %row_sums, i64 %number
  store i16 {result}, ptr %sum
  %number_next = add i64 %number, 1
  %more_tests = icmp ult i64 %number_next, %tests
  br i1 %more_tests, label %test, label %row_end
row_end:
  %row_next = add i64 %row_number, 1
  %more_rows = icmp ult i64 %row_next, %rows
  br i1 %more_rows, label %row, label %end
end:
  ret void
}}
declare i16 @llvm.vector.reduce.xor.v{SYMBOLS}i16({_WORDS})
"""
