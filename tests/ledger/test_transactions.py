from contextlib import suppress
from dataclasses import replace

import pytest
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.ledger import transactions as rules
from deaios.ledger.rlp import decode_rlp, encode_integer, encode_rlp
from deaios.ledger.transactions import (
    ACCESS_ITEMS_MAX,
    ACCESS_LIST,
    DYNAMIC_FEE,
    LEGACY,
    TRANSACTION_BYTES_MAX,
    InvalidChainId,
    InvalidTransaction,
    RefusedTransactionType,
    Transaction,
    decode_transaction,
    encode_transaction,
    recover_sender,
    sign_transaction,
    validate_chain_id,
)
from deaios.primitives.keys import Address, PrivateKey

KEY = PrivateKey(b"\1" * 32)
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141

words = st.integers(min_value=0, max_value=(1 << 256) - 1)
addresses = st.binary(min_size=20, max_size=20).map(Address)


@st.composite
def transactions(draw):
    kind = draw(st.sampled_from([LEGACY, ACCESS_LIST, DYNAMIC_FEE]))
    max_fee = draw(words)
    access = st.lists(st.tuples(addresses, st.lists(words, max_size=3).map(tuple)), max_size=3).map(tuple)
    return Transaction(
        kind=kind,
        chain_id=draw(st.integers(min_value=1, max_value=1 << 40)),
        nonce=draw(st.integers(min_value=0, max_value=(1 << 64) - 2)),
        max_fee=max_fee,
        tip=draw(st.integers(min_value=0, max_value=max_fee)) if kind == DYNAMIC_FEE else max_fee,
        gas=draw(st.integers(min_value=0, max_value=(1 << 64) - 1)),
        to=draw(st.none() | addresses),
        value=draw(words),
        data=draw(st.binary(max_size=200)),
        access_list=draw(access) if kind != LEGACY else (),
    )


@given(transactions())
@settings(max_examples=60)
def test_signed_transactions_survive_the_wire_and_name_their_sender(transaction):
    signed = sign_transaction(KEY, transaction)
    decoded = decode_transaction(signed.raw)
    assert decoded == signed
    assert encode_transaction(decoded) == signed.raw
    assert recover_sender(decoded) == KEY.address


@pytest.mark.parametrize(
    "fees",
    [
        {"gasPrice": 5},
        {"gasPrice": 5, "accessList": [{"address": "0x" + "11" * 20, "storageKeys": ["0x" + "22" * 32]}]},
        {"maxFeePerGas": 5, "maxPriorityFeePerGas": 3},
    ],
)
@pytest.mark.parametrize("to", ["0x" + "33" * 20, ""])
def test_the_same_bytes_as_eth_account(fees, to):
    foreign = Account.sign_transaction(
        {"chainId": 1 << 39, "nonce": 3, "gas": 50_000, "to": to, "value": 9, "data": b"abc", **fees}, KEY.secret
    )
    decoded = decode_transaction(bytes(foreign.raw_transaction))
    assert decoded.hash == bytes(foreign.hash)
    assert recover_sender(decoded) == KEY.address
    assert sign_transaction(KEY, replace(decoded, r=0, s=0, parity=0)).raw == bytes(foreign.raw_transaction)


def signed(**fields):
    base = Transaction(DYNAMIC_FEE, 7, 1, 10, 2, 21_000, Address(b"\2" * 20), 5, b"")
    return sign_transaction(KEY, replace(base, **fields))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_transaction_or_refused(data):
    for raw in (data, b"\x02" + data, b"\x01" + data):
        try:
            transaction = decode_transaction(raw)
        except (InvalidTransaction, RefusedTransactionType):
            continue
        assert encode_transaction(transaction) == raw


@pytest.mark.parametrize("to", [None, Address(b"\2" * 20)])
@pytest.mark.parametrize("data", [b"", b"\1", b"\x80", b"\xab" * 55, b"\xab" * 56, b"\0" * 200])
def test_usual_transactions_are_read_the_short_way_and_as_the_long_one_reads_them(to, data):
    raw = signed(to=to, data=data).raw
    assert vars(rules._decode_usual(raw)) == vars(rules._decode_any(DYNAMIC_FEE, raw))


@given(
    st.sampled_from([b"", b"\1", b"\xab" * 40, b"\xab" * 68]),
    st.integers(min_value=1, max_value=300),
    st.sampled_from([0, 1, 2]),
    st.binary(max_size=2),
)
@settings(max_examples=200)
def test_the_short_way_takes_nothing_that_the_long_one_refuses(data, position, cut, put):
    raw = bytearray(signed(data=data).raw)
    before, position = len(raw), position % len(raw)
    raw[position : position + cut] = put
    if position > 2:  # the list's size still fits, so that what is in it is looked at
        raw[2 if raw[1] == 0xF8 else 1] = (raw[2 if raw[1] == 0xF8 else 1] + len(raw) - before) % 256
    found = rules._decode_usual(bytes(raw))
    expected = None
    with suppress(InvalidTransaction):
        expected = rules._decode_any(DYNAMIC_FEE, bytes(raw))
    assert found is None or vars(found) == vars(expected)


@given(st.integers(min_value=0, max_value=2000), st.integers(min_value=1, max_value=255))
def test_one_changed_byte_never_keeps_hash_and_sender(position, mask):
    raw = bytearray(signed(data=b"\xab" * 40).raw)
    raw[position % len(raw)] ^= mask
    try:
        changed = decode_transaction(bytes(raw))
        assert recover_sender(changed) != KEY.address
    except (InvalidTransaction, RefusedTransactionType):
        return


@pytest.mark.parametrize(("first", "name"), [(3, "blob, EIP-4844"), (4, "set-code, EIP-7702")])
def test_blob_and_set_code_transactions_are_refused_by_name(first, name):
    with pytest.raises(RefusedTransactionType, match=rf"type {first} \({name}\); this ledger takes types 0, 1 and 2"):
        decode_transaction(bytes([first]) + signed().raw[1:])


def with_fields(transaction, **changes):
    """The raw bytes with some RLP fields replaced, by index."""
    fields = decode_rlp(transaction.raw[1:])
    for index, value in changes.items():
        fields[int(index[1:])] = value
    return b"\x02" + encode_rlp(fields)


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        (b"", "no bytes"),
        (b"\x05\xc0", "type 5"),
        (b"\x80", "first byte 0x80"),
        (bytes([2]) + bytes(TRANSACTION_BYTES_MAX), "oversized data"),
        (b"\x02\xc0", "0 fields, 12 fields expected"),
        (b"\x02\x80", "a string, 12 fields expected"),
        (signed().raw + b"\0", "1 bytes follow"),
        (with_fields(signed(), _1=b"\0"), "leading zero"),
        (with_fields(signed(), _1=encode_integer((1 << 64) - 1)), "nonce has max value"),
        (with_fields(signed(), _1=encode_integer(1 << 64)), "exceeds 64 bits"),
        (with_fields(signed(), _2=b"\x0b"), "max priority fee per gas higher than max fee per gas"),
        (with_fields(signed(), _5=b"\1" * 19), "recipient has 19 bytes"),
        (with_fields(signed(), _5=[]), "recipient has a list"),
        (with_fields(signed(), _7=[]), "data is a list"),
        (with_fields(signed(), _8=b"a"), "access list is a string"),
        (with_fields(signed(), _8=[[b"\1" * 20]]), "access list entry"),
        (with_fields(signed(), _8=[[b"\1" * 20, [b"\1" * 31]]]), "access list key"),
        (with_fields(signed(), _8=[[b"\1" * 20, []]] * (ACCESS_ITEMS_MAX + 1)), "at most 4096"),
        (with_fields(signed(), _9=b"\2"), "parity is 2"),
        (with_fields(signed(), _0=encode_integer(1 << 63)), "EIP-2294"),
    ],
)
def test_broken_rules_are_named(raw, rule):
    with pytest.raises(InvalidTransaction, match=rule):
        decode_transaction(raw)


@pytest.mark.parametrize(
    "changes",
    [
        lambda it: replace(it, s=ORDER - it.s, parity=1 - it.parity),  # the same signature restated: malleable
        lambda it: replace(it, r=0),
        lambda it: replace(it, s=0),
        lambda it: replace(it, r=ORDER),
        lambda it: replace(it, r=(1 << 256) - 1),
    ],
    ids=["high-s", "zero-r", "zero-s", "r-at-order", "r-above-order"],
)
def test_signatures_out_of_range_recover_nobody(changes):
    with pytest.raises(InvalidTransaction, match="invalid sender"):
        recover_sender(changes(signed()))


def test_other_chains_and_unprotected_transactions_are_refused():
    validate_chain_id(signed(), 7)
    with pytest.raises(InvalidChainId, match="have 7 want 8"):
        validate_chain_id(signed(), 8)
    unprotected = sign_transaction(KEY, Transaction(LEGACY, None, 0, 1, 1, 21_000, None, 0, b""))
    decoded = decode_transaction(unprotected.raw)
    assert (decoded.chain_id, decoded.v in (27, 28), recover_sender(decoded)) == (None, True, KEY.address)
    with pytest.raises(InvalidChainId, match="replay-protected"):
        validate_chain_id(decoded, 8)
