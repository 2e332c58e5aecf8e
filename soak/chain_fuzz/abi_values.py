"""Random values of an ABI type, near the edges of its range as often as not."""

import random
from typing import Any

from eth_abi.grammar import TupleType, parse


def random_value(rolls: random.Random, kind: str, addresses: list[bytes]) -> Any:  # Any: as eth-abi takes them
    """A value of the type; addresses are known ones most of the time."""
    parsed = parse(kind)
    if parsed.is_array:
        size = parsed.arrlist[-1]
        count = size[0] if size else rolls.randrange(4)
        return tuple(random_value(rolls, parsed.item_type.to_type_str(), addresses) for _ in range(count))
    if isinstance(parsed, TupleType):
        return tuple(random_value(rolls, part.to_type_str(), addresses) for part in parsed.components)
    match parsed.base:
        case "address":
            return rolls.choice(addresses) if addresses and rolls.random() < 0.9 else bytes(20)
        case "bool":
            return rolls.random() < 0.5
        case "string":
            return rolls.choice(["", "a", "https://node.test", "x" * 65])
        case "bytes":
            return rolls.randbytes(parsed.sub or rolls.choice([0, 1, 32, 65, 200]))
        case "int":
            bits = parsed.sub - 1
            return rolls.choice([0, 1, -1, (1 << bits) - 1, -(1 << bits), rolls.getrandbits(bits)])
    bits = parsed.sub
    return rolls.choice([0, 1, 2, rolls.randrange(min(100, 1 << bits)), (1 << bits) - 1, rolls.getrandbits(bits)])
