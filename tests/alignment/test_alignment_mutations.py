"""Change any one leaf of an answer file: it never verifies, and the message names what broke."""

import asyncio
import json
import re

import pytest
from alignment_mutations import branches_of, dump, get, leaves_of, other_branches, other_values, put
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.alignment.answer import ANSWER_BYTES_MAX, InvalidAnswer, decode_answer, encode_answer
from deaios.alignment.facts import Outcome

RULES = (
    (r"network", {"network"}),
    (r"body|clientNonce|opening\.ask\.clientDigest", {"client digest"}),
    (r"opening\.ask\..*|opening\.request\.askDigest", {"ask digest"}),
    (r"opening\.salt", {"context"}),
    (r"opening\.conduct\..*", {"conduct signature"}),
    (r"opening\.offer\..*", {"offer digest"}),
    (r"opening\.offerSignature", {"offer signature"}),
    (r"opening\.request\..*|opening\.requestSignature", {"request signature"}),
    (r"opening\.receipt\.requestDigest", {"request digest"}),
    (r"opening\.receipt\..*|opening\.receiptSignature", {"receipt signature"}),
    (r"opening\.outputIds.*", {"output"}),
    (r"text", {"text"}),
    (r"batch\..*", {"batch"}),
)
"""Which rule names a changed leaf; the first pattern that fits."""


def dotted(path):
    return ".".join(str(step) for step in path)


def expected_rules(path):
    return next(rules for pattern, rules in RULES if re.fullmatch(pattern, dotted(path)))


async def check(chain, data):
    """Outcome, rule and words for a file, as `deaios verify` would give them."""
    try:
        answer = decode_answer(data)
    except InvalidAnswer as error:
        return Outcome.VIOLATED, "form", str(error)
    result = await chain.examine(answer)
    assert result.outcome is not Outcome.VIOLATED or not result.privacy, "nothing is said of a changed file's privacy"
    broken = next((fact for fact in result.facts if not fact.holds), None)
    return result.outcome, broken.rule if broken else None, result.headline


@pytest.fixture(params=range(5))
def file(request, library):
    return json.loads(encode_answer(library.answers[request.param]))


async def test_every_leaf_is_bound_and_named(library, file):
    before = library.chain.recomputed
    count = 0
    for path in leaves_of(file):
        same, _ = other_values(get(file, path))
        assert path == ("version",) or same or get(file, path) == [], path
        for value in same:
            outcome, rule, says = await check(library.chain, dump(put(file, path, value)))
            count += 1
            assert outcome is Outcome.VIOLATED, (path, value)
            if rule == "form":  # the new value lies outside the leaf's range
                assert path[-1] in re.sub(r"[^a-zA-Z]+", " ", _camel(says)).split() or "token id" in says, (path, says)
            else:
                assert rule in expected_rules(path), (path, value, says)
    assert count > 300
    assert library.chain.recomputed == before, "a changed file is noticed without an engine"


def _camel(says):
    return re.sub(r"_([a-z])", lambda found: found[1].upper(), says)


async def test_other_types_and_spellings_are_refused_by_name(library):
    file = json.loads(encode_answer(library.answers[2]))
    for path in leaves_of(file):
        for value in other_values(get(file, path))[1]:
            outcome, rule, says = await check(library.chain, dump(put(file, path, value)))
            assert outcome is Outcome.VIOLATED, (path, value)
            assert rule == "form", (path, value, rule)
            names = re.sub(r"[^a-zA-Z]+", " ", _camel(says)).split()
            assert {str(step) for step in path} & set(names) or "token id" in says, (path, value, says)


async def test_other_shapes_never_verify(library):
    file = json.loads(encode_answer(library.answers[0]))
    for path in branches_of(file):
        original = get(file, path)
        for value in other_branches(original):
            changed = put(file, path, value) if path else value
            if changed == file:
                continue
            outcome, rule, says = await check(library.chain, dump(changed))
            assert outcome is Outcome.VIOLATED, (path, says)
            if isinstance(original, dict):
                assert rule == "form", (path, value)


@pytest.mark.parametrize(
    ("find", "replacement"),
    [
        (rb'"index": 0', b'"index": -0'),
        (rb'"index": 0', b'"index": 0.0'),
        (rb'"index": 0', b'"index": 0e0'),
        (rb'"index": 0', b'"index": +0'),
        (rb'"index": 0', b'"index": 00'),
        (rb'"index": 0', b'"index": false'),
        (rb'"index": 0', b'"index": 0, "index": 0'),
        (rb'"version": 1', b'"version": 1.0'),
        (rb'"version": 1', b'"version": true'),
        (rb'"version": 1', b'"version": 1, "version": 1'),
        (rb'"version": 1', b'"version": NaN'),
        (rb'"version": 1', b'"version": Infinity'),
        (rb'"version": 1', b'"version": ' + b"1" * 5000),
        (rb'"text":', b'"text": "x", "text":'),
        (rb'"salt": "0x', b'"salt": "0X'),
        (rb'"path": ', b'"path": [], "path": '),
        (rb"\A", b"\xef\xbb\xbf"),
        (rb"\A", b"[" * 100_000),
        (rb"\A", b" " * ANSWER_BYTES_MAX),
        (rb"\Z", b"{}"),
        (rb"\Z", b"\xff"),
    ],
)
async def test_a_second_spelling_is_refused(library, find, replacement):
    data = encode_answer(library.answers[0])
    changed, count = re.subn(find, lambda _: replacement, data, count=1)
    assert count == 1
    outcome, rule, says = await check(library.chain, changed)
    assert (outcome, rule) == (Outcome.VIOLATED, "form")
    assert len(says) < 500


async def test_whitespace_and_order_of_names_say_nothing(library):
    answer = library.answers[0]
    value = json.loads(encode_answer(answer))
    assert decode_answer(json.dumps(value, sort_keys=True).encode()) == answer


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_bytes_never_verify_as_something_else(library, data):
    answer = data.draw(st.sampled_from(library.answers))
    damaged = bytearray(encode_answer(answer))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        match data.draw(st.sampled_from(("set", "drop", "insert"))):
            case "set":
                damaged[place] = data.draw(st.integers(0, 255))
            case "drop":
                del damaged[place]
            case _:
                damaged.insert(place, data.draw(st.sampled_from(b'0123456789abcdef"{}[],: \\')))
    try:
        read = decode_answer(bytes(damaged))
    except InvalidAnswer:
        return
    if read != answer:
        assert asyncio.run(library.chain.examine(read)).outcome is Outcome.VIOLATED
