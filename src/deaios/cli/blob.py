"""`blob`: publish bytes for a term, read them, sample them, prove them, call their keepers to account."""

import os
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deaios.cli.terminal import bar, common, emit_json, run_async, say
from deaios.node.folder import StateFolder
from deaios.primitives.encoding import encode_hex
from deaios.primitives.units import format_credit

if TYPE_CHECKING:
    from deaios.da.client.blobs import BlobStatus
    from deaios.da.client.reader import Sample

HOUR_S = 3600
FILE_BYTES_MAX = 64 << 20
"""A proof file larger than this is none."""


@click.group()
def blob() -> None:
    """Publish blobs for a term; read, sample, prove and challenge them."""


@blob.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--term", type=click.IntRange(1), default=1, show_default=True, metavar="HOURS", help="How long.")
@common
@run_async
async def put(file: Path, folder: StateFolder, as_json: bool, term: int) -> None:
    """Publish FILE for a term and print its id.

    Large files are cut into segments. A put that was interrupted goes on when it is repeated: what is certified
    already is not sent again.
    """
    from deaios.node.session import open_session  # noqa: PLC0415 - keeps `--help` quick

    size = os.stat(file).st_size  # noqa: PTH116 - one look, before anything runs beside it
    async with open_session(folder) as session:
        await session.member.ensure_funded(1)
        with bar(hidden=as_json) as progress:
            task = progress.add_task(file.name, total=size)
            blob_id = await session.blobs().put_file(
                file, term * HOUR_S, lambda done, total: progress.update(task, completed=done, total=total)
            )
    if as_json:
        emit_json({"id": str(blob_id), "size_bytes": size, "term_s": term * HOUR_S})
    else:
        say(str(blob_id))


@blob.command()
@click.argument("identifier", metavar="ID")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Where to; ./ID otherwise.")
@common
@run_async
async def get(identifier: str, folder: StateFolder, as_json: bool, output: Path | None) -> None:
    """Fetch the blob with this ID; every row is verified before it is used."""
    from deaios.da.blob import parse_blob_id  # noqa: PLC0415 - keeps `--help` quick
    from deaios.node.session import open_session  # noqa: PLC0415 - keeps `--help` quick

    blob_id = parse_blob_id(identifier)
    target = output or Path(identifier)
    async with open_session(folder) as session:
        with bar(hidden=as_json) as progress:
            task = progress.add_task(target.name, total=None)
            size = await session.blobs().get_file(
                blob_id, target, lambda done, total: progress.update(task, completed=done, total=total)
            )
    if as_json:
        emit_json({"id": identifier, "file": str(target), "size_bytes": size})
    else:
        say(f"{target} ({size:,} bytes), every row verified")


@blob.command()
@click.argument("identifier", metavar="ID")
@common
@run_async
async def status(identifier: str, folder: StateFolder, as_json: bool) -> None:
    """Show what the chain and the blob itself say: size, term, who signed, what it cost."""
    from deaios.da.blob import parse_blob_id  # noqa: PLC0415 - keeps `--help` quick
    from deaios.node.session import open_session  # noqa: PLC0415 - keeps `--help` quick

    async with open_session(folder) as session:
        found = await session.blobs().get_status(parse_blob_id(identifier))
        committee = await session.member.contracts.availability.committee(found.certificate.attestation.epoch)
    signed = [member for member in committee.members if found.certificate.has_seat(member.first_seat)]
    if as_json:
        emit_json(_describe_status(found) | {"members": [encode_hex(member.address) for member in signed]})
        return
    until = datetime.fromtimestamp(found.expires_at, UTC)
    profile = found.certificate.parameters.profile
    say(f"{found.kind}, {found.size_bytes:,} bytes, kept until {until:%Y-%m-%d %H:%M:%S} UTC")
    say(
        f"any {profile.data_rows} of {profile.rows} rows give it back; "
        f"{found.certificate.signers.bit_count()} seats signed:"
    )
    for member in signed:
        say(f"  {encode_hex(member.address)}  rows {member.rows.start} to {member.rows.stop - 1}")
    say(f"fee {format_credit(found.certificate.fee)} credit, paid by {encode_hex(found.certificate.payer)}")
    if found.segments:
        say(f"{len(found.segments)} segments, each with a certificate of its own")


@blob.command()
@click.argument("identifier", metavar="ID")
@click.option(
    "--chance",
    type=click.FloatRange(0, 1, max_open=True),
    default=1e-9,
    show_default=True,
    help="Of taking a lost blob for available.",
)
@common
@run_async
async def sample(identifier: str, folder: StateFolder, as_json: bool, chance: float) -> int:
    """See that a blob can be had, without fetching it: random rows, each verified.

    Ends with 0 when it can, with 2 when too few rows were had to say so.
    """
    from deaios.da.blob import parse_blob_id  # noqa: PLC0415 - keeps `--help` quick
    from deaios.node.session import open_session  # noqa: PLC0415 - keeps `--help` quick

    async with open_session(folder) as session:
        samples = await session.blobs().sample(parse_blob_id(identifier), Fraction(chance))
    is_available = all(one.is_available for one in samples)
    if as_json:
        emit_json({"id": identifier, "available": is_available, "matrices": [_describe_sample(one) for one in samples]})
    else:
        for one in samples:
            _show_sample(one)
        total = sum(one.received_bytes for one in samples)
        length = sum(one.certificate.length for one in samples)
        say(f"received {total:,} bytes to check {length:,}")
        say("proven: every row that came is on the one codeword that its commitment names")
        say("trusts the network's operator: that the chain's certificate and committee are the network's")
    return 0 if is_available else 2


@blob.command()
@click.argument("identifier", metavar="ID")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Where to.")
@common
@run_async
async def prove(identifier: str, folder: StateFolder, as_json: bool, output: Path) -> None:
    """Write a proof of the content with this ID, for somebody who has nothing but the id."""
    from deaios.da.blob import parse_blob_id  # noqa: PLC0415 - keeps `--help` quick
    from deaios.da.proof import encode_proof  # noqa: PLC0415 - keeps `--help` quick
    from deaios.node.session import open_session  # noqa: PLC0415 - keeps `--help` quick
    from deaios.runtime.disk import write_atomic  # noqa: PLC0415 - keeps `--help` quick

    async with open_session(folder) as session:
        proof = encode_proof(await session.blobs().prove(parse_blob_id(identifier)))
    write_atomic(output, proof)
    if as_json:
        emit_json({"id": identifier, "file": str(output), "size_bytes": len(proof)})
    else:
        say(f"{output} ({len(proof):,} bytes); check it with `deaios blob verify {identifier} {output}`")


@blob.command()
@click.argument("identifier", metavar="ID")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the proven content here.")
@common
@run_async
async def verify(identifier: str, file: Path, folder: StateFolder, as_json: bool, output: Path | None) -> int:  # noqa: ARG001 # as all commands
    """Check a proof FILE against an ID, offline; ends with 1 when it proves nothing."""
    from deaios.da.blob import parse_blob_id  # noqa: PLC0415 - keeps `--help` quick
    from deaios.da.proof import PROOF_BYTES_MAX, decode_proof, verify_item  # noqa: PLC0415 - keeps `--help` quick
    from deaios.runtime.disk import write_atomic  # noqa: PLC0415 - keeps `--help` quick

    with file.open("rb") as opened:
        data = opened.read(PROOF_BYTES_MAX + 1)
    proven = verify_item(parse_blob_id(identifier), decode_proof(data))
    if proven is None:
        say(f"{file} does not prove {identifier}", style="red") if not as_json else emit_json({"proven": False})
        return 1
    if output is not None:
        write_atomic(output, proven.content)
    if as_json:
        emit_json({"proven": True, "size_bytes": len(proven.content), "expires_at": proven.expires_at})
    else:
        say(f"proven: {len(proven.content):,} bytes are what {identifier} names", style="green")
    return 0


@blob.command()
@click.argument("identifier", metavar="ID")
@click.argument("seat", type=click.IntRange(0))
@common
@run_async
async def challenge(identifier: str, seat: int, folder: StateFolder, as_json: bool) -> None:
    """Bet a bond that the holder of SEAT cannot show its row of this blob, and wait for the end.

    The beacon picks leaves that nobody could foresee. If they are shown, the bond pays for the answer; if not, the
    member is slashed, and the bond comes back with a tenth of it.
    """
    from deaios.da.blob import parse_blob_id  # noqa: PLC0415 - keeps `--help` quick
    from deaios.node.session import open_session  # noqa: PLC0415 - keeps `--help` quick

    async with open_session(folder) as session:
        certificate = await session.blobs().reader.fetch_certificate(parse_blob_id(identifier).commitment)
        await session.member.ensure_funded(session.member.descriptor.windows.da_challenge_bond)
        challenger = session.challenger()
        bet = await challenger.open(certificate, seat)
        if not as_json:
            say(f"challenge {encode_hex(bet.id)} is open; waiting for the beacon and the answer")
        end = await challenger.wait(bet)
    member = encode_hex(end.member)
    if as_json:
        emit_json({"member": member, "answered": end.is_answered, "slashed": end.slashed})
    elif end.is_answered:
        say(f"{member} showed its leaves; the bond paid for that")
    elif end.slashed:
        say(f"{member} showed nothing and was slashed {format_credit(end.slashed)} credit", style="red")
    else:
        say("the beacon gave no value, so nothing was asked; the bond came back")


def _describe_status(found: "BlobStatus") -> dict[str, object]:
    certificate = found.certificate
    return {
        "id": str(found.id),
        "kind": found.kind,
        "size_bytes": found.size_bytes,
        "expires_at": found.expires_at,
        "epoch": certificate.attestation.epoch,
        "data_rows": certificate.parameters.profile.data_rows,
        "rows": certificate.parameters.profile.rows,
        "seats_signed": certificate.signers.bit_count(),
        "fee": certificate.fee,
        "payer": encode_hex(certificate.payer),
        "segments": [encode_hex(segment) for segment in found.segments],
    }


def _describe_sample(one: "Sample") -> dict[str, object]:
    return {
        "commitment": encode_hex(one.certificate.attestation.commitment),
        "available": one.is_available,
        "confidence": float(one.confidence),
        "rows": one.rows,
        "missing": {str(row): reason for row, reason in one.missing.items()},
        "received_bytes": one.received_bytes,
    }


def _show_sample(one: "Sample") -> None:
    name = encode_hex(one.certificate.attestation.commitment)
    profile = one.certificate.parameters.profile
    if one.is_available:
        doubt = float(1 - one.confidence)
        claim = f"but for a chance of {doubt:.1e}" if doubt else "for certain"
        say(f"{name}: {len(one.rows)} of {profile.rows} rows verified, so it can be had {claim}", style="green")
    else:
        say(f"{name}: {len(one.rows)} rows verified, {profile.data_rows} are needed to be sure", style="red")
    for row, reason in one.missing.items():
        say(f"  row {row} was not had: {reason}")
