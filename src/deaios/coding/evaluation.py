"""Elements as polynomials of degree 3 over GF(16), and their values: what the AVX2 tier sums instead of products.

The first four elements of the Cantor basis span GF(16), the first eight GF(256); any element outside of GF(256)
generates the field over GF(16). So an element is x0 + x1 t + x2 t^2 + x3 t^3 for one fixed t and half bytes x0 to x3.
The product of two such polynomials has degree 6: its value at t follows from the products of the values at seven points
(Lagrange), and values and weights are all that kernels need. Source: Toom and Cook's way to multiply, over a field.
"""

from functools import cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from deaios.coding.field import MODULUS, ORDER, build_tables, multiply
from deaios.coding.kernels.values import CONSTANTS, POINTS

GENERATOR = 0x100
"""t: the ninth element of the Cantor basis, the first outside of GF(256)."""

SMALL = 16
"""Elements of GF(16): half bytes."""

Element = TypeVar("Element", np.uint8, np.uint16)
_SINGLE_BITS = (1 << np.arange(16)).astype(np.uint16)


def compute_values(elements: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Values at the seven points 0 to 6 of GF(16): (...) to (..., 7), half bytes."""
    return _build_values()[elements]


@cache
def compute_weights() -> NDArray[np.uint16]:
    """By what a product's values are multiplied so that their sum is the product: (7,)."""
    log, exp = build_tables()
    points = np.arange(POINTS)
    between = log[points[:, None] ^ points[None, :]]
    np.fill_diagonal(between, 0)
    to_points = log[GENERATOR ^ points]
    weights: NDArray[np.uint16] = exp[(to_points.sum() - to_points - between.sum(axis=1)) % MODULUS]
    return weights


@cache
def build_maps() -> NDArray[np.uint8]:
    """Tables from the half bytes of a symbol to its values: (4 bytes of two values each, 4 half bytes, 16)."""
    places = (np.arange(SMALL)[None, :] << 4 * np.arange(4)[:, None]).astype(np.uint16)
    values = np.zeros((4, SMALL, 8), np.uint8)
    values[..., :POINTS] = compute_values(places)
    return np.ascontiguousarray(np.moveaxis(values[..., ::2] | values[..., 1::2] << 4, -1, 0))


def build_pairs(constants: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Products of the values of pairs of constants and every value: (size, count) to (7, passes, size, 2, 16).

    The last pass is filled with zeros.
    """
    size, count = constants.shape
    passes = -(-count // CONSTANTS)
    padded = np.zeros((size, passes * CONSTANTS), np.uint16)
    padded[:, :count] = constants
    first, second = np.moveaxis(compute_values(padded).reshape(size, passes, CONSTANTS // 2, 2, POINTS), 3, 0)
    tables: NDArray[np.uint8] = build_multiples()[np.ascontiguousarray((first | second << 4).transpose(3, 1, 0, 2))]
    return tables


def build_closings(constants: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Tables from values to symbols times a constant: (...) to (..., 7, 2 bytes of a symbol, 16)."""
    low, high = _build_closing_halves()
    tables: NDArray[np.uint8] = low[constants & 0xFF] ^ high[constants >> 8]
    return tables


def build_steps(constants: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Where in `build_multiples` the tables from values to products' digits stand, in bytes: (...) to (..., 7, 2)."""
    digits = _build_digits()[multiply(constants[..., None], compute_weights())]
    return np.stack((digits & 0xFF, digits >> 8), axis=-1) * np.uint16(SMALL)


@cache
def build_multiples() -> NDArray[np.uint8]:
    """Products of pairs of half bytes and every half byte: (256, 16)."""
    products = _build_small_products()
    multiples: NDArray[np.uint8] = (products[None, :] | products[:, None] << np.uint8(4)).reshape(-1, SMALL)
    return multiples


@cache
def build_basis() -> NDArray[np.uint16]:
    """What a bit of an element's digits x0 to x3 counts: (16,)."""
    digit_bits = [_SINGLE_BITS[:4]]
    for _ in range(3):
        digit_bits.append(multiply(digit_bits[-1], np.array(GENERATOR, np.uint16)))
    return np.concatenate(digit_bits)


@cache
def _build_digits() -> NDArray[np.uint16]:
    """Digits of all elements, four bits each: (65536,)."""
    digits = np.empty(ORDER, np.uint16)
    digits[_span(build_basis())] = np.arange(ORDER)
    return digits


@cache
def _build_values() -> NDArray[np.uint8]:
    """Values of all elements: (65536, 7)."""
    digits = _build_digits()[_SINGLE_BITS][:, None] >> np.uint16(4) * np.arange(4, dtype=np.uint16) & np.uint16(15)
    values = np.zeros((16, POINTS), np.uint16)
    points = np.arange(POINTS, dtype=np.uint16)
    for digit in digits.T[::-1]:  # Horner's rule
        values = multiply(values, points) ^ digit[:, None]
    return _span(values.astype(np.uint8))


@cache
def _build_small_products() -> NDArray[np.uint8]:
    """Products in GF(16): (16, 16)."""
    numbers = np.arange(SMALL, dtype=np.uint16)
    return multiply(numbers[:, None], numbers).astype(np.uint8)


@cache
def _build_closing_halves() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Tables of all constants with only a low byte, and with only a high byte: (256, 7, 2, 16) each."""
    weighted = multiply(compute_weights()[:, None], np.arange(SMALL, dtype=np.uint16))
    products = multiply(_SINGLE_BITS[:, None, None], weighted)
    bits = np.stack((products & 0xFF, products >> 8), axis=2).astype(np.uint8)
    return _span(bits[:8]), _span(bits[8:])


def _span(bits: NDArray[Element]) -> NDArray[Element]:
    """All sums of some elements: (count, ...) to (2^count, ...)."""
    sums = np.zeros((1 << len(bits), *bits.shape[1:]), bits.dtype)
    for bit, element in enumerate(bits):
        width = 1 << bit
        sums[width : 2 * width] = sums[:width] ^ element
    return sums
