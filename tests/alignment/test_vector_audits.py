"""Vectors before auditors and juries: honest ones are acquitted, cheaper weights and noise lose a stake."""

from dataclasses import replace

import numpy as np
import pytest
from alignment_purchases import DOMAIN, PROVIDER
from alignment_town import MODEL, Town, invent

from deaios.alignment.evidence import Evidence, decode_evidence, encode_evidence
from deaios.alignment.judging import Charge, find
from deaios.alignment.prompts import draw_input
from deaios.alignment.recheck.service import EngineRecheck
from deaios.compute.embedding import EMBEDDING_PARAMS, encode_vector
from deaios.compute.embedding_check import compute_vector
from deaios.compute.records import NoiseClass
from deaios.ledger.phases import Decision
from deaios.ledger.structs import FinishReason, Judgement, Level, State
from deaios.market.embedding import read_embedding_body
from deaios.market.orders import Order
from deaios.market.question import Api, Part
from deaios.primitives.errors import Refused
from deaios.primitives.hashing import sha256
from deaios.primitives.units import CREDIT

PROMPT = (504, 2, 1317, 88, 6, 19, 260, 9012, 77, 5)


def order_vector(name="vector"):
    digest = sha256(name.encode())
    return Order(
        MODEL, PROMPT, EMBEDDING_PARAMS, b"context", b"body", digest, digest, digest, part=Part(Api.EMBEDDINGS)
    )


def words_of(engine):
    return encode_vector(compute_vector(engine, PROMPT))


def noise(width):
    vector = np.random.default_rng(5).normal(size=width)
    return encode_vector(vector / np.linalg.norm(vector))


def sold(words, **changes):
    sale = invent("vector", ids=words, order=order_vector())
    return sale.lie(**changes) if changes else sale


async def judged(evidence, recheck):
    charge = Charge(DOMAIN, PROVIDER.address, evidence.opening.receipt_digest, MODEL)
    return await find(encode_evidence(evidence), charge, recheck)


async def test_an_honest_vector_is_acquitted_and_replays_bit_by_bit(bench, recheck):
    evidence = sold(words_of(bench.engine)).evidence
    assert decode_evidence(encode_evidence(evidence)) == evidence
    finding = await judged(evidence, recheck)
    assert finding.judgement is Judgement.ACQUIT
    assert finding.reason.startswith("the vector holds, 1 - cosine is ")
    assert finding.margins == pytest.approx((0.0,), abs=1e-6)
    assert await recheck.replay(evidence) is True


@pytest.mark.parametrize("cheat", ["8-bit weights", "noise", "another input", "half a vector", "no vector"])
async def test_a_wrong_vector_is_found_guilty(bench, recheck, weak_engine, cheat):
    honest = words_of(bench.engine)
    wrong = {
        "8-bit weights": lambda: words_of(weak_engine),
        "noise": lambda: noise(honest[0]),
        "another input": lambda: encode_vector(compute_vector(bench.engine, PROMPT[:-1])),
        "half a vector": lambda: noise(honest[0] // 2),
        "no vector": lambda: (honest[0], *[0] * (len(honest) - 1)),
    }[cheat]()
    finding = await judged(sold(wrong).evidence, recheck)
    assert finding.judgement is Judgement.GUILTY, finding.reason
    assert finding.reason.endswith("exact replay gives another output")


async def test_a_true_vector_with_a_false_end_is_found_guilty(bench, recheck):
    sale = sold(words_of(bench.engine), finish=FinishReason.STOP_TOKEN)
    assert (await judged(sale.evidence, recheck)).judgement is Judgement.GUILTY


@pytest.mark.parametrize(
    ("state", "finish"),
    [(State.CANCELLED, FinishReason.CANCELLED), (State.FAILED_PROVIDER, FinishReason.FAILED)],
)
async def test_a_vector_that_never_came_is_no_crime(recheck, state, finish):
    finding = await judged(sold((), state=state, finish=finish).evidence, recheck)
    assert finding.judgement is Judgement.ACQUIT


async def test_words_or_ids_that_are_not_the_receipt_s_acquit(bench, recheck):
    evidence = sold(words_of(bench.engine)).evidence
    words = list(evidence.opening.output_ids)
    words[1] ^= 1
    changed = replace(evidence, opening=replace(evidence.opening, output_ids=tuple(words)))
    for false in (changed, replace(evidence, prompt_ids=PROMPT[::-1])):
        finding = await judged(false, recheck)
        assert finding.judgement is Judgement.ACQUIT
        assert finding.reason.startswith("the evidence proves nothing")


async def test_nobody_is_convicted_where_the_engine_is_not_on_the_list(bench, recheck, weak_engine):
    bare = EngineRecheck(recheck._service, replace(bench.record, replay_profiles=()), bench.tokenizer)
    assert await bare.replay(sold(words_of(weak_engine)).evidence) is None
    assert (await judged(sold(words_of(weak_engine)).evidence, bare)).judgement is Judgement.ACQUIT


async def test_no_distance_convicts_in_a_class_whose_honest_engines_were_not_compared(bench, recheck, weak_engine):
    record = replace(bench.record, noise_class=NoiseClass.QUANTISED)
    quantised = EngineRecheck(recheck._service, record, bench.tokenizer)
    width = words_of(bench.engine)[0]
    for words in (words_of(weak_engine), noise(width)):
        assert (await judged(sold(words).evidence, quantised)).judgement is Judgement.ACQUIT
    assert (await judged(sold(noise(width // 2)).evidence, quantised)).judgement is Judgement.GUILTY


class VectorShop:
    """Sells vectors that one function makes, and refuses every answer."""

    def __init__(self, make):
        self.make, self.orders = make, []

    async def list_providers(self, record_id):
        return [PROVIDER.address]

    async def fetch_level(self, record_id, provider):
        return Level.SEEDED

    async def buy(self, order):
        self.orders.append(order)
        if order.params != EMBEDDING_PARAMS:
            raise Refused("answers are not sold here")
        sale = invent(f"sale {len(self.orders)}", PROVIDER, len(self.orders), self.make(order.prompt_ids), order)
        return Evidence(sale.sign(), order.prompt_ids)


@pytest.fixture
def open_town(tmp_path, recheck):
    towns = []

    def open_it(make):
        town = Town(tmp_path)
        towns.append(town)
        town.shop = VectorShop(make)
        for member in town.members:
            member.kill()
            member.vectors_every, member.recheck = 1, recheck
            member.start()
        return town

    yield open_it
    for town in towns:
        town.close()


@pytest.mark.parametrize("cheat", ["8-bit weights", "noise"])
async def test_who_serves_wrong_vectors_is_audited_accused_and_slashed(open_town, bench, weak_engine, cheat):
    def make(ids):
        return (
            encode_vector(compute_vector(weak_engine, ids)) if cheat == "8-bit weights" else noise(bench.engine.width)
        )

    town = open_town(make)
    assert await town.members[0].auditor.audit_once() is False
    await town.run_until(town.is_closed)
    (dispute,) = town.chain.disputes
    assert dispute.decision is Decision.GUILTY
    assert town.chain.providers[PROVIDER.address] == 40 * CREDIT
    assert town.chain.penalised == []


async def test_who_serves_true_vectors_is_never_accused(open_town, bench):
    town = open_town(lambda ids: encode_vector(compute_vector(bench.engine, ids)))
    for member in town.members:
        assert await member.auditor.audit_once() is True
    for _ in range(3):
        await town.turn()
    assert town.chain.disputes == []
    assert {order.part for order in town.shop.orders} == {Part(Api.EMBEDDINGS)}


async def test_one_audit_in_so_many_is_of_a_vector_by_chance(open_town, bench):
    town = open_town(lambda ids: encode_vector(compute_vector(bench.engine, ids)))
    member = town.members[0]
    member.kill()
    member.vectors_every = 3
    member.start()
    for _ in range(24):
        try:
            await member.auditor.audit_once()
        except Refused:
            continue
    vectors = sum(order.params == EMBEDDING_PARAMS for order in town.shop.orders)
    assert 2 <= vectors <= 16
    assert len({order.body for order in town.shop.orders}) == 24


def test_inputs_are_drawn_from_a_large_space_and_read_as_embeddings():
    bodies = {draw_input("m", sha256(number.to_bytes(4))) for number in range(200)}
    assert len(bodies) == 200
    assert all(len(read_embedding_body(body)) == 1 for body in bodies)
