"""Blobs through a real committee: available or refused, whoever lies; kept until their term, and no longer."""

import asyncio
import random

import pytest

from deaios.da.blob import BlobId, InvalidBlob, Item, encode_bundle, encode_large, encode_single
from deaios.da.client import blobs as blobs_module
from deaios.da.client.blobs import InvalidContent
from deaios.da.client.bundler import Bundler, Dispersed
from deaios.da.client.disperser import Bill, UnavailableQuorum
from deaios.da.client.reader import UnavailableExpired
from deaios.da.proof import decode_proof, encode_proof, verify_item
from deaios.rows.client import UnavailableRows
from deaios.rows.manifest import Manifest
from deaios.rows.store import RowStore
from deaios.runtime.errors import NotFound, RefusedTooLarge

HOUR = 3600


def make_bytes(size, seed=1):
    return random.Random(seed).randbytes(size)


async def test_a_blob_goes_in_and_comes_out(hamlet, tmp_path):
    await hamlet.start_members()
    await hamlet.begin_epoch()
    client, content = hamlet.client(), make_bytes(100_000)
    before = await hamlet.contracts.credit.balance_of(hamlet.user.address)
    blob_id = await client.put_bytes(content, HOUR)

    assert await client.get_bytes(blob_id, 100_000) == content
    with pytest.raises(RefusedTooLarge, match="100000 bytes"):
        await client.get_bytes(blob_id, 99_999)
    assert await client.get_file(blob_id, tmp_path / "out") == 100_000
    assert (tmp_path / "out").read_bytes() == content

    status = await client.get_status(blob_id)
    certificate = status.certificate
    assert (status.kind, status.size_bytes, certificate.seats) == ("single", 100_000, 12)
    assert certificate.signers.bit_count() >= 8
    paid = before - await hamlet.contracts.credit.balance_of(hamlet.user.address)
    assert paid == certificate.fee == await hamlet.contracts.availability.fee_of(100_014, HOUR)

    (sample,) = await client.sample(blob_id)
    assert (sample.is_available, sample.confidence, sample.missing) == (True, 1, {})
    proof = decode_proof(encode_proof(await client.prove(blob_id)))
    assert verify_item(blob_id, proof).content == content

    assert await client.put_bytes(content, HOUR) == blob_id  # certified already: nothing is paid again
    assert before - await hamlet.contracts.credit.balance_of(hamlet.user.address) == paid
    with pytest.raises(NotFound, match="no certificate"):
        await client.get_bytes(BlobId(bytes(32)), 1)
    with pytest.raises(InvalidBlob, match="no bundle"):
        await client.get_bytes(BlobId(blob_id.commitment, 0), 1 << 20)


async def test_five_liars_of_sixteen(village, kit):
    stores = {0: kit.ForgettingStore, 4: kit.StallingWriter, 7: kit.CorruptingStore, 9: kit.StallingStore}
    await village.start_members(stores, {13: kit.EquivocatingDoor})
    await village.begin_epoch()
    client, availability = village.client(), village.contracts.availability
    contents = [make_bytes(size, seed) for seed, size in enumerate((1, 5_000, 300_000, 1_000_000))]
    ids = [await client.put_bytes(content, HOUR) for content in contents]
    for blob_id, content in zip(ids, contents, strict=True):
        assert await client.get_bytes(blob_id, 1 << 20) == content
        certificate = await client.reader.fetch_certificate(blob_id.commitment)
        assert not certificate.has_seat(seat_of(village, certificate, 13))
        assert not certificate.has_seat(seat_of(village, certificate, 4))

    # Everybody who signed is called to account; only who cannot show leaves pays.
    certificate = await client.reader.fetch_certificate(ids[2].commitment)
    committee = await availability.committee(1)
    signed = [seat for seat in range(16) if certificate.has_seat(seat)]
    assert len(signed) >= 11
    before = {member.address: await slice_of(village, member) for member in village.members}
    challenger = village.challenger()
    opened = {seat: await challenger.open(certificate, seat) for seat in signed}
    await village.speak()
    for member in village.members:
        if type(member.store) is RowStore:
            await member.duties.scan()
            await member.duties.answer_challenges()
    answered = {seat for seat, one in opened.items() if not (await availability.challenge_of(one.id)).is_open}
    await village.pass_time(village.settings.da_challenge_s_max + 1)
    ends = {seat: await challenger.wait(one) for seat, one in opened.items()}
    liars = {village.members[number].address for number in stores}
    for seat, end in ends.items():
        assert end.is_answered == (seat in answered) == (committee.owner_of(seat).address not in liars)
        lost = before[end.member] - await village.contracts.staking.slice_of(kit.DATA_AVAILABILITY, end.member)
        assert lost == end.slashed == (0 if end.is_answered else village.settings.da_penalty)
    assert {end.member for end in ends.values() if end.slashed} >= {village.members[0].address}
    signers = await availability.signers_of(certificate.digest)
    assert {seat for seat in signed if signers >> seat & 1} == answered


def seat_of(village, certificate, number):
    """Seats are turned by the epoch's number among equal members."""
    members, epoch = len(village.members), certificate.attestation.epoch
    return (number - epoch) % members


async def slice_of(village, member):
    from deaios.ledger.suite import DATA_AVAILABILITY

    return await village.contracts.staking.slice_of(DATA_AVAILABILITY, member.address)


async def test_too_few_attestations_cost_nothing(village, kit):
    await village.start_members({0: kit.FullStore, 1: kit.FullStore}, dict.fromkeys(range(2, 6), kit.RefusingDoor))
    await village.begin_epoch()
    before = await village.contracts.credit.balance_of(village.user.address)
    with pytest.raises(UnavailableQuorum, match="10 of 16 seats attested, 11 are needed") as caught:
        await village.client().put_bytes(b"nobody's", HOUR)
    assert "RefusedFull" in str(caught.value)
    assert village.members[0].pledges.count() == (0, 0)  # a full disk signs nothing
    assert await village.contracts.credit.balance_of(village.user.address) == before


async def test_any_five_of_sixteen_give_it_back_and_four_say_what_is_missing(village, tmp_path):
    await village.start_members()
    await village.begin_epoch()
    content = make_bytes(2_000_000)
    client = village.client()
    blob_id = await client.put_bytes(content, HOUR)
    certificate = await client.reader.fetch_certificate(blob_id.commitment)
    holders = [
        member for member in village.members if certificate.has_seat(seat_of(village, certificate, member.number))
    ]
    random.Random(5).shuffle(holders)
    for member in village.members:
        if member not in holders[:5]:
            await member.stop()
    assert await village.client().get_bytes(blob_id, 1 << 24) == content
    (sample,) = await village.client().sample(blob_id)
    assert (sample.is_available, sample.confidence, len(sample.rows)) == (True, 1, 5)

    await holders[0].stop()
    with pytest.raises(UnavailableRows, match="4 of 5 rows found"):
        await village.client().get_file(blob_id, tmp_path / "target" / "file")
    assert not (tmp_path / "target").exists()
    with pytest.raises(UnavailableRows, match="4 of 5 rows found") as caught:
        await village.client().get_bytes(blob_id, 1 << 24)
    left = {seat_of(village, certificate, member.number) for member in holders[1:5]}
    assert set(caught.value.found) == left
    assert {missing.row for missing in caught.value.missing} == set(range(16)) - left
    (sample,) = await village.client().sample(blob_id)
    assert (sample.is_available, sample.confidence) == (False, 0)
    assert set(sample.rows) == left


async def test_a_long_file_in_segments_is_taken_up_where_it_was_cut(hamlet, tmp_path, monkeypatch):
    monkeypatch.setattr(blobs_module, "SINGLE_BYTES_MAX", 1 << 20)
    monkeypatch.setattr(blobs_module, "SEGMENT_BYTES_MAX", 1 << 20)
    await hamlet.start_members()
    await hamlet.begin_epoch()
    content = make_bytes((5 << 20) + 77)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)

    class Cut(Exception):
        pass

    def cut_after_two(done, total):
        if done >= 2 << 20:
            raise Cut

    with pytest.raises(Cut):
        await hamlet.client().put_file(source, HOUR, cut_after_two)
    certified = await hamlet.contracts.availability.fetch_certified(0)
    assert 2 <= len(certified) <= 4
    seen = []
    blob_id = await hamlet.client().put_file(source, HOUR, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(content), len(content))
    everything = await hamlet.contracts.availability.fetch_certified(0)
    assert len(everything) == 7  # six segments and their manifest, each certified once
    assert everything[: len(certified)] == certified
    status = await hamlet.client().get_status(blob_id)
    assert (status.kind, status.size_bytes, len(status.segments)) == ("large", len(content), 6)
    samples = await hamlet.client().sample(blob_id)
    assert [sample.is_available for sample in samples] == [True] * 7

    def cut_after_three(done, total):
        if done >= 3 << 20:
            raise Cut

    with pytest.raises(Cut):
        await hamlet.client().get_file(blob_id, target, cut_after_three)
    assert not target.exists()
    (partial,) = tmp_path.glob(".target.*.part")
    kept = bytearray(partial.read_bytes())
    assert kept[: 3 << 20] == content[: 3 << 20]
    kept[100] ^= 1  # what was left is damaged: found at the end, and fetched once more
    partial.write_bytes(kept)
    assert await hamlet.client().get_file(blob_id, target) == len(content)
    assert target.read_bytes() == content
    assert not list(tmp_path.glob(".target.*.part"))


async def test_a_bill_says_what_was_paid_also_when_the_put_failed(hamlet, monkeypatch):
    monkeypatch.setattr(blobs_module, "SINGLE_BYTES_MAX", 1 << 18)
    monkeypatch.setattr(blobs_module, "SEGMENT_BYTES_MAX", 1 << 18)
    await hamlet.start_members()
    await hamlet.begin_epoch()
    client, availability = hamlet.client(), hamlet.contracts.availability

    class Cut(Exception):
        pass

    def cut(done, total):
        raise Cut

    content, first, second, third = make_bytes(700_000), Bill(), Bill(), Bill()
    with pytest.raises(Cut):
        await client.put_bytes(content, HOUR, cut, first)
    assert first.fee == sum(one.fee for one in await availability.fetch_certified(0)) > 0
    blob_id = await client.put_bytes(content, HOUR, bill=second)
    certified = await availability.fetch_certified(0)
    assert first.fee + second.fee == sum(one.fee for one in certified) == await client.fetch_fee(len(content), HOUR)
    assert second.expires_at == min(one.attestation.expires_at for one in certified)
    assert await client.put_bytes(content, HOUR, bill=third) == blob_id
    assert (third.fee, third.expires_at) == (0, second.expires_at)


async def test_the_same_segment_twice_at_once_is_certified_once(hamlet, monkeypatch):
    monkeypatch.setattr(blobs_module, "SINGLE_BYTES_MAX", 1 << 18)
    monkeypatch.setattr(blobs_module, "SEGMENT_BYTES_MAX", 1 << 18)
    await hamlet.start_members()
    await hamlet.begin_epoch()
    client, bill = hamlet.client(), Bill()
    blob_id = await client.put_bytes(bytes(1 << 20), HOUR, bill=bill)
    certified = await hamlet.contracts.availability.fetch_certified(0)
    assert len(certified) == 2
    assert bill.fee == sum(one.fee for one in certified)
    assert await client.get_bytes(blob_id, 1 << 20) == bytes(1 << 20)


async def test_a_stream_gives_any_range_and_the_last_piece_only_of_what_the_manifest_says(hamlet, monkeypatch):
    monkeypatch.setattr(blobs_module, "SINGLE_BYTES_MAX", 1 << 18)
    monkeypatch.setattr(blobs_module, "SEGMENT_BYTES_MAX", 1 << 18)
    await hamlet.start_members()
    await hamlet.begin_epoch()
    client, content = hamlet.client(), make_bytes(600_000)
    blob_id = await client.put_bytes(content, HOUR)
    blob = await client.open(blob_id)
    assert [len(piece) async for piece in client.stream(blob)] == [1 << 18, 1 << 18, 600_000 - (1 << 19)]
    for wanted in (range(600_000), range(5), range((1 << 18) - 1, (1 << 18) + 1), range(599_999, 600_000), range(1, 1)):
        pieces = [bytes(piece) async for piece in client.stream(blob, wanted)]
        assert b"".join(pieces) == content[wanted.start : wanted.stop]

    manifest = blob.payload.manifest
    forged = Manifest(manifest.profile, manifest.size_bytes, bytes(32), manifest.segments)
    certificate = await client.disperse(encode_large(forged), HOUR)
    lie = await client.open(BlobId(certificate.attestation.commitment))
    pieces = client.stream(lie)
    assert bytes(await anext(pieces)) + bytes(await anext(pieces)) == content[: 1 << 19]
    with pytest.raises(InvalidContent, match="content id"):
        await anext(pieces)
    with pytest.raises(InvalidBlob, match="no bundle"):
        await client.get_status(BlobId(blob_id.commitment, 0))
    with pytest.raises(InvalidBlob, match="3 segments"):
        await client.prove(blob_id)


async def test_small_blobs_share_a_matrix_and_each_has_its_own_term_and_proof(hamlet):
    await hamlet.start_members()
    await hamlet.begin_epoch()
    client = hamlet.client()
    now = hamlet.clock.now_ms() // 1000

    async def disperse(payload, expires_at):
        bill = Bill()
        certificate = await client.disperse(payload, expires_at - now, bill)
        return Dispersed(certificate.attestation.commitment, bill.fee)

    bundler = Bundler(disperse, hamlet.clock, gather_s=0.05)
    contents = [make_bytes(200, seed) for seed in range(300)]
    with pytest.raises(InvalidBlob, match="0 bytes"):
        await bundler.put(b"", now + HOUR)
    bundled = await asyncio.gather(
        *(bundler.put(content, now + (HOUR if number % 2 else 2 * HOUR)) for number, content in enumerate(contents))
    )
    await bundler.close()
    ids = [one.id for one in bundled]
    assert {blob_id.commitment for blob_id in ids} == {ids[0].commitment}
    assert [blob_id.number for blob_id in ids] == list(range(300))
    for number in (0, 1, 151, 299):
        assert await client.get_bytes(ids[number], 1000) == contents[number]
        proof = await client.prove(ids[number])
        proven = verify_item(ids[number], proof)
        assert (proven.content, proven.expires_at) == (contents[number], now + (HOUR if number % 2 else 2 * HOUR))
        assert verify_item(ids[(number + 50) % 300], proof) is None
    (certificate,) = await hamlet.contracts.availability.fetch_certified(0)
    assert certificate.fee <= sum(one.fee for one in bundled) < certificate.fee + 300
    await hamlet.pass_time(HOUR + 1)
    assert await client.get_bytes(ids[0], 1000) == contents[0]
    with pytest.raises(UnavailableExpired):
        await client.get_bytes(ids[1], 1000)


async def test_a_bundle_that_cannot_be_sent_says_so_to_each(hamlet):
    async def refuse(payload, expires_at):
        raise UnavailableQuorum("nobody is here")

    bundler = Bundler(refuse, hamlet.clock, gather_s=0.01)
    results = await asyncio.gather(*(bundler.put(b"x", 1) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [UnavailableQuorum] * 3


async def test_rows_go_when_the_term_is_over_and_fees_are_shared(hamlet):
    await hamlet.start_members()
    await hamlet.begin_epoch()
    client, availability = hamlet.client(), hamlet.contracts.availability
    short = await client.put_bytes(make_bytes(50_000, 1), 60)
    long = await client.put_bytes(make_bytes(50_000, 2), 3 * HOUR)
    certificate = await client.reader.fetch_certificate(short.commitment)
    for member in hamlet.members:
        await member.do_duties()
        assert member.pledges.count() == (2, 0)
    held = await hamlet.contracts.credit.balance_of(availability.address)

    await hamlet.pass_time(60 + 121)
    wallets = [await hamlet.contracts.credit.balance_of(member.address) for member in hamlet.members]
    for _ in range(2):
        for member in hamlet.members:
            await member.do_duties()
        await hamlet.pass_time(100)
    earned = [
        await hamlet.contracts.credit.balance_of(member.address) + await availability.earned_of(member.address) - wallet
        for member, wallet in zip(hamlet.members, wallets, strict=True)
    ]
    assert sum(earned) == certificate.fee
    assert (
        held
        - await hamlet.contracts.credit.balance_of(availability.address)
        + sum([await availability.earned_of(member.address) for member in hamlet.members])
        == certificate.fee
    )
    with pytest.raises(UnavailableExpired):
        await client.get_bytes(short, 1 << 20)

    await hamlet.pass_time(hamlet.settings.da_challenge_s_max + 900)
    for member in hamlet.members:
        await member.do_duties()
        kept = {commitment for commitment, _row in member.store.list_rows(None, 100)}
        assert short.commitment not in kept
        assert member.pledges.count()[0] == (long.commitment in kept)
    assert await client.get_bytes(long, 1 << 20) == make_bytes(50_000, 2)


async def test_rows_that_nobody_certified_are_let_go(hamlet):
    await hamlet.start_members(doors={})
    await hamlet.begin_epoch()

    client = hamlet.client()

    async def fail(*_arguments):
        raise UnavailableQuorum("the chain is away")

    client._disperser._certify = fail
    with pytest.raises(UnavailableQuorum):
        await client.put_bytes(b"never certified", HOUR)
    member = hamlet.members[0]
    assert member.pledges.count() == (0, 1)
    await hamlet.pass_time(1800)
    await member.do_duties()
    assert member.pledges.count() == (0, 1)
    await hamlet.pass_time(1800 + 200)
    await member.do_duties()
    assert member.pledges.count() == (0, 0)
    assert member.store.list_rows(None, 10) == []


async def test_a_member_that_lost_its_disk_makes_its_rows_anew(village):
    import shutil

    await village.start_members()
    await village.begin_epoch()
    client = village.client()
    contents = [make_bytes(30_000, seed) for seed in range(3)]
    ids = [await client.put_bytes(content, HOUR) for content in contents]
    certificate = await client.reader.fetch_certificate(ids[0].commitment)
    member = next(one for one in village.members if certificate.has_seat(seat_of(village, certificate, one.number)))
    seat = seat_of(village, certificate, member.number)
    kept = member.store.get_row(ids[0].commitment, seat)
    await member.stop()
    shutil.rmtree(member.folder)
    await member.start()
    challenge = await village.challenger().open(certificate, seat)
    await member.duties.scan()
    assert member.store.get_row(ids[0].commitment, seat) is None
    await member.duties.heal()
    assert member.store.get_row(ids[0].commitment, seat) == kept
    await village.speak()
    await member.duties.answer_challenges()
    assert (await village.challenger().wait(challenge)).is_answered


async def test_a_new_epoch_seats_anew_and_old_blobs_stay(hamlet):
    await hamlet.start_members()
    await hamlet.begin_epoch()
    client, content = hamlet.client(), make_bytes(10_000)
    old = await client.put_bytes(content, 3 * HOUR)
    first = await hamlet.contracts.availability.committee(1)
    await hamlet.pass_time(hamlet.settings.da_epoch_s + 1)
    results = await asyncio.gather(*(member.duties.tend_epoch() for member in hamlet.members))
    assert results == [None] * 3
    assert await hamlet.contracts.availability.current_epoch() == 2
    second = await hamlet.contracts.availability.committee(2)
    assert [member.address for member in second.members] != [member.address for member in first.members]
    client = hamlet.client()
    new = await client.put_bytes(content[::-1], HOUR)
    assert (await client.reader.fetch_certificate(new.commitment)).attestation.epoch == 2
    assert await client.get_bytes(old, 1 << 20) == content
    assert await client.get_bytes(new, 1 << 20) == content[::-1]


async def test_a_payload_that_is_no_blob_is_said_to_be_none(hamlet):
    await hamlet.start_members()
    await hamlet.begin_epoch()
    client = hamlet.client()
    certificate = await client.disperse(b"raw bytes without any magic", HOUR)
    with pytest.raises(InvalidBlob, match="does not start as"):
        await client.get_bytes(BlobId(certificate.attestation.commitment), 100)
    bundle = await client.disperse(encode_bundle([Item(b"a", 1 << 40), Item(b"b", 1)]), HOUR)
    commitment = bundle.attestation.commitment
    assert await client.get_bytes(BlobId(commitment, 0), 100) == b"a"
    with pytest.raises(UnavailableExpired):
        await client.get_bytes(BlobId(commitment, 1), 100)
    with pytest.raises(InvalidBlob, match="is a bundle of 2 blobs"):
        await client.get_bytes(BlobId(commitment), 100)
    assert encode_single(b"a") != encode_bundle([Item(b"a", 1)])
