"""Targets of what followers and archives read. Not a test module; `decoders.py` lists them."""

import io
import json

from fuzz_target import Skipped, Target, as_json

from deaios.chain import archive, blocks, consensus, evidence, genesis
from deaios.chain.evm import EMPTY_CODE_HASH
from deaios.chain.service import source
from deaios.ledger import eip712, rlp, structs, transactions
from deaios.primitives.keys import Address, PrivateKey

OPERATOR = PrivateKey(b"\x0f" * 32)
MADE = genesis.Genesis(seed=bytes(32), operator=OPERATOR.address, timestamp=1)
ADDRESS = Address(b"\x22" * 20)


def _header(state_commitment: bytes) -> blocks.BlockHeader:
    commitment = genesis.build_genesis_commitment(genesis.build_genesis_changes(MADE))
    made = genesis.build_genesis_header(MADE, commitment)
    return blocks.BlockHeader(**{**made.__dict__, "state_commitment": state_commitment, "extra_data": b""})


def _sign(header: blocks.BlockHeader) -> bytes:
    record = blocks.header_record(bytes(32), header)
    return eip712.sign_struct(OPERATOR, structs.header_domain(MADE.chain_id), record)


def _raw() -> bytes:
    kind = transactions.DYNAMIC_FEE
    made = transactions.Transaction(kind, MADE.chain_id, 0, 10**10, 1, 21_000, ADDRESS, 1, b"")
    return transactions.sign_transaction(OPERATOR, made).raw


def _decode_batch(data: bytes) -> object:
    """What a follower does with a source's answer."""
    batch = source.read_batch("url", 0, 3, as_json(data))
    return [batch.decode_block(index) for index in range(len(batch.texts))]


def _batch(header: blocks.BlockHeader) -> bytes:
    def text(data: bytes) -> str:
        return "0x" + data.hex()

    block = {"header": text(header.encoded), "signature": text(_sign(header)), "transactions": [text(_raw())]}
    return json.dumps({"head": "0x5", "previous": None, "blocks": [block]}).encode()


def _decode_sealed(data: bytes) -> object:
    match rlp.decode_rlp(data):
        case [bytes(header), bytes(signature), list(raws)] if all(isinstance(raw, bytes) for raw in raws):
            return consensus.decode_sealed_block(header, signature, raws)
        case _:
            raise Skipped("not three parts")


def _archive(body: bytes) -> bytes:
    out = io.BytesIO()
    writer = archive.ArchiveWriter(out.write)
    writer.put(archive.Kind.GENESIS, genesis.encode_genesis(MADE))
    writer.put(archive.Kind.BLOCK, body)
    writer.finish()
    return out.getvalue()


def replica_targets() -> list[Target]:
    commitment = genesis.build_genesis_commitment(genesis.build_genesis_changes(MADE))
    first, second = _header(bytes(32)), _header(b"\1" * 32)
    body = archive.encode_block(first.encoded, _sign(first), [_raw()])
    identity = consensus.Identity(bytes(32), MADE.chain_id, OPERATOR.address)
    proof = evidence.find_equivocation(identity, (first, _sign(first)), (second, _sign(second)))
    assert proof is not None
    account = archive.encode_account(ADDRESS, 1, 2, EMPTY_CODE_HASH)
    return [
        Target("sealed block", _decode_sealed, ("chain.consensus.decode_sealed_block",), (body,)),
        Target(
            "blocks of a source",
            _decode_batch,
            ("chain.service.source.read_batch", "chain.service.source.Batch.decode_block"),
            (_batch(genesis.build_genesis_header(MADE, commitment)),),
        ),
        Target(
            "equivocation",
            evidence.decode_equivocation,
            ("chain.evidence.decode_equivocation",),
            (evidence.encode_equivocation(proof),),
        ),
        Target(
            "archive",
            lambda data: list(archive.read_archive(io.BytesIO(data).read)),
            ("chain.archive.read_archive",),
            (_archive(body),),
        ),
        Target(
            "archived block",
            archive.decode_block,
            ("chain.archive.decode_block",),
            (body,),
            lambda value: archive.encode_block(
                value.header.encoded, value.signature, [item.raw for item in value.transactions]
            ),
        ),
        Target(
            "archived state",
            archive.decode_state_head,
            ("chain.archive.decode_state_head",),
            (archive.encode_state_head(first.encoded, _sign(first)),),
            lambda value: archive.encode_state_head(value.header.encoded, value.signature),
        ),
        Target(
            "archived codes",
            archive.decode_codes,
            ("chain.archive.decode_codes",),
            (archive.encode_codes([b"\1\2", b"\3"]),),
            archive.encode_codes,
        ),
        Target(
            "archived accounts",
            lambda data: list(archive.decode_accounts(data)),
            ("chain.archive.decode_accounts",),
            (account * 2,),
            lambda value: b"".join(archive.encode_account(*row) for row in value),
        ),
        Target(
            "archived slots",
            lambda data: list(archive.decode_slots(data)),
            ("chain.archive.decode_slots",),
            (archive.encode_slot(ADDRESS, 3, 4),),
            lambda value: b"".join(archive.encode_slot(*row) for row in value),
        ),
    ]
