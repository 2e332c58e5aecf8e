"""docs/spec/coding.md once more, slowly, sharing no line with the product: what vectors and kernels are held to."""

import hashlib
from math import comb

import blake3
import reed_solomon_leopard

CANTOR = [
    0x0001, 0xACCA, 0x3C0E, 0x163E, 0xC582, 0xED2E, 0x914C, 0x4012,
    0x6C98, 0x10D8, 0x6A72, 0xB900, 0xFDB8, 0xFB34, 0xFF38, 0x991E,
]  # fmt: skip


def to_polynomial(element):
    """Cantor coordinates to the polynomial basis."""
    value = 0
    for bit in range(16):
        if element >> bit & 1:
            value ^= CANTOR[bit]
    return value


FROM_POLYNOMIAL = {to_polynomial(element): element for element in range(1 << 16)}


def multiply(left, right):
    """Product by carry-less multiplication modulo x^16 + x^5 + x^3 + x^2 + 1."""
    a, b, product = to_polynomial(left), to_polynomial(right), 0
    while b:
        if b & 1:
            product ^= a
        a <<= 1
        if a >> 16:
            a ^= 0x1002D
        b >>= 1
    return FROM_POLYNOMIAL[product]


def sha(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def top_of(hashes):
    while len(hashes) & (len(hashes) - 1):
        hashes = [*hashes, bytes(32)]
    while len(hashes) > 1:
        hashes = [sha(hashes[i], hashes[i + 1], b"\x01") for i in range(0, len(hashes), 2)]
    return hashes[0]


def count_tests(k, n):
    tests = 0
    while 2 ** (14 * tests) < 2**192 * comb(n, k + 1):
        tests += 1
    return tests


def parameters_of(k, n, length):
    return k.to_bytes(2, "big") + n.to_bytes(2, "big") + length.to_bytes(8, "big")


def encode(data, k, n):
    """Rows, root, y and commitment of a payload."""
    leaves = -(-len(data) // (k * 1024))
    size = 1024 * leaves
    padded = data + bytes(k * size - len(data))
    rows = [padded[i * size : (i + 1) * size] for i in range(k)]
    rows += reed_solomon_leopard.encode(rows, n - k)
    hashes = [sha(top_of([sha(row[i : i + 1024], b"\x00") for i in range(0, size, 1024)]), b"\x02") for row in rows]
    root = sha(top_of(hashes), b"\x03")
    y = b"".join(value.to_bytes(2, "little") for row in rows[:k] for value in combine(row, root, k, n, len(data)))
    return rows, root, y, sha(b"deaios/code/1", root, sha(y), parameters_of(k, n, len(data)))


def combine(row, root, k, n, length):
    """The tests of one row."""
    tests = count_tests(k, n)
    chunks = len(row) // 64
    blocks = max(size for size in range(1, 65) if chunks % size == 0)
    groups = chunks // blocks
    seed = sha(b"deaios/code/seed/1", root, parameters_of(k, n, length))
    raw = blake3.blake3(seed).digest(length=2 * tests * (blocks + groups + 12))
    numbers = [int.from_bytes(raw[i : i + 2], "little") for i in range(0, len(raw), 2)]

    def level(start, count):
        return [numbers[(start + i) * tests : (start + i + 1) * tests] for i in range(count)]

    r1, r2 = level(0, blocks), level(blocks, groups)
    r3, r4 = level(blocks + groups, 4), level(blocks + groups + 4, 8)
    result = []
    for test in range(tests):
        total = 0
        for group in range(groups):
            for block in range(blocks):
                base = (group * blocks + block) * 64
                part = 0
                for symbol in range(32):
                    value = row[base + symbol] | row[base + 32 + symbol] << 8
                    part ^= multiply(value, multiply(r3[symbol // 8][test], r4[symbol % 8][test]))
                total ^= multiply(part, multiply(r1[block][test], r2[group][test]))
        result.append(total)
    return result
