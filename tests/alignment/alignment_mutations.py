"""Every way to change one leaf of a JSON document: other values, other types, other spellings."""

import copy
import json


def leaves_of(value, path=()):
    """Paths of all leaves; an empty list or object is a leaf."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from leaves_of(item, (*path, name))
    elif isinstance(value, list) and value:
        for place, item in enumerate(value):
            yield from leaves_of(item, (*path, place))
    else:
        yield path


def branches_of(value, path=()):
    """Paths of all objects and lists, the document itself included."""
    if isinstance(value, dict | list):
        yield path
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from branches_of(item, (*path, name))


def get(document, path):
    for step in path:
        document = document[step]
    return document


def put(document, path, value):
    changed = copy.deepcopy(document)
    get(changed, path[:-1])[path[-1]] = value
    return changed


def _is_hex(value):
    return value.startswith("0x") and all(digit in "0123456789abcdef" for digit in value[2:])


def other_values(value):
    """(values of the same form, values of another form or spelling) that differ from this leaf."""
    strange = [None, {}, [], [value], {"": value}, True, 1.5]
    if value == []:
        return [], [item for item in strange if item != []]
    if isinstance(value, bool):
        return [not value], [*[item for item in strange if item is not True], 0, 1, "true", "false"]
    if isinstance(value, int):
        near = {value + 1, value - 1, 0, 1, value ^ 2, value * 2 + 1} - {value}
        return sorted(item for item in near if item >= 0), [*strange, str(value), float(value), -1, -value - 1, 1 << 64]
    assert isinstance(value, str)
    if value.isdigit():
        same = {str(int(value) + 1), str(max(int(value) - 1, 0)), "0", "1", value + "0" if value != "0" else "10"}
        return sorted(same - {value}), [
            *strange,
            int(value),
            "+" + value,
            "0" + value,
            value + " ",
            "-" + value,
            "",
            "x",
        ]
    if _is_hex(value) and len(value) > 2:
        last = "0" if value[-1] != "0" else "1"
        first = "0" if value[2] != "0" else "f"
        zero = "0x" + "0" * (len(value) - 2)
        same = {value[:-1] + last, "0x" + first + value[3:], zero, "0x" + value[:1:-1]} - {value}
        upper = "0x" + value[2:].upper()
        other = [
            value[:-2],
            value + "00",
            value[2:],
            "0X" + value[2:],
            "",
            "0x",
            value[:-1],
            " " + value,
            "0x+" + value[3:],
        ]
        return sorted(same), strange + other + ([upper] if upper != value else [])
    same = {value + " ", value + "\u0000", value[1:], "", value.swapcase(), value[:-1] + "\u2028"} - {value}
    return sorted(same), [*strange, 7, "\ud800"]


def other_branches(value):
    """An object or list with something added, left out, or in another order."""
    if isinstance(value, dict):
        yield value | {"extra": 1}
        yield value | {"": None}
        for name in value:
            yield {key: item for key, item in value.items() if key != name}
            yield {(key.upper() if key == name else key): item for key, item in value.items()}
    else:
        yield [*value, 1]
        yield [*value, *value[-1:]]
        yield value[1:] if value else [None]
        yield value[:-1] if value else [[]]
        yield value[::-1]
        yield value[1:] + value[:1]


def dump(document):
    return json.dumps(document, indent=1).encode() + b"\n"
