"""The ABI codec against known vectors, against web3's, and against hostile bytes."""

from typing import Any

import pytest
from eth_abi import encode as reference_encode
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.ledger.abi import (
    DATA_BYTES_MAX,
    ERROR_SELECTOR,
    NESTED_BYTES_MAX,
    PANIC_SELECTOR,
    Event,
    EventField,
    Function,
    InvalidAbiData,
    decode_revert,
    decode_values,
    encode_values,
    parse_abi,
)
from deaios.ledger.artifacts import NAMES, load_artifact

ADDRESS = bytes.fromhex("5b38da6a701c568545dcfcb03fcb875f56beddc4")


def word(value: int) -> bytes:
    return value.to_bytes(32)


def test_known_selectors() -> None:
    assert Function("transfer", ("address", "uint256"), ("bool",)).selector.hex() == "a9059cbb"
    assert ERROR_SELECTOR.hex() == "08c379a0"
    assert PANIC_SELECTOR.hex() == "4e487b71"
    transfer = Event(
        "Transfer",
        (EventField("from", "address", True), EventField("to", "address", True), EventField("value", "uint256", False)),
    )
    assert transfer.topic.hex() == "ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"


def test_known_call() -> None:
    """The example of the ABI specification: f(uint256,uint32[],bytes10,bytes)."""
    function = Function("f", ("uint256", "uint32[]", "bytes10", "bytes"), ())
    data = function.encode_call((0x123, (0x456, 0x789), b"1234567890", b"Hello, world!"))
    expected = (
        bytes.fromhex("8be65246")
        + word(0x123)
        + word(0x80)
        + b"1234567890".ljust(32, b"\0")
        + word(0xE0)
        + word(2)
        + word(0x456)
        + word(0x789)
        + word(13)
        + b"Hello, world!".ljust(32, b"\0")
    )
    assert data == expected


VALUES = st.tuples(
    st.binary(min_size=20, max_size=20),
    st.integers(0, 2**256 - 1),
    st.booleans(),
    st.binary(max_size=70),
    st.lists(st.tuples(st.text(st.characters(exclude_categories=("Cs",)), max_size=9), st.binary(max_size=40))).map(
        tuple
    ),
    st.lists(st.binary(min_size=32, max_size=32), max_size=4).map(tuple),
)
KINDS = ("address", "uint256", "bool", "bytes", "(string,bytes)[]", "bytes32[]")


@settings(max_examples=80, deadline=None)
@given(VALUES)
def test_round_trip_and_reference(values: tuple[Any, ...]) -> None:
    data = encode_values(KINDS, values)
    assert data == reference_encode(KINDS, values)
    assert decode_values(KINDS, data) == values


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("address", b"\x01" * 19),
        ("address", b"\x01" * 21),
        ("address", "0x" + "01" * 20),
        ("bytes32", b"\x01" * 31),
        ("bytes32", "x"),
        ("bytes", "text"),
        ("string", b"bytes"),
        ("string", "\ud800"),
        ("uint8", 256),
        ("uint256", -1),
        ("uint256", True),
        ("uint256", 1.0),
        ("uint256", "1"),
        ("uint256", None),
        ("bool", 1),
        ("uint8[]", 1),
        ("uint8[2]", (1,)),
        ("(uint8,bool)", (1,)),
        ("(uint8,bool)", {"a": 1}),
        ("(uint8,bool)[]", ((1, True, 1),)),
    ],
)
def test_values_are_never_converted(kind: str, value: Any) -> None:
    with pytest.raises(InvalidAbiData):
        encode_values((kind,), (value,))


def test_wrong_number_of_arguments() -> None:
    with pytest.raises(InvalidAbiData, match="takes 2 arguments, 1 given"):
        Function("f", ("bool", "bool"), ()).encode_call((True,))


@pytest.mark.parametrize("kind", ["uint257", "bytes33", "nothing", "(uint8", "", "uint256[-1]"])
def test_unknown_types(kind: str) -> None:
    with pytest.raises(InvalidAbiData):
        encode_values((kind,), (1,))


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=400), st.sampled_from([("bytes",), ("string",), ("(uint256,address,string)",), KINDS, ("bool",)])
)
def test_any_bytes_decode_or_are_refused(data: bytes, kinds: tuple[str, ...]) -> None:
    try:
        values = decode_values(kinds, data)
    except InvalidAbiData:
        return
    assert decode_values(kinds, encode_values(kinds, values)) == values


@pytest.mark.parametrize(
    ("kinds", "data"),
    [
        (("bool",), word(2)),
        (("address",), b"\x01" + bytes(31)),
        (("uint8",), word(256)),
        (("bytes",), word(32) + word(2**255)),
        (("bytes",), word(2**255) + word(0)),
        (("bytes[]",), word(32) + word(2**40)),
        (("string",), word(32) + word(2) + b"\xff\xfe".ljust(32, b"\0")),
        (("uint256",), b""),
        (("uint256",), bytes(DATA_BYTES_MAX + 1)),
    ],
    ids=range(9),
)
def test_hostile_bytes(kinds: tuple[str, ...], data: bytes) -> None:
    with pytest.raises(InvalidAbiData):
        decode_values(kinds, data)


def test_many_offsets_at_one_text_are_bounded() -> None:
    count = NESTED_BYTES_MAX // 32
    bomb = word(32) + word(count) + word(32 * count) * count + word(NESTED_BYTES_MAX) + bytes(NESTED_BYTES_MAX)
    with pytest.raises(InvalidAbiData, match=f"exceed {NESTED_BYTES_MAX}"):
        decode_values(("bytes[]",), bomb)


def test_revert_reasons() -> None:
    said = ERROR_SELECTOR + encode_values(("string",), ("no " * 200,))
    assert decode_revert(said) == ("no " * 200)[:200]
    assert decode_revert(PANIC_SELECTOR + word(0x11)) == "panic 0x11"
    assert decode_revert(b"") == "reverted without a reason"
    assert decode_revert(b"\x01\x02\x03\x04") == "reverted with data 0x01020304"
    assert decode_revert(ERROR_SELECTOR + b"\xff" * 64).startswith("reverted with malformed data 0x08c379a0ff")
    assert decode_revert(ERROR_SELECTOR + word(32) + word(1) + b"\xff" + bytes(31)).startswith(
        "reverted with malformed"
    )


def test_event_topics_must_fit() -> None:
    event = Event(
        "E", (EventField("who", "address", True), EventField("text", "string", True), EventField("n", "uint8", False))
    )
    topics = [event.topic, bytes(12) + ADDRESS, word(7)]
    assert event.decode(topics, word(3)) == {"who": ADDRESS, "text": word(7), "n": 3}
    for bad in ([], topics[:2], [*topics, word(1)], [word(0), *topics[1:]], [topics[0], b"\x01", word(7)]):
        with pytest.raises(InvalidAbiData):
            event.decode(bad, word(3))
    with pytest.raises(InvalidAbiData):
        event.decode([topics[0], word(2**200), word(7)], word(3))
    with pytest.raises(InvalidAbiData):
        event.decode(topics, b"")


@pytest.mark.parametrize(
    "entries", [None, {}, [1], [{}], [{"type": "function"}], [{"type": "event", "name": "E", "inputs": 1}]]
)
def test_malformed_abi(entries: Any) -> None:
    with pytest.raises(InvalidAbiData):
        parse_abi(entries)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_abi_parses_as_web3_does(name: str) -> None:
    """Selectors and topics of every shipped contract, against eth_utils."""
    import json
    from importlib import resources

    from eth_utils.abi import event_abi_to_log_topic, function_abi_to_4byte_selector

    artifact = load_artifact(name)
    entries = json.loads((resources.files("deaios.ledger") / "artifacts" / f"{name}.json").read_bytes())["abi"]
    selectors = {bytes(function_abi_to_4byte_selector(entry)) for entry in entries if entry["type"] == "function"}
    topics = {bytes(event_abi_to_log_topic(entry)) for entry in entries if entry["type"] == "event"}
    assert {function.selector for function in artifact.abi.functions.values()} == selectors
    assert set(artifact.abi.by_topic) == topics


def test_overloads_need_a_signature() -> None:
    abi = load_artifact("IdentityRegistry").abi
    assert abi.get_function("register(string)").inputs == ("string",)
    for name in ("register", "register(uint8)", "nothing"):
        with pytest.raises(InvalidAbiData, match="no single function"):
            abi.get_function(name)
    with pytest.raises(InvalidAbiData, match="no event"):
        abi.get_event("Nothing")
