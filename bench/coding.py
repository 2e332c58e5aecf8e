"""The coding rows: encode, verify and decode against one SHA-256 pass over the same payload."""

import hashlib
import random
from collections.abc import Iterator

from bench.rows import Row, measure_pair
from deaios.coding.matrix import RowVerifier, decode, encode, prove_row
from deaios.coding.parameters import Profile

MIB = 1 << 20
PEER = "SHA-256, one pass"


def measure() -> Iterator[Row]:
    profile, size = Profile(64, 128), 16 * MIB
    data = random.Random(1).randbytes(size)

    def row(name: str, seconds: tuple[float, float], payload: int) -> Row:
        ours, peer = seconds
        return Row(name, payload / MIB / ours, "MiB per CPU-s", PEER, size / MIB / peer)

    def hash_once() -> bytes:
        return hashlib.sha256(data).digest()

    yield row("coding.encode_commit_portable", measure_pair(lambda: encode(data, profile), hash_once), size)
    matrix = encode(data, profile)
    chosen = random.Random(2).sample(range(profile.rows), profile.data_rows)
    rows = {index: bytes(matrix.get_row(index)) for index in chosen}
    proofs = {index: prove_row(matrix, index) for index in chosen}

    def verify_all() -> None:
        verifier = RowVerifier(matrix.commitment, matrix.head)
        assert all(verifier.verify(index, rows[index], proofs[index]) for index in chosen)

    yield row("coding.verify_row", measure_pair(verify_all, hash_once), sum(map(len, rows.values())))
    yield row("coding.decode_random", measure_pair(lambda: decode(matrix.head.parameters, rows), hash_once), size)
