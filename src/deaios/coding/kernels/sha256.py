"""SHA-256 of many short messages at once: leaves of 1 KiB and pairs of hashes, each with its tag byte at the end.

Two writings of one function. With the processor's SHA instructions some messages run side by side, because one alone
waits for its own results; with wide vectors each lane is a message of its own. All messages have one length, so the
padding block is a constant and its schedule is computed when the code is written. Source: FIPS 180-4.
"""

import ctypes
import hashlib
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from deaios.coding.kernels.assembly import Assembly, write_constant
from deaios.coding.kernels.compiler import compile_functions
from deaios.coding.kernels.machine import get_features
from deaios.coding.kernels.tiers import Tier, get_tier
from deaios.primitives.hashing import HASH_BYTES

BLOCK_BYTES = 64
PADDED_MAX = 4
"""Fewer messages than lanes are hashed in lanes as long as one in so many is used."""
STREAMS = 4
"""Messages side by side in the SHA instructions. On Zen 3 a block takes 78 cycles with two, 69 with four, 65 with six,
but six lose more where another thread shares the core."""

ROUNDS = 64
WORDS = 16
_MASK = 0xFFFFFFFF
_SIGNATURES = {
    "hash": (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p),
    "climb": (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
}


def _first_primes(count: int) -> list[int]:
    primes: list[int] = []
    number = 2
    while len(primes) < count:
        if all(number % prime for prime in primes):
            primes.append(number)
        number += 1
    return primes


def _root_bits(number: int, degree: int) -> int:
    """First 32 bits of the fractional part of a root, in exact integers."""
    scaled = number << (32 * degree)
    low, high = 0, 1 << (32 + number.bit_length())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**degree <= scaled else (low, middle - 1)
    return low & _MASK


ROUND_CONSTANTS = tuple(_root_bits(prime, 3) for prime in _first_primes(ROUNDS))
"""Cube roots of the first 64 primes."""
START = tuple(_root_bits(prime, 2) for prime in _first_primes(8))
"""Square roots of the first 8."""


@dataclass(frozen=True, slots=True)
class Hasher:
    """Hashes messages of one length.

    Attributes:
        message_bytes: of each message, without the tag; a multiple of 64.
        tag: last byte of each message.
    """

    message_bytes: int
    tag: int

    def hash(self, messages: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Hash messages that lie one after another.

        Args:
            messages: any shape, C order, a whole number of messages.

        Returns:
            (messages, 32) uint8.
        """
        assert messages.flags.c_contiguous
        assert messages.size % self.message_bytes == 0
        count = messages.size // self.message_bytes
        hashes = np.empty((count, HASH_BYTES), np.uint8)
        kernel = _find_kernel(self.message_bytes, self.tag)
        if kernel is None or count * PADDED_MAX < kernel.least:
            self._hash_each(messages, hashes)
        elif count < kernel.least:
            padded = np.zeros((kernel.least, self.message_bytes), np.uint8)
            padded.reshape(-1)[: messages.size] = messages.reshape(-1)
            return self.hash(padded)[:count]
        elif count:
            kernel.hash(messages.ctypes.data, count, hashes.ctypes.data)
        return hashes

    def climb(self, hashes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Hash pairs of hashes, pairs of what comes out, and so on until each tree has one.

        Args:
            hashes: (trees, width, 32) uint8, C order, width a power of two.

        Returns:
            (trees * (width - 1), 32) uint8: the levels one after another, first that of half the width, last the tops.
        """
        assert hashes.flags.c_contiguous
        assert self.message_bytes == 2 * HASH_BYTES
        trees, width, _ = hashes.shape
        assert width & (width - 1) == 0, "trees are full"
        nodes = np.empty((trees * (width - 1), HASH_BYTES), np.uint8)
        kernel = _find_kernel(self.message_bytes, self.tag)
        assert kernel is not None, "every tier has one for single blocks"
        kernel.climb(hashes.ctypes.data, trees * width, trees, nodes.ctypes.data)
        start = 0
        while width > 1:
            width //= 2
            count = trees * width
            if count < kernel.least:
                nodes[start : start + count] = self.hash(nodes[start - 2 * count : start] if start else hashes)
            start += count
        return nodes

    def _hash_each(self, messages: NDArray[np.uint8], hashes: NDArray[np.uint8]) -> None:
        hash_start, tag = hashlib.sha256, bytes([self.tag])
        digests = []
        for (message,) in struct.iter_unpack(f"{self.message_bytes}s", messages.reshape(-1).data):
            state = hash_start(message)
            state.update(tag)
            digests.append(state.digest())
        hashes.reshape(-1)[:] = np.frombuffer(b"".join(digests), np.uint8)


@dataclass(frozen=True, slots=True)
class _Kernel:
    """Compiled code of one hasher.

    Attributes:
        hash: of messages.
        climb: all levels of some trees that have `least` hashes or more.
        least: messages that `hash` needs at least.
    """

    hash: Callable[..., None]
    climb: Callable[..., None]
    least: int


@cache
def _find_kernel(message_bytes: int, tag: int) -> _Kernel | None:
    """The tier's kernel; None where hashlib is as good, as for long messages: the processor may help it there."""
    lanes = {Tier.PORTABLE: 8, Tier.AVX2: 8, Tier.AVX512: 16}[get_tier()]
    blocks = message_bytes // BLOCK_BYTES
    if get_tier() == Tier.PORTABLE and blocks > 1:
        return None
    if get_tier() == Tier.AVX2 and "sha" in get_features():
        least, code = 1, write_streams("hash", blocks, tag, STREAMS)
    else:
        least, code = lanes, write_lanes("hash", blocks, tag, lanes)
    functions = compile_functions(f"{code}\n{write_climb('climb', 'hash', least)}", _SIGNATURES)
    return _Kernel(functions["hash"], functions["climb"], least)


def write_climb(name: str, hash_name: str, least: int) -> str:
    """`name(hashes, count, trees, nodes)`: level after level while there are `least` pairs, one of each tree."""
    return f"""
define void @{name}(ptr %hashes, i64 %count, i64 %trees, ptr %nodes) {{
entry:
  br label %level
level:
  %source = phi ptr [%hashes, %entry], [%target, %work]
  %target = phi ptr [%nodes, %entry], [%target_next, %work]
  %width = phi i64 [%count, %entry], [%pairs, %work]
  %pairs = lshr i64 %width, 1
  %below = icmp uge i64 %pairs, %trees
  %enough = icmp uge i64 %pairs, {least}
  %more = and i1 %below, %enough
  br i1 %more, label %work, label %end
work:
  call void @{hash_name}(ptr %source, i64 %pairs, ptr %target)
  %target_bytes = mul i64 %pairs, {HASH_BYTES}
  %target_next = getelementptr i8, ptr %target, i64 %target_bytes
  br label %level
end:
  ret void
}}
"""


def _pad(blocks: int, tag: int) -> list[int]:
    """Words of the last block: the tag, the end mark, the length in bits."""
    bits = 8 * (blocks * BLOCK_BYTES + 1)
    return [tag << 24 | 0x800000, *[0] * 13, bits >> 32, bits & _MASK]


def _rotate(word: int, count: int) -> int:
    return (word >> count | word << (32 - count)) & _MASK


def expand(words: Sequence[int]) -> list[int]:
    """The 64 words of a block's schedule."""
    schedule = list(words)
    for place in range(WORDS, ROUNDS):
        early, late = schedule[place - 15], schedule[place - 2]
        low = _rotate(early, 7) ^ _rotate(early, 18) ^ early >> 3
        high = _rotate(late, 17) ^ _rotate(late, 19) ^ late >> 10
        schedule.append((schedule[place - 16] + low + schedule[place - 7] + high) & _MASK)
    return schedule


# With the processor's SHA instructions

_QUAD = "<4 x i32>"
_SHA_DECLARATIONS = f"""
declare {_QUAD} @llvm.x86.sha256rnds2({_QUAD}, {_QUAD}, {_QUAD})
declare {_QUAD} @llvm.x86.sha256msg1({_QUAD}, {_QUAD})
declare {_QUAD} @llvm.x86.sha256msg2({_QUAD}, {_QUAD})
declare {_QUAD} @llvm.bswap.v4i32({_QUAD})
declare i64 @llvm.umin.i64(i64, i64)
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
"""
_State = tuple[str, str]
"""Words A, B, E, F and C, D, G, H of one message, in the order of the instructions."""


def write_streams(name: str, blocks: int, tag: int, streams: int) -> str:
    """`name(messages, count, hashes)`, some messages at a time; where fewer are left the last runs several times.

    The next messages are asked of the memory while these run: the processor does not foresee so many short streams.
    """
    code = Assembly()
    code.line(f"define void @{name}(ptr %messages, i64 %count, ptr %hashes) {{")
    code.line("entry:")
    code.line("  %last = sub i64 %count, 1")
    code.line("  br label %group")
    code.line("group:")
    code.line("  %index = phi i64 [0, %entry], [%next, %end]")
    sources, targets = [], []
    for number in range(streams):
        wanted = code.value(f"add i64 %index, {number}")
        index = code.value(f"call i64 @llvm.umin.i64(i64 {wanted}, i64 %last)")
        sources.append(code.at("%messages", code.value(f"mul i64 {index}, {blocks * BLOCK_BYTES}")))
        targets.append(code.at("%hashes", code.value(f"mul i64 {index}, {HASH_BYTES}")))
    code.line("  br label %block")
    code.line("block:")
    code.line("  %number = phi i64 [0, %group], [%number_next, %block]")
    starts: list[_State] = []
    for number in range(streams):
        for half, places in (("ab", (5, 4, 1, 0)), ("cd", (7, 6, 3, 2))):
            start = write_constant(START[place] for place in places)
            code.line(f"  %{half}{number} = phi {_QUAD} [{start}, %group], [%{half}_end{number}, %block]")
        starts.append((f"%ab{number}", f"%cd{number}"))
    offset = code.value(f"mul i64 %number, {BLOCK_BYTES}")
    heads = [code.at(source, offset) for source in sources]
    for head in heads:
        ahead = code.at(head, streams * blocks * BLOCK_BYTES)
        code.line(f"  call void @llvm.prefetch.p0(ptr {ahead}, i32 0, i32 3, i32 1)")
    ends = _write_block(code, heads, starts)
    for number, (ab, cd) in enumerate(ends):
        code.line(f"  %ab_end{number} = add {_QUAD} {ab}, %ab{number}")
        code.line(f"  %cd_end{number} = add {_QUAD} {cd}, %cd{number}")
    code.line("  %number_next = add i64 %number, 1")
    code.line(f"  %more = icmp ult i64 %number_next, {blocks}")
    code.line("  br i1 %more, label %block, label %end")
    code.line("end:")
    _write_padding(code, targets, expand(_pad(blocks, tag)))
    code.line(f"  %next = add i64 %index, {streams}")
    code.line("  %again = icmp ult i64 %next, %count")
    code.line("  br i1 %again, label %group, label %done")
    code.line("done:")
    code.line("  ret void")
    code.line("}")
    return str(code) + _SHA_DECLARATIONS


def _write_block(code: Assembly, sources: Sequence[str], starts: Sequence[_State]) -> list[_State]:
    """64 rounds over the blocks at these pointers, message by message in every group of four rounds."""
    turned = [4 * (place // 4) + 3 - place % 4 for place in range(16)]
    states = list(starts)
    schedules: list[list[str]] = [[] for _ in sources]
    for group in range(ROUNDS // 4):
        for number, source in enumerate(sources):
            schedule = schedules[number]
            if group < 4:
                data = code.load("<16 x i8>", source, 16 * group)
                data = code.shuffle("<16 x i8>", data, "poison", turned)
                schedule.append(code.value(f"bitcast <16 x i8> {data} to {_QUAD}"))
            else:
                first, second, third, fourth = schedule[-4:]
                part = code.value(f"call {_QUAD} @llvm.x86.sha256msg1({_QUAD} {first}, {_QUAD} {second})")
                shifted = code.shuffle(_QUAD, third, fourth, (1, 2, 3, 4))
                part = code.value(f"add {_QUAD} {part}, {shifted}")
                schedule.append(code.value(f"call {_QUAD} @llvm.x86.sha256msg2({_QUAD} {part}, {_QUAD} {fourth})"))
            constants = write_constant(ROUND_CONSTANTS[4 * group : 4 * group + 4])
            words = code.value(f"add {_QUAD} {schedule[-1]}, {constants}")
            states[number] = _write_rounds(code, states[number], words)
    return states


def _write_rounds(code: Assembly, state: _State, words: str) -> _State:
    """Four rounds with these words, constants added."""
    ab, cd = state
    middle = code.value(f"call {_QUAD} @llvm.x86.sha256rnds2({_QUAD} {cd}, {_QUAD} {ab}, {_QUAD} {words})")
    rest = code.shuffle(_QUAD, words, "poison", (2, 3, 2, 3))
    end = code.value(f"call {_QUAD} @llvm.x86.sha256rnds2({_QUAD} {ab}, {_QUAD} {middle}, {_QUAD} {rest})")
    return end, middle


def _write_padding(code: Assembly, targets: Sequence[str], schedule: Sequence[int]) -> None:
    """The constant last block, and the hashes to where they belong."""
    states: list[_State] = [(f"%ab_end{number}", f"%cd_end{number}") for number in range(len(targets))]
    for group in range(0, ROUNDS, 4):
        words = write_constant(
            (word + constant) & _MASK
            for word, constant in zip(schedule[group : group + 4], ROUND_CONSTANTS[group : group + 4], strict=True)
        )
        states = [_write_rounds(code, state, words) for state in states]
    for number, state in enumerate(states):
        ab = code.value(f"add {_QUAD} {state[0]}, %ab_end{number}")
        cd = code.value(f"add {_QUAD} {state[1]}, %cd_end{number}")
        for half, places in enumerate(((3, 2, 7, 6), (1, 0, 5, 4))):
            words = code.shuffle(_QUAD, ab, cd, places)
            words = code.value(f"call {_QUAD} @llvm.bswap.v4i32({_QUAD} {words})")
            code.store(_QUAD, words, targets[number], 16 * half)


# With wide vectors


def write_lanes(name: str, blocks: int, tag: int, lanes: int) -> str:
    """`name(messages, count, hashes)`, a message per lane; count must be at least the number of lanes.

    A last group that is not full begins earlier and hashes some messages again.
    """
    return str(_Lanes(name, blocks, tag, lanes))


class _Lanes:
    """Writes the function of one width."""

    def __init__(self, name: str, blocks: int, tag: int, lanes: int) -> None:
        self._lanes = lanes
        self._kind = f"<{lanes} x i32>"
        self._code = code = Assembly()
        code.line(f"define void @{name}(ptr %messages, i64 %count, ptr %hashes) {{")
        code.line("entry:")
        code.line(f"  %last = sub i64 %count, {lanes}")
        code.line("  br label %group")
        code.line("group:")
        code.line("  %wanted = phi i64 [0, %entry], [%next, %end]")
        code.line("  %index = call i64 @llvm.umin.i64(i64 %wanted, i64 %last)")
        source = code.at("%messages", code.value(f"mul i64 %index, {blocks * BLOCK_BYTES}"))
        target = code.at("%hashes", code.value(f"mul i64 %index, {HASH_BYTES}"))
        code.line("  br label %block")
        code.line("block:")
        code.line("  %number = phi i64 [0, %group], [%number_next, %block]")
        for place, word in enumerate(START):
            code.line(f"  %s{place} = phi {self._kind} [{self._spread(word)}, %group], [%e{place}, %block]")
        words = self._gather(code.at(source, code.value(f"mul i64 %number, {BLOCK_BYTES}")), blocks)
        state = [f"%s{place}" for place in range(8)]
        for place in range(ROUNDS):
            if place >= WORDS:
                words.append(self._expand(words[place - 16], words[place - 15], words[place - 7], words[place - 2]))
            state = self._round(state, self._two("add", words[place], self._spread(ROUND_CONSTANTS[place])))
        for place, end in enumerate(state):
            code.line(f"  %e{place} = add {self._kind} {end}, %s{place}")
        code.line("  %number_next = add i64 %number, 1")
        code.line(f"  %more = icmp ult i64 %number_next, {blocks}")
        code.line("  br i1 %more, label %block, label %end")
        code.line("end:")
        state = [f"%e{place}" for place in range(8)]
        for word, constant in zip(expand(_pad(blocks, tag)), ROUND_CONSTANTS, strict=True):
            state = self._round(state, self._spread((word + constant) & _MASK))
        self._scatter([self._two("add", word, f"%e{place}") for place, word in enumerate(state)], target)
        code.line(f"  %next = add i64 %wanted, {lanes}")
        code.line("  %again = icmp ult i64 %next, %count")
        code.line("  br i1 %again, label %group, label %done")
        code.line("done:")
        code.line("  ret void")
        code.line("}")

    def __str__(self) -> str:
        kind, width = self._kind, self._lanes
        return (
            f"{self._code}\n"
            f"declare {kind} @llvm.fshr.v{width}i32({kind}, {kind}, {kind})\n"
            f"declare {kind} @llvm.bswap.v{width}i32({kind})\n"
            "declare i64 @llvm.umin.i64(i64, i64)\n"
        )

    def _spread(self, word: int) -> str:
        return write_constant([word] * self._lanes)

    def _two(self, operation: str, left: str, right: str) -> str:
        return self._code.value(f"{operation} {self._kind} {left}, {right}")

    def _mix(self, first: str, second: str, third: str) -> str:
        return self._two("xor", self._two("xor", first, second), third)

    def _rotate(self, word: str, count: int) -> str:
        kind = self._kind
        call = f"call {kind} @llvm.fshr.v{self._lanes}i32({kind} {word}, {kind} {word}, {kind} {self._spread(count)})"
        return self._code.value(call)

    def _swap(self, word: str) -> str:
        return self._code.value(f"call {self._kind} @llvm.bswap.v{self._lanes}i32({self._kind} {word})")

    def _gather(self, source: str, blocks: int) -> list[str]:
        """Word t of every message in vector t: rows of words, turned into columns in square parts."""
        words = []
        for start in range(0, WORDS, self._lanes):
            rows = [
                self._code.load(self._kind, source, message * blocks * BLOCK_BYTES + 4 * start)
                for message in range(self._lanes)
            ]
            words += [self._swap(column) for column in self._transpose(rows)]
        return words

    def _transpose(self, rows: list[str]) -> list[str]:
        width = self._lanes
        step = width // 2
        while step:
            turned = list(rows)
            for place in range(width):
                if place & step:
                    continue
                pair = rows[place], rows[place | step]
                low = [at if not at & step else width + (at ^ step) for at in range(width)]
                high = [at | step if not at & step else width + at for at in range(width)]
                turned[place] = self._code.shuffle(self._kind, *pair, low)
                turned[place | step] = self._code.shuffle(self._kind, *pair, high)
            rows = turned
            step //= 2
        return rows

    def _expand(self, oldest: str, early: str, middle: str, late: str) -> str:
        low = self._mix(
            self._rotate(early, 7), self._rotate(early, 18), self._two("lshr", early, self._spread(3))
        )  # fmt: skip
        high = self._mix(self._rotate(late, 17), self._rotate(late, 19), self._two("lshr", late, self._spread(10)))
        return self._two("add", self._two("add", oldest, low), self._two("add", middle, high))

    def _round(self, state: list[str], word: str) -> list[str]:
        a, b, c, d, e, f, g, h = state
        mixed = self._mix(self._rotate(e, 6), self._rotate(e, 11), self._rotate(e, 25))
        chosen = self._two("xor", g, self._two("and", e, self._two("xor", f, g)))
        first = self._two("add", self._two("add", h, mixed), self._two("add", chosen, word))
        mixed = self._mix(self._rotate(a, 2), self._rotate(a, 13), self._rotate(a, 22))
        most = self._two("or", self._two("and", a, b), self._two("and", c, self._two("or", a, b)))
        second = self._two("add", mixed, most)
        return [self._two("add", first, second), a, b, c, self._two("add", d, first), e, f, g]

    def _scatter(self, state: list[str], target: str) -> None:
        for place, word in enumerate(map(self._swap, state)):
            for lane in range(self._lanes):
                element = self._code.value(f"extractelement {self._kind} {word}, i32 {lane}")
                self._code.store("i32", element, target, lane * HASH_BYTES + 4 * place)
