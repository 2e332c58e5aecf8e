"""From a file, a name or an id to a role that sells that model."""

import asyncio
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Final

from deaios.market.offers import PRICE_MAX
from deaios.node.folder import RoleSpec, StateFolder
from deaios.node.names import Published, find_model
from deaios.node.offering import Choices, prepare_model, publish_model
from deaios.node.session import open_session
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import ConfigError
from deaios.primitives.units import CREDIT_DECIMALS

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it so far, how much in all (0 when unknown)."""
_PRICE: Final = re.compile(r"([0-9.]{1,20}):([0-9.]{1,20})", re.ASCII)


def read_price(text: str) -> tuple[int, int]:
    """Prices of prompt and sampled tokens, smallest units per million, from `IN:OUT` in credit per million tokens.

    Raises:
        ConfigError: not two amounts, finer than the smallest unit, or beyond any offer.
    """
    found = _PRICE.fullmatch(text)
    if found is None:
        raise ConfigError(f"price {text[:40]!r} is not IN:OUT in credit per million tokens, such as 0.5:2")
    amounts = []
    for part in found.groups():
        try:
            units = Decimal(part).scaleb(CREDIT_DECIMALS)
        except InvalidOperation as error:
            raise ConfigError(f"price {part!r} is not a number") from error
        if units != units.to_integral_value() or units > PRICE_MAX:
            raise ConfigError(f"price {part} is finer than {CREDIT_DECIMALS} digits or above what any offer may ask")
        amounts.append(int(units))
    return amounts[0], amounts[1]


async def arrange_role(
    folder: StateFolder, model: str | None, price: str | None, choices: Choices, port: int, progress: Progress
) -> tuple[RoleSpec, Published]:
    """A provider's role for a model: a file is calibrated, stored and published first; a name or id is looked up.

    Args:
        folder: has joined a network.
        model: path of a GGUF file, a model's name, or a record's id; None for the network's default.
        price: `IN:OUT` in credit per million tokens; None as configured.
        choices: about a file.
        port: of the role.
        progress: told what is going on.

    Raises:
        UnavailableName: neither a file nor in the catalogue.
    """
    input_price, output_price = (None, None) if price is None else read_price(price)
    descriptor = folder.load_descriptor()
    model = model or encode_hex(descriptor.default_model_record_id)
    file = Path(model)
    is_file = await asyncio.to_thread(file.is_file)
    if not is_file and (model.endswith(".gguf") or model.startswith((".", "/", "~"))):
        raise ConfigError(f"there is no model file {model}")
    prepared = None
    if is_file:
        prepared = await asyncio.to_thread(prepare_model, folder, file, choices, progress)
    async with open_session(folder) as session:
        member = session.member
        if prepared is not None:
            await member.ensure_funded(0)
            storage = await session.storage()
            record_id = await publish_model(prepared, member.contracts, member.sender, storage, progress)
            model = encode_hex(record_id)
        found = await find_model(member.contracts, descriptor.default_model_record_id, model)
    is_default = found.record_id == descriptor.default_model_record_id
    spec = RoleSpec(
        name="provider-1" if is_default else f"provider-{found.record_id[:4].hex()}",
        kind="provider",
        port=port,
        record="" if is_default else encode_hex(found.record_id),
        input_price=input_price,
        output_price=output_price,
    )
    return spec, found
