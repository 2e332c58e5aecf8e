"""Masks: a function of constraint and ids, however it is computed; what they allow becomes what was wanted."""

import json
import re
import time
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deaios.compute.constraint import (
    Choice,
    Constraint,
    decode_constraint,
    hash_constraint,
    json_object,
    json_schema,
    tool_calls,
)
from deaios.compute.masking import UnavailableMasker, compile_mask
from deaios.compute.masks.service import MaskService
from deaios.compute.schema import InvalidConstraint
from deaios.compute.tools import CALLS_MAX, Tool
from deaios.primitives.encoding import encode_hex
from deaios.primitives.hashing import ZERO32, sha256

VECTORS = Path(__file__).parents[2] / "docs/spec/constraints.json"

COMPILE_S_MAX = 3.0
"""A loaded machine's; an idle one needs a tenth."""
IDS_MAX = 120
ENDED_SHARE_MIN = 0.7
"""Of random answers; otherwise a test of whole answers would hardly test any."""
TOOLS = (
    Tool("get_weather", "", '{"type":"object","properties":{"city":{"enum":["Oslo","Rome"]}},"required":["city"]}'),
    Tool("get_time", "", '{"type":"object","additionalProperties":false}'),
)
OSLO = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
TIME = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'


def open_mask(constraint, tokenizer):
    return compile_mask(constraint.encode(), constraint.mask_hash(), tokenizer)


def is_taken(constraint, tokenizer, text):
    """Is the text allowed id by id, and then complete?"""
    state = open_mask(constraint, tokenizer)
    for token in tokenizer.encode_plain(text):
        if not state.mask()[token]:
            return False
        state.accept(token)
    return state.is_complete


def favour(tokenizer):
    """A bonus for what closes JSON, so that random answers end."""
    bonus = np.zeros(tokenizer.vocabulary_size, np.float32)
    for token in range(tokenizer.vocabulary_size):
        if re.fullmatch(rb'[]}",0-9:{]+', tokenizer.get_bytes(token)):
            bonus[token] = 6.0
    bonus[sorted(tokenizer.end_ids)] = 8.0
    return bonus


@pytest.fixture(scope="module")
def bonus(tokenizer):
    return favour(tokenizer)


def draw_answer(constraint, tokenizer, bonus, seed):
    """Ids that a model of noise gives under the mask, and the masks; the answer may be cut."""
    state, ids, masks = open_mask(constraint, tokenizer), [], []
    noise = np.random.default_rng(list(seed))
    while len(ids) < IDS_MAX:
        mask = state.mask()
        allowed = np.flatnonzero(mask)
        token = int(allowed[np.argmax(noise.gumbel(size=allowed.size) + bonus[allowed])])
        masks.append(mask)
        ids.append(token)
        state.accept(token)
        if token in tokenizer.end_ids:
            break
    return ids, masks


STRINGS = st.fixed_dictionaries(
    {"type": st.just("string")},
    optional={"maxLength": st.integers(2, 6), "minLength": st.integers(0, 2)},
)
SCALARS = st.one_of(
    STRINGS,
    st.fixed_dictionaries({"type": st.just("integer"), "minimum": st.integers(-5, 5), "maximum": st.integers(6, 200)}),
    st.just({"type": "number", "exclusiveMinimum": -1.5, "maximum": 2.25}),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"const": "é\n"}, {"type": ["integer", "null"]}]),
    st.fixed_dictionaries({"enum": st.lists(st.sampled_from(["a", 'q"', 1, None, True, [1], {"k": 0}]), min_size=1)}),
    st.just({"type": "string", "pattern": "^[a-c]{1,3}x?$"}),
    st.sampled_from([{"type": "string", "format": "date"}, {"type": "string", "format": "uuid"}]),
    st.just({"type": "integer", "multipleOf": 3, "minimum": 0, "maximum": 30}),
)


def _objects(inner):
    names = st.lists(
        st.sampled_from(
            ["a", "bee", "c d", "é", 'q"'],
        ),
        unique=True,
        min_size=1,
        max_size=3,
    )

    def build(drawn):
        keys, schemas, required = drawn
        properties = dict(zip(keys, schemas, strict=False))
        return {
            "type": "object",
            "properties": properties,
            "required": [name for name in properties if required],
            "additionalProperties": False,
        }

    return st.tuples(names, st.lists(inner, min_size=3, max_size=3), st.booleans()).map(build)


SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        _objects(inner),
        st.builds(lambda item, most: {"type": "array", "items": item, "maxItems": most}, inner, st.integers(0, 3)),
        st.builds(lambda item: {"type": "array", "prefixItems": [item], "items": False, "minItems": 1}, inner),
        st.builds(lambda one, other: {"anyOf": [one, other]}, inner, inner),
        st.builds(lambda item: {"$ref": "#/$defs/x", "$defs": {"x": item}}, SCALARS),
    ),
    max_leaves=4,
).filter(lambda schema: "$defs" not in str(list(schema.values())[1:]) or "$ref" in schema)


def _is_root_only(schema):
    """Definitions are looked for at the root."""
    return json.dumps(schema).count("$defs") <= (2 if "$defs" in schema else 0)


def test_what_masks_allow_parses_and_fits_the_schema(tokenizer, bonus):
    ended = []

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(schema=SCHEMAS.filter(_is_root_only), seed=st.binary(min_size=4, max_size=4))
    def check(schema, seed):
        ids, _ = draw_answer(json_schema(schema), tokenizer, bonus, seed)
        ended.append(ids[-1] in tokenizer.end_ids)
        if ended[-1]:
            checker = jsonschema.FormatChecker(["date", "uuid"])
            jsonschema.Draft202012Validator(schema, format_checker=checker).validate(json.loads(tokenizer.decode(ids)))

    check()
    assert sum(ended) >= ENDED_SHARE_MIN * len(ended)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    constraint=st.one_of(
        SCHEMAS.filter(_is_root_only).map(json_schema),
        st.sampled_from([json_object(), tool_calls(TOOLS, Choice.AUTO, True), tool_calls(TOOLS, "get_time", False)]),
    ),
    seed=st.binary(min_size=4, max_size=4),
)
def test_masks_are_the_same_whether_asked_for_at_each_place_or_at_one(tokenizer, bonus, constraint, seed):
    ids, masks = draw_answer(constraint, tokenizer, bonus, seed)
    again = open_mask(constraint, tokenizer)
    for token, mask in zip(ids, masks, strict=True):
        assert np.array_equal(again.mask(), mask)
        again.accept(token)
    place = len(ids) // 2
    silent = open_mask(constraint, tokenizer)
    for token in ids[:place]:
        silent.accept(token)
    assert np.array_equal(silent.mask(), masks[place])


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    choice=st.sampled_from([Choice.REQUIRED, "get_weather", "get_time"]), many=st.booleans(), seed=st.binary(max_size=4)
)
def test_required_calls_are_calls_of_the_tools(tokenizer, bonus, choice, many, seed):
    ids, _ = draw_answer(tool_calls(TOOLS, choice, many), tokenizer, bonus, seed)
    text = tokenizer.decode(ids)
    calls = re.findall(r"<tool_call>\n(.*?)\n</tool_call>", text, re.DOTALL)
    if ids[-1] in tokenizer.end_ids:
        assert calls
        assert text == "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)
        assert many or len(calls) == 1
    for call in map(json.loads, calls):
        assert choice in (Choice.REQUIRED, call["name"])
        tool = next(tool for tool in TOOLS if tool.name == call["name"])
        jsonschema.validate(call["arguments"], json.loads(tool.parameters))


@pytest.mark.parametrize(
    ("choice", "parallel", "taken", "refused"),
    [
        (Choice.AUTO, True, ["", "Hi <tool", OSLO, f"Let me see.\n{OSLO}\n{TIME}"], [f"{OSLO} and", "<tool_call> x"]),
        (Choice.AUTO, False, ["Hi", f"Hi{TIME}"], [f"{OSLO}\n{TIME}"]),
        (Choice.REQUIRED, True, [OSLO, "\n".join([TIME] * CALLS_MAX)], ["Hi", "\n".join([TIME] * (CALLS_MAX + 1))]),
        (Choice.REQUIRED, False, [OSLO, TIME], [f"Hi{OSLO}", f"{OSLO}\n{TIME}", OSLO.replace("Oslo", "Lima")]),
        ("get_time", False, [TIME], [OSLO, TIME.replace('": "', '":"'), TIME.replace("get_time", "get_date")]),
    ],
)
def test_calls_have_one_form(tokenizer, choice, parallel, taken, refused):
    constraint = tool_calls(TOOLS, choice, parallel)
    assert [is_taken(constraint, tokenizer, text) for text in taken] == [True] * len(taken)
    assert [is_taken(constraint, tokenizer, text) for text in refused] == [False] * len(refused)


def test_bytes_hashes_and_masks_are_frozen(tokenizer):
    frozen = json.loads(VECTORS.read_text())
    assert frozen["tokenizer"] == encode_hex(tokenizer.tokenizer_hash)
    for vector in frozen["vectors"]:
        data = vector["constraint"].encode()
        assert encode_hex(decode_constraint(data).mask_hash()) == vector["maskHash"]
        state = compile_mask(data, hash_constraint(data), tokenizer)
        for token, frozen_mask in zip(vector["ids"], vector["masks"], strict=True):
            mask = state.mask()
            bits = np.packbits(mask, bitorder="little").tobytes()
            assert {"allowed": int(mask.sum()), "bits": encode_hex(sha256(bits))} == frozen_mask
            state.accept(token)


def test_other_content_than_calls_may_be_json(tokenizer):
    constraint = tool_calls(TOOLS, Choice.AUTO, True, json_object())
    assert is_taken(constraint, tokenizer, '{"a": 1}')
    assert is_taken(constraint, tokenizer, OSLO)
    assert not is_taken(constraint, tokenizer, "Hi")


def test_keys_come_in_the_schemas_order_and_blanks_in_a_row_are_bounded(tokenizer):
    constraint = json_schema({"type": "object", "properties": {"z": {}, "a": {}}, "required": ["z", "a"]})
    assert is_taken(constraint, tokenizer, '{\n    "z": 1,\n    "a": 2\n}')
    assert not is_taken(constraint, tokenizer, '{"a": 1, "z": 2}')
    assert is_taken(constraint, tokenizer, '{"z":' + " " * 64 + '1,"a":2}')
    assert not is_taken(constraint, tokenizer, '{"z":' + " " * 65 + '1,"a":2}')


def test_ends_are_allowed_exactly_when_the_text_is_complete(tokenizer):
    state = open_mask(json_object(), tokenizer)
    ends = sorted(tokenizer.end_ids)
    for token in tokenizer.encode_plain('{"a": 1}'):
        assert not state.mask()[ends].any()
        assert not state.is_complete
        with pytest.raises(InvalidConstraint, match="not complete"):
            open_mask(json_object(), tokenizer).accept(ends[0])
        state.accept(token)
    assert np.flatnonzero(state.mask()).tolist() == ends
    state.accept(ends[1])
    assert state.is_complete
    assert np.flatnonzero(state.mask()).tolist() == ends
    with pytest.raises(InvalidConstraint, match="after the end"):
        state.accept(tokenizer.encode_plain("a")[0])


def test_no_control_token_but_an_end_is_ever_allowed(tokenizer):
    state = open_mask(tool_calls(TOOLS, Choice.AUTO, True), tokenizer)
    for token in tokenizer.encode_plain("Some text <"):
        allowed = set(np.flatnonzero(state.mask()).tolist())
        assert allowed & set(tokenizer.special_ids.values()) == set(tokenizer.end_ids)
        state.accept(token)


def test_a_forbidden_id_is_refused(tokenizer):
    with pytest.raises(InvalidConstraint, match="cannot stand at place 0"):
        open_mask(json_object(), tokenizer).accept(tokenizer.encode_plain("a")[0])


def test_the_hash_decides_which_constraint(tokenizer):
    data, other = json_object().encode(), json_schema({"type": "integer"})
    assert compile_mask(None, ZERO32, tokenizer) is None
    for constraint, mask_hash in ((data, other.mask_hash()), (None, other.mask_hash()), (data, ZERO32)):
        with pytest.raises(InvalidConstraint, match="mask hash"):
            compile_mask(constraint, mask_hash, tokenizer)


def test_another_masker_is_not_guessed(tokenizer):
    older = Constraint(json_object().form, "llguidance 1.0.0")
    with pytest.raises(UnavailableMasker, match=r"needs llguidance 1\.0\.0, this program has llguidance 1\.9\.1"):
        open_mask(older, tokenizer)


def _nest(levels, leaf):
    for _ in range(levels):
        leaf = {"type": "object", "properties": {"a": leaf, "b": leaf}}
    return leaf


HOSTILE = {
    "lookaround": {"type": "string", "pattern": "(?=a)b"},
    "back reference": {"type": "string", "pattern": r"(a)\1"},
    "nested repeats": {"type": "string", "pattern": "^((((a{1,50}){1,50}){1,50}){1,50})$"},
    "huge counter": {"type": "string", "pattern": "^(.*a.{900})$"},
    "alternating repeats": {"type": "string", "pattern": "^(a|aa|[ab]{0,200}){0,200}$"},
    "repeats of classes": {"type": "string", "pattern": r"^(\w{1,200}\s?){1,200}$"},
    "intersection": {"anyOf": [{"type": "string", "pattern": f".*{a}.*{b}.*"} for a in "abcdefgh" for b in "abcdefgh"]},
    "long strings": {"type": "string", "minLength": 4096, "maxLength": 65536},
    "many items": {"type": "array", "items": {"type": "integer"}, "minItems": 4096, "maxItems": 65536},
    "wide": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1000)}},
    "doubling": _nest(9, {"type": "integer"}),
    "large enum": {"enum": [f"value {i}" for i in range(2000)]},
    "branches": {
        "oneOf": [{"type": "object", "properties": {"k": {"const": i}}, "required": ["k"]} for i in range(64)]
    },
    "endless recursion": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"type": "object", "properties": {"n": {"$ref": "#/$defs/a"}}, "required": ["n"]}},
    },
    "wide recursion": {
        "$ref": "#/$defs/a",
        "$defs": {"a": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/a"}} for _ in range(60)]}},
    },
    "far multiples": {"type": "number", "multipleOf": 1e-9, "minimum": -1e15, "maximum": 1e15},
    "fine bounds": {"type": "number", "minimum": 1.000000000000001, "maximum": 1.000000000000002},
    "unsatisfiable": {"type": "string", "pattern": "^a$", "minLength": 5},
    "disjoint": {"type": "integer", "const": "a"},
    "pattern properties": {
        "type": "object",
        "patternProperties": {f"^{chr(97 + i)}.*{chr(97 + i)}": {} for i in range(26)},
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_schemas_end_in_bounded_time(tokenizer, bonus, name):
    """Refused by name, or served: compile, and then each mask, within a bound."""
    start = time.process_time()
    try:
        state = open_mask(json_schema(HOSTILE[name]), tokenizer)
    except InvalidConstraint:
        state = None
    assert time.process_time() - start < COMPILE_S_MAX
    if state is None:
        return
    noise = np.random.default_rng(1)
    for _ in range(24):
        start = time.process_time()
        try:
            allowed = np.flatnonzero(state.mask())
            state.accept(int(allowed[np.argmax(noise.gumbel(size=allowed.size) + bonus[allowed])]))
        except InvalidConstraint:
            state = None
        assert time.process_time() - start < COMPILE_S_MAX
        if state is None:
            return


async def test_a_service_compiles_off_the_loop_and_remembers(tokenizer):
    masks = MaskService(tokenizer)
    constraint = json_object()
    assert await masks.open(None, ZERO32) is None
    first = await masks.open(constraint.encode(), constraint.mask_hash())
    second = await masks.open(constraint.encode(), constraint.mask_hash())
    first.accept(tokenizer.encode_plain("{")[0])
    assert not np.array_equal(first.mask(), second.mask())
    for _ in range(2):
        await masks.validate(constraint.encode(), constraint.mask_hash())
    broken = json_schema({"type": "string", "pattern": "(?=a)"})
    for _ in range(2):
        with pytest.raises(InvalidConstraint, match="does not compile"):
            await masks.validate(broken.encode(), broken.mask_hash())
