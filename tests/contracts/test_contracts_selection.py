"""The jury draw: Python and contract agree on every input, and the draw follows the stakes."""

import json
from collections import Counter
from pathlib import Path

import boa
import pytest
import vyper
from hypothesis import given, settings
from hypothesis import strategies as st
from vyper.compiler.input_bundle import FilesystemInputBundle
from vyper.compiler.settings import Settings

import deaios.ledger
from deaios.ledger.selection import InvalidRoster, decode_snapshot, draw_jury, jury_size, quorum
from deaios.primitives.hashing import keccak256
from deaios.primitives.keys import Address, checksum_address

POWER_MAX = 2**96 - 1
powers = st.integers(1, 5) | st.integers(1, POWER_MAX) | st.just(POWER_MAX)


@pytest.fixture(scope="module")
def harness():
    contracts = Path(deaios.ledger.__file__).parent / "contracts"
    bundle = FilesystemInputBundle([contracts, Path(__file__).parent])
    output = vyper.compile_from_file_input(
        bundle.load_file(Path("SelectionHarness.vy")),
        input_bundle=bundle,
        output_formats=["abi", "bytecode"],
        settings=Settings(evm_version="cancun"),
    )
    address, _ = boa.env.deploy_code(bytecode=bytes.fromhex(output["bytecode"][2:]))
    return boa.loads_abi(json.dumps(output["abi"]), name="SelectionHarness").at(address)


def member(index):
    return Address(keccak256(index.to_bytes(4))[:20])


def words(roster):
    return [power << 160 | int.from_bytes(address) for address, power in roster]


@given(
    stakes=st.lists(powers, max_size=40),
    data=st.data(),
    value=st.binary(min_size=32, max_size=32),
    dispute_id=st.integers(0, 2**256 - 1),
    number=st.integers(0, 3),
)
@settings(max_examples=150, deadline=None)
def test_python_draws_what_the_contract_draws(harness, stakes, data, value, dispute_id, number):
    count = data.draw(st.integers(0, len(stakes)))
    roster = [(member(i), power) for i, power in enumerate(stakes)]
    drawn = draw_jury(value, dispute_id, number, roster, count)
    assert len(set(drawn)) == count
    on_chain = harness.draw(value, dispute_id, number, words(roster), count)
    assert on_chain == [checksum_address(juror) for juror in drawn]
    assert decode_snapshot(words(roster)) == tuple(roster)


def test_the_largest_draw(harness):
    roster = [(member(i), POWER_MAX) for i in range(256)]
    drawn = draw_jury(bytes(32), 1, 0, roster, 64)
    assert harness.draw(bytes(32), 1, 0, words(roster), 64) == [checksum_address(juror) for juror in drawn]


def test_first_seats_follow_the_stakes():
    """Ten thousand draws of one juror of three with stakes 1 : 2 : 7, within five standard deviations."""
    roster = [(member(0), 1), (member(1), 2), (member(2), 7)]
    drawn = Counter(draw_jury(keccak256(n.to_bytes(4)), 1, 0, roster, 1)[0] for n in range(10_000))
    for address, power in roster:
        share = power / 10
        assert abs(drawn[address] - 10_000 * share) < 5 * (10_000 * share * (1 - share)) ** 0.5


def test_a_changed_input_changes_the_draw():
    roster = [(member(i), 10) for i in range(200)]
    base = draw_jury(bytes(32), 1, 0, roster, 20)
    assert draw_jury(bytes(31) + b"\x01", 1, 0, roster, 20) != base
    assert draw_jury(bytes(32), 2, 0, roster, 20) != base
    assert draw_jury(bytes(32), 1, 1, roster, 20) != base


@pytest.mark.parametrize(
    ("roster", "count"),
    [
        ([(member(0), 1)], 2),
        ([(member(0), 1)], -1),
        ([(member(0), 0)], 1),
        ([(member(0), 2**96)], 1),
        ([(member(i), 1) for i in range(257)], 1),
        ([(member(i), 1) for i in range(100)], 65),
    ],
)
def test_what_the_contract_could_not_have_drawn_is_refused(roster, count):
    with pytest.raises(InvalidRoster):
        draw_jury(bytes(32), 1, 0, roster, count)


def test_sizes_and_quorums():
    assert [quorum(n) for n in range(1, 8)] == [1, 2, 2, 3, 4, 4, 5]
    assert jury_size(3, 100, appealed=False) == 3
    assert [jury_size(3, eligible, appealed=True) for eligible in (3, 6, 7, 100)] == [3, 6, 7, 7]
