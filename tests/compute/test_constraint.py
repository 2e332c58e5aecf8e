"""Constraints: one spelling as bytes, one hash, and schemas that are enforced or refused by name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deaios.compute.constraint import (
    CONSTRAINT_BYTES_MAX,
    MASKER,
    Choice,
    Constraint,
    JsonSchema,
    ToolCalls,
    decode_constraint,
    hash_constraint,
    json_object,
    json_schema,
    tool_calls,
    validate_constraint_hash,
)
from deaios.compute.schema import InvalidConstraint, validate_schema
from deaios.compute.tools import TOOLS_MAX, Tool, encode_tools
from deaios.primitives.hashing import ZERO32

WEATHER = Tool("get_weather", "Weather", '{"type":"object","properties":{"city":{"type":"string"}}}')
TIME = Tool("get_time", "", '{"type":"object"}')
SCHEMA = {"type": "object", "properties": {"z": {"type": "number", "minimum": 0.5}, "a": {"const": None}}}


def every_constraint():
    return [
        json_object(),
        json_schema(SCHEMA),
        tool_calls([WEATHER, TIME], Choice.AUTO, parallel=True),
        tool_calls([WEATHER, TIME], Choice.REQUIRED, parallel=False),
        tool_calls([WEATHER, TIME], "get_time", parallel=True),
        tool_calls([WEATHER], Choice.AUTO, False, json_object()),
        tool_calls([WEATHER], Choice.AUTO, True, json_schema(SCHEMA)),
    ]


@pytest.mark.parametrize("constraint", every_constraint())
def test_bytes_give_the_constraint_back(constraint):
    data = constraint.encode()
    assert decode_constraint(data) == constraint
    assert constraint.mask_hash() == hash_constraint(data)
    validate_constraint_hash(data, constraint.mask_hash())
    with pytest.raises(InvalidConstraint, match="mask hash"):
        validate_constraint_hash(data, ZERO32)


def test_each_constraint_has_its_own_hash():
    hashes = [constraint.mask_hash() for constraint in every_constraint()]
    other_masker = Constraint(json_object().form, "llguidance 1.0.0").mask_hash()
    assert len({*hashes, other_masker, ZERO32}) == len(hashes) + 2
    assert hash_constraint(None) == ZERO32
    assert MASKER.encode() in json_object().encode()


def test_the_order_of_keys_is_part_of_a_constraint():
    first = json_schema({"properties": {"a": {}, "b": {}}})
    second = json_schema({"properties": {"b": {}, "a": {}}})
    assert first.mask_hash() != second.mask_hash()


def test_a_choice_decides_the_tools():
    assert tool_calls([WEATHER], Choice.NONE, parallel=True) is None
    assert tool_calls([], Choice.AUTO, parallel=True) is None
    assert tool_calls([WEATHER], Choice.NONE, True, json_object()) == json_object()
    named = tool_calls([WEATHER, TIME], "get_time", parallel=False).form
    assert isinstance(named, ToolCalls)
    assert ([tool.name for tool in named.tools], named.is_required) == (["get_time"], True)
    for tools, choice, path in (([WEATHER], "get_time", "tool_choice"), ([], Choice.REQUIRED, "tools")):
        with pytest.raises(InvalidConstraint) as caught:
            tool_calls(tools, choice, parallel=True)
        assert caught.value.path == path


@pytest.mark.parametrize(
    ("tools", "path"),
    [
        ([WEATHER, WEATHER], "tools[1].name"),
        ([TIME, Tool("a b", "", "{}")], "tools[1].name"),
        ([Tool("a", "x" * 8193, "{}")], "tools[0].description"),
        ([Tool("a", "", "{")], "tools[0].parameters"),
        ([Tool("a", "", "[]")], "tools[0].parameters"),
        ([Tool("a", "", '{"type":"string"}')], "tools[0].parameters"),
        ([Tool("a", "", '{"properties": {}}')], "tools[0].parameters"),
        ([Tool("a", "", '{"type":"object","type":"object"}')], "tools[0].parameters"),
        ([Tool("a", "", '{"properties":{"x":{"not":{}}}}')], "tools[0].parameters.properties.x.not"),
        ([TIME] * (TOOLS_MAX + 1), "tools"),
    ],
)
def test_tools_that_cannot_be_enforced_are_named(tools, path):
    with pytest.raises(InvalidConstraint) as caught:
        tool_calls(tools, Choice.AUTO, parallel=True)
    assert caught.value.path == path
    assert str(caught.value).startswith(path + ": ")


def deep(levels):
    schema = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"type": "object", "properties": {"a": {"type": "text"}}}, "$.properties.a.type"),
        ({"properties": {"a": {"uniqueItems": True}}}, "$.properties.a.uniqueItems"),
        ({"foo": 1}, "$.foo"),
        ({"x-guidance": {"lenient": True}}, "$.x-guidance"),
        ({"items": [{}]}, "$.items"),
        ({"items": {"if": {}}}, "$.items.if"),
        ({"properties": {"a": {"$id": "x"}}}, "$.properties.a.$id"),
        ({"properties": {"a": False}}, "$.properties.a"),
        ({"properties": []}, "$.properties"),
        ({"required": ["a", "a"]}, "$.required"),
        ({"anyOf": []}, "$.anyOf"),
        ({"anyOf": [{}] * 65}, "$.anyOf"),
        ({"allOf": [{}, {}]}, "$.allOf"),
        ({"enum": []}, "$.enum"),
        ({"enum": [1 << 60]}, "$.enum[0]"),
        ({"const": {"a": [float("inf")]}}, "$.const.a[0]"),
        ({"minimum": "1"}, "$.minimum"),
        ({"exclusiveMinimum": True}, "$.exclusiveMinimum"),
        ({"minimum": 3, "maximum": 2}, "$.minimum"),
        ({"multipleOf": 0}, "$.multipleOf"),
        ({"maxLength": 1 << 40}, "$.maxLength"),
        ({"minItems": 1 << 13}, "$.minItems"),
        ({"maxItems": -1}, "$.maxItems"),
        ({"pattern": "a" * 513}, "$.pattern"),
        ({"patternProperties": {"a" * 513: {}}}, "$.patternProperties." + "a" * 80),
        ({"format": "regex"}, "$.format"),
        ({"$ref": "other.json"}, "$.$ref"),
        ({"$ref": "#/properties/a", "properties": {"a": {}}}, "$.$ref"),
        ({"$ref": "#/$defs/b", "$defs": {"a": {}}}, "$.$ref"),
        ({"$ref": "#"}, "$.$ref"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "$.$ref"),
        (deep(40), "$" + ".items" * 32),
        ({"enum": list(range(3000))}, "$.enum[2047]"),
        ([], "$"),
    ],
)
def test_schemas_that_cannot_be_enforced_are_named(schema, path):
    with pytest.raises(InvalidConstraint) as caught:
        validate_schema(schema)
    assert caught.value.path == path


def test_annotations_and_recursion_are_taken():
    validate_schema(
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": "x",
            "title": "Tree",
            "$ref": "#/$defs/node",
            "$defs": {"node": {"properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}}},
        }
    )


def test_schemas_and_constraints_have_bounds():
    with pytest.raises(InvalidConstraint, match="exceeds 32768"):
        json_schema({"description": "x" * 40_000})
    tools = [Tool(f"tool_{i}", "", json.dumps({"description": "x" * 900}, separators=(",", ":"))) for i in range(80)]
    with pytest.raises(InvalidConstraint, match="exceeds 65536"):
        tool_calls(tools, Choice.AUTO, parallel=True).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"kind":"json_object"}',
        b'{"kind":"json_object","masker":"m","more":1}',
        b'{"masker":"m","kind":"json_object"}',
        b'{"kind":"json_object","masker":"m","schema":"{}"}',
        b'{"kind":"json_object","masker":"m","tools":[]}',
        b'{"kind":"json_schema","masker":"m"}',
        b'{"kind":"json_schema","masker":"m","schema":"{ }"}',
        b'{"kind":"json_schema","masker":"m","schema":"{\\"a\\":1}"}',
        b'{"kind":"json_schema","masker":"m","schema":"' + b"[" * 200 + b'"}',
        b'{"kind":"json_schema","masker":"\\ud800","schema":"{}"}',
        b'{"content":null,"kind":"tool_calls","masker":"m","parallel":true,"required":false,"tools":[]}',
        (
            b'{"content":{"kind":"json_object"},"kind":"tool_calls","masker":"m","parallel":true,"required":true,'
            b'"tools":[{"name":"a","parameters":"{}"}]}'
        ),
        b"\xff",
        b" " * (CONSTRAINT_BYTES_MAX + 1),
    ],
)
def test_malformed_constraints_are_refused(data):
    with pytest.raises(InvalidConstraint):
        decode_constraint(data)


@given(st.binary(max_size=300))
def test_any_bytes_give_a_constraint_or_a_typed_error(data):
    try:
        constraint = decode_constraint(data)
    except InvalidConstraint:
        return
    assert constraint.encode() == data


def test_tools_are_bound_in_their_order():
    text = encode_tools([WEATHER, TIME])
    assert json.loads(text)[0]["function"]["name"] == "get_weather"
    assert text != encode_tools([TIME, WEATHER])


def test_a_constraint_read_from_bytes_holds_its_schema_to_the_same_rules():
    data = Constraint(JsonSchema('{"not":{}}')).encode()
    with pytest.raises(InvalidConstraint, match=r"\$\.not"):
        decode_constraint(data)
