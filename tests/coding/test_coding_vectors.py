"""Frozen vectors of docs/spec/coding.md, and the product against the slow reference."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from deaios.coding.combinations import Combiner, draw_coefficients
from deaios.coding.field import multiply, pack_symbols, unpack_symbols
from deaios.coding.matrix import encode
from deaios.coding.parameters import Parameters, Profile

sys.path.insert(0, str(Path(__file__).parent))
import reference_code

VECTORS = json.loads((Path(__file__).parents[2] / "docs/spec/coding-vectors.json").read_text())


def build_payload(length):
    blocks = (hashlib.sha256(f"deaios coding vector/{i}".encode()).digest() for i in range(-(-length // 32)))
    return b"".join(blocks)[:length]


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda v: f"{v['dataRows']},{v['rows']},{v['length']}")
def test_encoding_equals_the_frozen_vector(vector):
    payload = build_payload(vector["length"])
    matrix = encode(payload, Profile(vector["dataRows"], vector["rows"]))
    parameters = matrix.head.parameters
    assert {
        "dataRows": parameters.profile.data_rows,
        "rows": parameters.profile.rows,
        "length": parameters.length,
        "payloadSha256": "0x" + hashlib.sha256(payload).hexdigest(),
        "tests": parameters.profile.tests,
        "rowBytes": parameters.row_bytes,
        "rowsSha256": "0x" + hashlib.sha256(matrix.rows.tobytes()).hexdigest(),
        "root": "0x" + matrix.root.hex(),
        "ySha256": "0x" + hashlib.sha256(matrix.y).hexdigest(),
        "y": "0x" + matrix.y.hex() if len(matrix.y) <= 256 else None,
        "commitment": "0x" + matrix.commitment.hex(),
    } == vector


def test_products_equal_the_frozen_ones_and_carry_less_arithmetic():
    for left, right, product in VECTORS["products"]:
        assert int(multiply(np.array([left], np.uint16), np.array([right], np.uint16))[0]) == product
        assert reference_code.multiply(left, right) == product


def test_number_of_tests_equals_the_frozen_ones():
    for data_rows, rows, tests in VECTORS["tests"]:
        assert Profile(data_rows, rows).tests == tests == reference_code.count_tests(data_rows, rows)


def test_whole_matrix_equals_the_reference():
    payload = build_payload(1500)
    matrix = encode(payload, Profile(1, 2))
    rows, root, y, commitment = reference_code.encode(payload, 1, 2)
    assert [matrix.get_row(index) for index in range(2)] == rows
    assert (matrix.root, matrix.y, matrix.commitment) == (root, y, commitment)


@pytest.mark.parametrize(("data_rows", "rows"), [(2, 3), (32, 64), (128, 256)])
@pytest.mark.parametrize("leaves", [1, 2, 13, 64, 65, 100])
def test_kernel_equals_field_arithmetic_on_every_geometry(data_rows, rows, leaves):
    parameters = Parameters(Profile(data_rows, rows), data_rows * leaves * 1024)
    root = hashlib.sha256(bytes([leaves, rows % 251])).digest()
    rng = np.random.default_rng(leaves)
    data = rng.integers(0, 256, (2, parameters.row_bytes), dtype=np.uint8)
    r1, r2, r3, r4 = draw_coefficients(root, parameters)
    symbols = unpack_symbols(data).reshape(2, len(r2), len(r1), 4, 8)
    expected = np.empty((2, parameters.profile.tests), np.uint16)
    for test in range(parameters.profile.tests):
        outer = multiply(r2[:, test, None], r1[None, :, test])
        inner = multiply(r3[:, test, None], r4[None, :, test])
        products = multiply(symbols, multiply(outer[:, :, None, None], inner[None, None])[None])
        expected[:, test] = np.bitwise_xor.reduce(products.reshape(2, -1), axis=1)
    assert np.array_equal(Combiner(root, parameters).combine(data), expected)


def test_symbols_survive_packing():
    symbols = np.arange(4 * 64, dtype=np.uint16).reshape(4, 64) * 257
    assert np.array_equal(unpack_symbols(pack_symbols(symbols)), symbols)
