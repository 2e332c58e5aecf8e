"""What an engine may hold, from memory, threads and the operator's wishes."""

import pytest

from deaios.compute.gguf_file import read_model_file
from deaios.compute.room import Room, compute_token_bytes, plan_room


def plan(**given):
    return plan_room(**{"token_bytes": 1000, "memory_bytes": 10**9, "threads": 2, "context_tokens": 2048, **given})


@pytest.mark.parametrize(
    ("given", "room"),
    [
        ({}, Room(16, 2048, 16 * 2048)),
        ({"threads": 32}, Room(64, 2048, 64 * 2048)),
        ({"sequences_max": 64}, Room(64, 2048, 64 * 2048)),
        ({"memory_bytes": 15_000_000}, Room(7, 2048, 7 * 2048)),
        ({"memory_bytes": 6_000_000}, Room(16, 2048, 6000)),
        ({"memory_bytes": 6_000_000, "sequences_max": 2}, Room(2, 2048, 2 * 2048)),
        ({"memory_bytes": 15_000_000, "sequences_max": 16}, Room(16, 2048, 15_000)),
        ({"memory_bytes": 1}, Room(16, 2048, 2048)),
        ({"memory_bytes": 1, "token_bytes": 0}, Room(16, 2048, 16 * 2048)),
        ({"tokens_max": 5000}, Room(16, 2048, 5000)),
        ({"tokens_max": 10**9, "sequences_max": 3}, Room(3, 2048, 3 * 2048)),
    ],
)
def test_room(given, room):
    assert plan(**given) == room


def test_an_id_of_the_default_model_takes_23_kb(model_files):
    assert compute_token_bytes(read_model_file(model_files.served)) == 30 * 3 * (64 + 64) * 2
