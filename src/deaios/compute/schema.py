"""JSON schemas that an answer can be held to: which keywords, and how large.

Pure. Invariant: a schema that passes is enforced completely; a keyword that would not be is refused with its path, and
never ignored. Annotations say nothing about values and are kept. Bounds keep every later step short, because a schema
is a stranger's. JSON text keeps the order of keys, since properties are written in the schema's order.

Source of the keywords: JSON Schema 2020-12; of what is enforced: guidance-ai/llguidance, docs/json_schema.md.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Final

from deaios.primitives.encoding import InvalidEncoding, validate_json_depth
from deaios.primitives.errors import Invalid

SCHEMA_BYTES_MAX: Final = 32 << 10
DEPTH_MAX: Final = 32
"""Levels of schemas within schemas; the OpenAI API takes ten."""
NODES_MAX: Final = 2048
"""Schemas, enum values and constants together."""
BRANCHES_MAX: Final = 64
"""Of one anyOf or oneOf: oneOf compares each with each."""
PATTERN_CHARACTERS_MAX: Final = 512
COUNT_MAX: Final = 1 << 16
"""Of minLength, maxItems and their like."""
REQUIRED_COUNT_MAX: Final = 1 << 12
"""Of minLength, minItems, minProperties: what an answer must reach before it may end."""
NUMBER_MAX: Final = 1 << 53
"""Beyond it a double is no longer exact."""
JSON_NESTING_MAX: Final = 3 * DEPTH_MAX
"""Brackets of the text: a level of schemas takes up to three."""

_TYPES: Final = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
_FORMATS: Final = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
)
_ANNOTATIONS: Final = frozenset(
    {
        *("$comment", "$schema", "default", "deprecated", "description", "discriminator", "examples", "readOnly"),
        *("title", "writeOnly"),
    }
)
"""Of these, `discriminator` is OpenAPI's, and only says by which property a reader may tell branches apart."""
_ROOT_ANNOTATIONS: Final = frozenset({"$id"})
"""Below the root it would change what references mean."""


class InvalidConstraint(Invalid):
    """A constraint that cannot be enforced: malformed, too large, or with a keyword that would have to be ignored.

    Attributes:
        path: the place, such as `$.properties.age.minimum`; empty for the whole.
    """

    def __init__(self, path: str, rule: str) -> None:
        super().__init__(f"{path}: {rule}" if path else rule)
        self.path = path


def encode_json_text(value: object) -> str:
    """Compact JSON text that keeps the order of keys.

    Raises:
        InvalidConstraint: a number that is not finite, a lone surrogate, or no JSON value at all.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidConstraint("", f"not a JSON value: {error}") from error
    return text


def decode_json_text(where: str, text: str) -> object:
    """Read JSON text in the one spelling that `encode_json_text` gives.

    Raises:
        InvalidConstraint: too long, too deep, not JSON, or another spelling.
    """
    try:
        data = text.encode()
        if len(data) > SCHEMA_BYTES_MAX:
            raise InvalidConstraint(where, f"schema of {len(data)} bytes exceeds {SCHEMA_BYTES_MAX}")
        validate_json_depth(data, JSON_NESTING_MAX)
        value: object = json.loads(text)
    except (ValueError, InvalidEncoding) as error:
        raise InvalidConstraint(where, f"not JSON: {error}") from error
    if encode_json_text(value) != text:
        raise InvalidConstraint(where, "JSON text is not in its compact spelling, or names a key twice")
    return value


def validate_schema(schema: object, where: str = "$") -> None:
    """Check that a schema is one that can be enforced.

    Args:
        schema: parsed JSON.
        where: what its place is called in messages.

    Raises:
        InvalidConstraint: the path and the rule.
    """
    walk = _Walk(schema, where)
    walk.visit(schema, where, 1)
    walk.refuse_circles()


class _Walk:
    """One pass over a schema; every keyword has its own reader."""

    def __init__(self, root: object, where: str) -> None:
        self._root = root
        self._where = where
        self._nodes = 0
        self._targets: dict[str, str] = {}
        self._links: dict[str, str] = {}

    def visit(self, schema: object, where: str, depth: int) -> None:
        """Check a schema and those in it."""
        self._count(where, depth)
        if isinstance(schema, bool):
            if not schema:
                raise InvalidConstraint(where, "the schema false allows no value")
            return
        if not isinstance(schema, Mapping):
            raise InvalidConstraint(where, f"a schema is an object or true, not {type(schema).__name__}")
        known = {**_READERS, **(dict.fromkeys(_ROOT_ANNOTATIONS, _read_nothing) if depth == 1 else {})}
        for name, value in schema.items():
            reader = known.get(name)
            if reader is None:
                raise InvalidConstraint(f"{where}.{name:.80}", "this keyword is not enforced here, and so not taken")
            reader(self, value, f"{where}.{name}", depth)
        _refuse_empty_ranges(schema, where)

    def visit_value(self, value: object, where: str, depth: int) -> None:
        """Check a constant."""
        self._count(where, depth)
        if isinstance(value, bool | str) or value is None:
            return
        if isinstance(value, int | float):
            _read_number(self, value, where, depth)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                self.visit_value(item, f"{where}[{index}]", depth + 1)
        elif isinstance(value, Mapping):
            for name, item in value.items():
                self.visit_value(item, f"{where}.{name:.80}", depth + 1)
        else:
            raise InvalidConstraint(where, f"{type(value).__name__} is no JSON value")

    def refer(self, target: str, where: str) -> None:
        """Note a reference that must be followed."""
        self._find(target, where)
        self._links[where.removesuffix(".$ref")] = target

    def refuse_circles(self) -> None:
        """Refuse references that only lead to each other: no value would ever settle them."""
        for start in self._links:
            place, seen = start, set[str]()
            while place in self._links:
                if place in seen:
                    raise InvalidConstraint(f"{start}.$ref", "this reference leads back to itself")
                seen.add(place)
                place = self._targets[self._links[place]]

    def _find(self, target: str, where: str) -> None:
        if target in self._targets:
            return
        parts = target.split("/")
        node, place = self._root, self._where
        is_local = parts[0] == "#" and (len(parts) == 1 or (len(parts) == 3 and parts[1] in ("$defs", "definitions")))
        for part in parts[1:] if is_local else ():
            name = part.replace("~1", "/").replace("~0", "~")
            node = node.get(name) if isinstance(node, Mapping) else None
            place = f"{place}.{name}"
        if not is_local or node is None or "%" in target:
            rule = f"{target[:80]!r} is not # or a definition of this schema such as #/$defs/name"
            raise InvalidConstraint(where, rule)
        self._targets[target] = place

    def _count(self, where: str, depth: int) -> None:
        self._nodes += 1
        if self._nodes > NODES_MAX:
            raise InvalidConstraint(where, f"more than {NODES_MAX} schemas and values")
        if depth > DEPTH_MAX:
            raise InvalidConstraint(where, f"nested deeper than {DEPTH_MAX}")


_Reader = Callable[[_Walk, object, str, int], None]


def _read_nothing(_walk: _Walk, _value: object, _where: str, _depth: int) -> None:
    """An annotation."""


def _read_type(_walk: _Walk, value: object, where: str, _depth: int) -> None:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or len(set(map(str, names))) != len(names):
        raise InvalidConstraint(where, "expected a type's name, or a list of different ones")
    for name in names:
        if not isinstance(name, str) or name not in _TYPES:
            raise InvalidConstraint(where, f"{str(name)[:40]!r} is not one of {', '.join(sorted(_TYPES))}")


def _read_schema(walk: _Walk, value: object, where: str, depth: int) -> None:
    walk.visit(value, where, depth + 1)


def _read_closing_schema(walk: _Walk, value: object, where: str, depth: int) -> None:
    """Of additionalProperties and items: false says that there are no more."""
    if value is not False:
        walk.visit(value, where, depth + 1)


def _read_schema_map(walk: _Walk, value: object, where: str, depth: int) -> None:
    if not isinstance(value, Mapping):
        raise InvalidConstraint(where, f"expected an object of schemas, not {type(value).__name__}")
    for name, schema in value.items():
        walk.visit(schema, f"{where}.{name}", depth + 1)


def _read_pattern_map(walk: _Walk, value: object, where: str, depth: int) -> None:
    _read_schema_map(walk, value, where, depth)
    assert isinstance(value, Mapping)
    for pattern in value:
        _read_pattern(walk, pattern, f"{where}.{pattern:.80}", depth)


def _read_branches(walk: _Walk, value: object, where: str, depth: int) -> None:
    if not isinstance(value, list) or not 1 <= len(value) <= BRANCHES_MAX:
        raise InvalidConstraint(where, f"expected a list of 1 to {BRANCHES_MAX} schemas")
    for index, schema in enumerate(value):
        walk.visit(schema, f"{where}[{index}]", depth + 1)


def _read_all_of(walk: _Walk, value: object, where: str, depth: int) -> None:
    """Of one schema, as some generators write a reference; several would have to be merged, which can explode."""
    if not isinstance(value, list) or len(value) != 1:
        raise InvalidConstraint(where, "allOf is taken with exactly one schema")
    walk.visit(value[0], f"{where}[0]", depth + 1)


def _read_prefix(walk: _Walk, value: object, where: str, depth: int) -> None:
    if not isinstance(value, list) or not value:
        raise InvalidConstraint(where, "expected a list of schemas")
    for index, schema in enumerate(value):
        walk.visit(schema, f"{where}[{index}]", depth + 1)


def _read_names(_walk: _Walk, value: object, where: str, _depth: int) -> None:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value) or len(set(value)) != len(value):
        raise InvalidConstraint(where, "expected a list of different property names")


def _read_enum(walk: _Walk, value: object, where: str, depth: int) -> None:
    if not isinstance(value, list) or not value:
        raise InvalidConstraint(where, "expected a list of at least one value")
    for index, item in enumerate(value):
        walk.visit_value(item, f"{where}[{index}]", depth + 1)


def _read_const(walk: _Walk, value: object, where: str, depth: int) -> None:
    walk.visit_value(value, where, depth + 1)


def _read_number(_walk: _Walk, value: object, where: str, _depth: int) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise InvalidConstraint(where, "expected a number")
    if abs(value) > NUMBER_MAX:
        raise InvalidConstraint(where, f"{value!r:.40} exceeds 2^53")


def _read_divisor(walk: _Walk, value: object, where: str, depth: int) -> None:
    _read_number(walk, value, where, depth)
    if not isinstance(value, int | float) or value <= 0:
        raise InvalidConstraint(where, f"{value!r:.40} is not above 0")


def _read_count(_walk: _Walk, value: object, where: str, _depth: int) -> None:
    if type(value) is not int or not 0 <= value <= COUNT_MAX:
        raise InvalidConstraint(where, f"expected an integer from 0 to {COUNT_MAX}")


def _read_required_count(_walk: _Walk, value: object, where: str, _depth: int) -> None:
    if type(value) is not int or not 0 <= value <= REQUIRED_COUNT_MAX:
        raise InvalidConstraint(where, f"expected an integer from 0 to {REQUIRED_COUNT_MAX}")


def _read_pattern(_walk: _Walk, value: object, where: str, _depth: int) -> None:
    if not isinstance(value, str) or len(value) > PATTERN_CHARACTERS_MAX:
        raise InvalidConstraint(where, f"expected a regular expression of at most {PATTERN_CHARACTERS_MAX} characters")


def _read_format(_walk: _Walk, value: object, where: str, _depth: int) -> None:
    if not isinstance(value, str) or value not in _FORMATS:
        raise InvalidConstraint(where, f"{str(value)[:40]!r} is not one of {', '.join(sorted(_FORMATS))}")


def _read_reference(walk: _Walk, value: object, where: str, _depth: int) -> None:
    if not isinstance(value, str):
        raise InvalidConstraint(where, "expected a reference")
    walk.refer(value, where)


_READERS: Final[Mapping[str, _Reader]] = {
    **dict.fromkeys(_ANNOTATIONS, _read_nothing),
    "$defs": _read_schema_map,
    "$ref": _read_reference,
    "additionalProperties": _read_closing_schema,
    "allOf": _read_all_of,
    "anyOf": _read_branches,
    "const": _read_const,
    "definitions": _read_schema_map,
    "enum": _read_enum,
    "exclusiveMaximum": _read_number,
    "exclusiveMinimum": _read_number,
    "format": _read_format,
    "items": _read_closing_schema,
    "maxItems": _read_count,
    "maxLength": _read_count,
    "maximum": _read_number,
    "minItems": _read_required_count,
    "minLength": _read_required_count,
    "minimum": _read_number,
    "multipleOf": _read_divisor,
    "oneOf": _read_branches,
    "pattern": _read_pattern,
    "patternProperties": _read_pattern_map,
    "prefixItems": _read_prefix,
    "properties": _read_schema_map,
    "required": _read_names,
    "type": _read_type,
}


def _refuse_empty_ranges(schema: Mapping[str, object], where: str) -> None:
    for low, high in (("minimum", "maximum"), ("minLength", "maxLength"), ("minItems", "maxItems")):
        least, most = schema.get(low), schema.get(high)
        if isinstance(least, int | float) and isinstance(most, int | float) and least > most:
            raise InvalidConstraint(f"{where}.{low}", f"{least} is above {high} {most}")
