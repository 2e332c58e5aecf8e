"""Puts on disk what shows that somebody else's blocks are not this chain's, and says so in one error."""

import asyncio
from pathlib import Path

from deaios.chain.blocks import BlockHeader
from deaios.chain.consensus import DivergentBlock, SealedBlock
from deaios.chain.evidence import encode_divergence, encode_equivocation, find_equivocation
from deaios.chain.service.chain import ChainService
from deaios.primitives.encoding import encode_hex
from deaios.primitives.errors import Invalid
from deaios.runtime.disk import write_atomic


class Diverged(Invalid):
    """What a source or an archive holds is not this chain.

    Attributes:
        found: what differs, at which height, with both values.
        evidence: the file that says so.
    """

    def __init__(self, where: str, found: DivergentBlock, evidence: Path) -> None:
        super().__init__(f"{where}: {found}; no further block is taken, evidence is in {evidence}")
        self.found = found
        self.evidence = evidence


class Witness:
    """Keeps evidence for one chain against one source of blocks."""

    def __init__(self, chain: ChainService, where: str, folder: Path) -> None:
        """Begin with nothing.

        Args:
            chain: ours.
            where: whose blocks are looked at: a URL or a file.
            folder: of the evidence; made when there is some.
        """
        self._chain = chain
        self._where = where
        self._folder = folder

    async def take(self, block: SealedBlock, parent: BlockHeader, found: DivergentBlock) -> Diverged:
        """Keep a block that cannot follow `parent`, or that is another than ours at its height."""
        ours = await self._chain.header(block.header.number)
        if ours is not None and ours.hash != block.header.hash:
            return await self.compare(ours, (block.header, block.signature))
        return await self._write("divergence", found, encode_divergence(self._chain.identity, parent, block, found))

    async def compare(self, ours: BlockHeader, theirs: tuple[BlockHeader, bytes]) -> Diverged:
        """Keep another header than ours for one height: the operator's own signatures may convict it."""
        number, identity = ours.number, self._chain.identity
        found = DivergentBlock(number, "hash", encode_hex(theirs[0].hash), encode_hex(ours.hash))
        signature = await self._chain.read(lambda store: store.fetch_signature(number)) or b""
        if proof := find_equivocation(identity, (ours, signature), theirs):
            return await self._write("equivocation", found, encode_equivocation(proof))
        data = encode_divergence(identity, ours, SealedBlock(theirs[0], theirs[1], ()), found)
        return await self._write("divergence", found, data)

    async def _write(self, kind: str, found: DivergentBlock, data: bytes) -> Diverged:
        path = self._folder / f"{kind}-{found.number}.json"
        await asyncio.to_thread(write_atomic, path, data)
        return Diverged(self._where, found, path)
