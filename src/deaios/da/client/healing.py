"""Make a member's row anew from other members' rows, checking everything: no trust in who helps."""

import asyncio

from deaios.coding.matrix import decode, encode
from deaios.da.client.reader import Reader
from deaios.ledger.client.availability import Certificate
from deaios.primitives.encoding import encode_hex
from deaios.rows.message import InvalidRow, build_message


class Healer:
    """Rebuilds rows over a reader."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def rebuild(self, certificate: Certificate, rows: range, avoid: int | None) -> dict[int, bytes]:
        """Row messages of a certified matrix.

        Args:
            certificate: of the matrix.
            rows: which.
            avoid: place of a member that is not asked: oneself.

        Raises:
            UnavailableRows: too few others can be reached or hold theirs.
            InvalidRow: the certified matrix was never a code; only a broken quorum or a broken proof does that.
        """
        found = await self._reader.fetch_rows(certificate, () if avoid is None else (avoid,))
        data = {index: message.row for index, message in found.items()}

        def build() -> dict[int, bytes]:
            matrix = encode(decode(certificate.parameters, data), certificate.parameters.profile)
            if matrix.commitment != certificate.attestation.commitment:
                raise InvalidRow(
                    f"rows of {encode_hex(certificate.attestation.commitment)} decode to a payload that has "
                    f"commitment {encode_hex(matrix.commitment)}"
                )
            return {row: build_message(matrix, row).encode() for row in rows}

        return await asyncio.to_thread(build)
