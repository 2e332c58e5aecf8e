"""Offers, routing, admission and the wire: what passes, what is refused, and with which words."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.compute.constraint import (
    CONSTRAINT_BYTES_MAX,
    Constraint,
    JsonObject,
    JsonSchema,
    hash_constraint,
    json_object,
    json_schema,
)
from deaios.compute.schema import InvalidConstraint
from deaios.ledger.structs import AuditPolicy, Level
from deaios.market.admission import (
    InvalidPurchase,
    RefusedPurchase,
    Shelf,
    validate_anchor,
    validate_ask,
    validate_channel,
    validate_price,
    validate_request,
    validate_voucher,
)
from deaios.market.offers import PRICE_MAX, InvalidOffer, compute_quote, sign_offer, validate_offer, validate_url
from deaios.market.opening import Opening
from deaios.market.orders import build_ask
from deaios.market.preferences import Preferences, SortBy
from deaios.market.receipts import validate_opening
from deaios.market.routing import (
    BREAKER_FAILURES,
    BUSY_REST_MS,
    DRAW_SIZE,
    EXPLORED_OF,
    WAITING_MEMORY_MS,
    Breaker,
    Candidate,
    ProviderStats,
    Wish,
    compute_score,
    order_candidates,
    refuse_reason,
)
from deaios.market.wire import (
    Admitted,
    Finished,
    InvalidMessage,
    Tokens,
    build_problem,
    decode_line,
    decode_papers,
    encode_line,
    encode_papers,
    read_needed,
)
from deaios.primitives.errors import Invalid
from deaios.primitives.hashing import ZERO32, sha256
from deaios.primitives.units import CREDIT

SHELF = Shelf(vocabulary_size=1000)


def test_offer_is_the_providers_word_for_a_time(kit):
    signed = kit.build_offer()
    domain, me = kit.TERMS.protocol, kit.SELLER.address
    assert validate_offer(domain, signed.offer, signed.signature, me, kit.NOW_MS) == signed
    with pytest.raises(InvalidOffer, match="ended"):
        validate_offer(domain, signed.offer, signed.signature, me, signed.offer.valid_until)
    with pytest.raises(InvalidOffer, match="signed by"):
        validate_offer(domain, replace(signed.offer, input_price=1), signed.signature, me, kit.NOW_MS)
    with pytest.raises(InvalidOffer, match="names"):
        validate_offer(domain, signed.offer, signed.signature, kit.BUYER.address, kit.NOW_MS)
    far = kit.build_offer(valid_until=kit.NOW_MS + 10**13)
    with pytest.raises(InvalidOffer, match="at most"):
        validate_offer(domain, far.offer, far.signature, me, kit.NOW_MS)
    with pytest.raises(InvalidOffer):
        sign_offer(kit.BUYER, domain, signed.offer)


@pytest.mark.parametrize(
    "change",
    [
        {"level": 9},
        {"input_price": PRICE_MAX + 1},
        {"output_price": PRICE_MAX + 1},
        {"context_tokens": 0},
        {"streams_max": 0},
        {"url": "ftp://x"},
        {"url": "http://"},
        {"url": "http://user@host"},
        {"url": "http://host/?q"},
        {"url": "http://[::1"},
        {"url": "http://host:99999"},
        {"url": "http://h ost"},
        {"url": "http://" + "a" * 3000},
    ],
    ids=str,
)
def test_offer_out_of_bounds_is_refused(kit, change):
    with pytest.raises(InvalidOffer):
        kit.build_offer(**change)


@given(st.text(max_size=40))
def test_any_url_is_judged_or_typed(text):
    try:
        validate_url(text)
    except InvalidOffer:
        return
    assert text.startswith(("http://", "https://", "HTTP", "Http"))


def build_candidate(kit, name, **changes):
    key = kit.build_key(name)
    power, paused = changes.pop("power", 50), changes.pop("paused", False)
    return Candidate(key.address, kit.build_offer(key, **changes), power, paused)


def build_wish(kit, **changes):
    wish = Wish(kit.RECORD, 10, 20, Level.SEEDED, 900, CREDIT)
    return replace(wish, **changes)


@pytest.mark.parametrize(
    ("candidate", "wish", "reason"),
    [
        ({"model_record_id": ZERO32}, {}, "another model"),
        ({"power": 0}, {}, "no stake"),
        ({"paused": True}, {}, "paused"),
        ({"valid_until": 5}, {}, "ended"),
        ({"level": 1}, {}, "level 1"),
        ({"context_tokens": 29}, {}, "30 tokens"),
        ({"withdraw_delay_min": 901}, {}, "901"),
        ({}, {"fee_max": 1}, "exceeds 1"),
        ({}, {"provider": bytes(20)}, "another provider"),
    ],
    ids=str,
)
def test_filters_say_why(kit, candidate, wish, reason):
    found = refuse_reason(build_candidate(kit, "a", **candidate), build_wish(kit, **wish), kit.NOW_MS)
    assert found is not None
    assert reason in found
    good = build_candidate(kit, "a")
    assert refuse_reason(good, build_wish(kit), kit.NOW_MS) is None
    assert refuse_reason(good, build_wish(kit, excluded=frozenset({good.provider})), 0) == "excluded"


def test_breaker_opens_rests_longer_and_closes(kit):
    stats, now = ProviderStats(), kit.NOW_MS
    for _ in range(BREAKER_FAILURES - 1):
        stats = stats.begin().fail(now)
        assert stats.rest_until_ms == 0
    stats = stats.begin().fail(now)
    first = stats.rest_until_ms - now
    assert first > 0
    assert (stats.breaker(now), stats.admits(now)) == (Breaker.OPEN, False)
    for _ in range(40):  # what one fault cut off besides says nothing new
        stats = stats.fail(now)
    assert stats.rest_until_ms - now == first
    for _ in range(8):
        now = stats.rest_until_ms
        assert (stats.breaker(now), stats.admits(now)) == (Breaker.HALF_OPEN, True)
        stats = stats.begin()
        assert not stats.admits(now)
        stats = stats.fail(now)
    assert stats.rest_until_ms - now == 60_000
    now = stats.rest_until_ms
    assert stats.begin().abandon().admits(now)
    stats = stats.begin().succeed(100.0, 20, 500.0)
    assert (stats.rest_until_ms, stats.failures_in_a_row, stats.in_flight) == (0, 0, 0)
    assert (stats.breaker(now), stats.admits(now)) == (Breaker.CLOSED, True)


def test_a_full_provider_is_left_alone_for_a_while_and_not_blamed(kit):
    now = kit.NOW_MS
    stats = ProviderStats().begin().turn_away(now)
    assert (stats.admits(now + BUSY_REST_MS - 1), stats.admits(now + BUSY_REST_MS)) == (False, True)
    assert (stats.in_flight, stats.failures, stats.failures_in_a_row) == (0, 0.0, 0)
    queued = ProviderStats().queue(16, now)
    assert (queued.crowding(8, now), queued.crowding(8, now + WAITING_MEMORY_MS)) == (2.0, 0.0)


def test_score_prefers_cheap_fast_and_reliable(kit):
    wish, plain = build_wish(kit), ProviderStats()
    here = build_candidate(kit, "a")
    base = compute_score(here, wish, plain)
    assert compute_score(build_candidate(kit, "b", output_price=CREDIT), wish, plain) < base
    assert compute_score(here, wish, replace(plain, ttft_ms=5.0)) < base
    assert compute_score(here, wish, replace(plain, tokens_per_s=200.0)) < base
    assert compute_score(here, wish, replace(plain, failures=10.0)) > base
    assert compute_score(here, wish, replace(plain, in_flight=8)) > base


def build_cheap_candidates(count):
    """Each dearer than the one before; offers need no valid signatures here."""
    offers = [
        SimpleNamespace(offer=SimpleNamespace(input_price=0, output_price=(n + 1) * CREDIT, streams_max=8))
        for n in range(count)
    ]
    return [Candidate(bytes([n]) * 20, offer, 1, False) for n, offer in enumerate(offers)]


def build_plain_wish(**preferences):
    return Wish(ZERO32, 10, 20, 0, 900, CREDIT, preferences=Preferences(**preferences))


def order_with(candidates, draw, favourite=None, stats=None, **preferences):
    wish = build_plain_wish(**preferences)
    return order_candidates(candidates, wish, stats or [ProviderStats()] * len(candidates), draw, 0, favourite)


@given(st.binary(min_size=DRAW_SIZE, max_size=DRAW_SIZE), st.integers(0, 5))
@settings(max_examples=60)
def test_order_is_a_permutation_and_starts_with_the_worst_only_to_explore(draw, count):
    candidates = build_cheap_candidates(count)
    order = order_with(candidates, draw)
    assert sorted(c.provider for c in order) == sorted(c.provider for c in candidates)
    if count >= 2:
        assert order[0] is not candidates[-1] or int.from_bytes(draw[8:]) % EXPLORED_OF == 0
        assert order[1:] == sorted(order[1:], key=lambda c: c.signed_offer.offer.output_price)


def test_one_purchase_in_a_hundred_goes_to_anybody():
    candidates = build_cheap_candidates(4)
    draws = [sha256(number.to_bytes(4))[:DRAW_SIZE] for number in range(20_000)]
    worst = sum(order_with(candidates, draw)[0] is candidates[-1] for draw in draws)
    assert 20 < worst < 90  # a quarter of one in a hundred of 20,000: 50


def test_a_users_order_sort_and_cache_come_before_the_draw():
    candidates, draw = build_cheap_candidates(4), bytes(DRAW_SIZE)
    names = [candidate.provider for candidate in candidates]
    ordered = order_with(candidates, draw, order=(names[2], names[3]))
    assert [c.provider for c in ordered] == [names[2], names[3], names[0], names[1]]
    slow_first = [replace(ProviderStats(), ttft_ms=1000.0 - n, tokens_per_s=1.0 + n) for n in range(4)]
    for sort in (SortBy.LATENCY, SortBy.THROUGHPUT):
        assert [c.provider for c in order_with(candidates, draw, stats=slow_first, sort=sort)] == names[::-1]
    assert [c.provider for c in order_with(candidates, draw, stats=slow_first, sort=SortBy.PRICE)] == names
    assert order_with(candidates, draw, names[3])[0].provider == names[3]
    assert order_with(candidates, draw, b"nobody here" + bytes(9))[0].provider != names[3]
    preferred = order_with(candidates, draw, stats=slow_first, sort=SortBy.PRICE, throughput_min=2.5)
    assert [c.provider for c in preferred] == [names[2], names[3], names[0], names[1]]
    assert (
        order_with(candidates, draw, stats=slow_first, sort=SortBy.PRICE, latency_max_s=0.997)[0].provider == names[3]
    )


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"only": frozenset({bytes(20)})}, "not in provider.only"),
        ({"ignore": "me"}, "in provider.ignore"),
        ({"order": (bytes(20),), "allow_fallbacks": False}, "allow_fallbacks is false"),
        ({"input_price_max": CREDIT - 1}, "exceeds provider.max_price.prompt"),
        ({"output_price_max": CREDIT}, "exceeds provider.max_price.completion"),
        ({"quantizations": frozenset({"int8"})}, "weights are fp16"),
        ({"promises": frozenset({"zdr"})}, "does not promise"),
    ],
)
def test_what_a_user_rules_out_is_refused_with_the_reason(kit, wanted, reason):
    here = build_candidate(kit, "a")
    if "ignore" in wanted:
        wanted = {"ignore": frozenset({here.provider})}
    wish = replace(build_wish(kit), preferences=Preferences(**wanted), quantisation="fp16")
    assert reason in refuse_reason(here, wish, kit.NOW_MS)
    fits = Preferences(
        order=(bytes(20),),
        only=frozenset({here.provider}),
        input_price_max=CREDIT,
        output_price_max=4 * CREDIT,
        quantizations=frozenset({"fp16"}),
        promises=frozenset({"zdr"}),
    )
    promising = replace(here, promises=frozenset({"zdr"}))
    assert refuse_reason(promising, replace(wish, preferences=fits), kit.NOW_MS) is None


def test_quote_never_overflows(kit):
    offer = kit.build_offer(input_price=PRICE_MAX, output_price=PRICE_MAX).offer
    assert compute_quote(offer, (1 << 32) - 1, 32_768) < 1 << 128


@pytest.fixture
def offer(kit):
    return kit.build_offer()


def check_all(kit, papers, offer, *, now_ms=None, head=100, anchor=100):
    validate_request(kit.TERMS, papers, kit.SELLER.address)
    quote = validate_price(papers, offer, now_ms or kit.NOW_MS, head)
    validate_channel(kit.TERMS, papers, offer.offer, SHELF)
    validate_ask(papers, offer.offer, SHELF)
    validate_anchor(anchor, head)
    validate_voucher(kit.TERMS, papers)
    return quote


def test_honest_papers_pass_and_survive_the_wire(kit, offer):
    papers = kit.build_papers(offer)
    assert check_all(kit, papers, offer) == 3 + 4 * 16
    assert decode_papers(encode_papers(papers)) == papers


def test_each_broken_paper_is_refused(kit, offer):
    order = kit.build_order()
    ask = build_ask(order, kit.BUYER.address)
    other = kit.build_key("other")

    def made(**changes):
        return kit.build_papers(offer, order, **changes)

    def constrained(data):
        params = kit.build_params(mask_hash=hash_constraint(data))
        return kit.build_papers(offer, kit.build_order(params=params, constraint=data))

    cases = [
        (made(request={"provider": other.address}), InvalidPurchase, "request is for"),
        (made(request={"ask_digest": ZERO32}), InvalidPurchase, "another ask"),
        (made(ask=replace(ask, buyer=other.address)), InvalidPurchase, "names buyer"),
        (made(request={"offer_digest": ZERO32}), RefusedPurchase, "current one is 0x"),
        (made(request={"max_fee": 66}), RefusedPurchase, "below the quote 67"),
        (made(request={"deadline_block": 99}), RefusedPurchase, "deadline block 99"),
        (made(request={"deadline_block": 10**9}), RefusedPurchase, "deadline block"),
        (made(request={"channel_id": ZERO32}), InvalidPurchase, "different channels"),
        (made(config=kit.build_config(token=other.address)), RefusedPurchase, "token"),
        (made(config=kit.build_config(receiver=other.address)), RefusedPurchase, "pays"),
        (made(config=kit.build_config(receiver_authorizer=other.address)), RefusedPurchase, "receiver authorizer"),
        (made(config=kit.build_config(payer_authorizer=other.address)), RefusedPurchase, "payer authorizer"),
        (made(config=kit.build_config(withdraw_delay=899)), RefusedPurchase, "899"),
        (made(config=kit.build_config(withdraw_delay=10**7)), RefusedPurchase, "10000000"),
        (made(ask=replace(ask, model_record_id=ZERO32)), RefusedPurchase, "not served"),
        (made(ask=replace(ask, min_level=4)), RefusedPurchase, "level 4"),
        (made(ask=replace(ask, audit_policy=9)), InvalidPurchase, "audit policy 9"),
        (made(ask=replace(ask, prompt_count=2)), InvalidPurchase, "counts 2"),
        (made(ask=replace(ask, prompt_commitment=ZERO32)), InvalidPurchase, "commitment"),
        (made(ask=replace(ask, params=kit.build_params(max_tokens=0))), Invalid, "max_tokens"),
        (made(ask=replace(ask, params=kit.build_params(temperature_milli=2001))), Invalid, "temperature"),
        (made(ask=replace(ask, params=kit.build_params(stop_ids=(1000,)))), Invalid, "vocabulary"),
        (made(ask=replace(ask, params=kit.build_params(mask_hash=sha256(b"m")))), InvalidConstraint, "mask hash"),
        (replace(made(), constraint=json_object().encode()), InvalidConstraint, "mask hash"),
        (constrained(b"{}"), InvalidConstraint, "not of its form"),
        (constrained(Constraint(JsonSchema('{"not":{}}')).encode()), InvalidConstraint, r"\$\.not"),
        (constrained(Constraint(JsonObject(), "llguidance 1.0.0").encode()), RefusedPurchase, "need llguidance 1.0.0"),
        (replace(made(), prompt_ids=(1, 2)), InvalidPurchase, "2 prompt ids"),
        (replace(made(), prompt_ids=(1, 2, 4)), InvalidPurchase, "commitment"),
        (replace(made(), salt=ZERO32), InvalidPurchase, "commitment"),
        (replace(made(), voucher_signature=made().request_signature), InvalidPurchase, "voucher is signed"),
    ]
    for papers, kind, words in cases:
        with pytest.raises(kind, match=words):
            check_all(kit, papers, offer)
    with pytest.raises(InvalidPurchase, match="vocabulary"):
        check_all(kit, kit.build_papers(offer, kit.build_order(prompt=(1, 1000))), offer)
    with pytest.raises(RefusedPurchase, match="context"):
        check_all(kit, kit.build_papers(offer, kit.build_order(prompt=(1,) * 4096)), offer)
    with pytest.raises(RefusedPurchase, match="ended"):
        check_all(kit, made(), offer, now_ms=offer.offer.valid_until)
    with pytest.raises(RefusedPurchase, match="anchor"):
        check_all(kit, made(), offer, anchor=None)
    with pytest.raises(RefusedPurchase, match="anchor"):
        validate_anchor(0, 150_000)


def test_open_audit_policy_is_served(kit, offer):
    papers = kit.build_papers(offer, kit.build_order(audit_policy=AuditPolicy.OPEN))
    assert check_all(kit, papers, offer) > 0


def test_lines_have_one_form():
    ranked = Tokens(ids=[1, 2], logprobs=[((1, -5), (3, 0)), ((2, -7), (3, 0))])
    for line in (Admitted(), Tokens(ids=[1, 2]), ranked, Finished(receipt={"a": 1}, signature="0x")):
        assert decode_line(encode_line(line)) == line
    for data in (b"", b"{}", b"[]", b'{"kind":"x"}', b'{"kind":"tokens"}', b'{"kind":"tokens","ids":[1.5]}', b"\xff"):
        with pytest.raises(InvalidMessage):
            decode_line(data)
    for logprobs in (b"null", b"{}", b"[1]", b"[[1]]", b"[[[1]]]", b"[[[1,-1,0]]]", b"[[[1,-0.5]]]", b'[[["1",-1]]]'):
        with pytest.raises(InvalidMessage):
            decode_line(b'{"kind":"tokens","ids":[1],"logprobs":' + logprobs + b"}")


@pytest.fixture
def usual_recursion_limit():
    """The interpreter's own limit: a test plugin raises it so far that C code would overrun its stack."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(before)


def test_deep_json_is_refused_not_a_crash(usual_recursion_limit):
    deep = b'{"version":1,"ask":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}"
    with pytest.raises(InvalidMessage):
        decode_papers(deep)


def test_purchase_body_is_strict(kit, offer):
    body = json.loads(encode_papers(kit.build_papers(offer)))
    for change in (
        {"version": 2},
        {"extra": 1},
        {"salt": "0x00"},
        {"salt": "0X" + "00" * 32},
        {"promptIds": [-1]},
        {"promptIds": [True]},
        {"ask": {}},
        {"request": []},
        {"voucher": {"channelId": "0x", "maxClaimableAmount": 1}},
        *({"logprobs": wrong} for wrong in (-1, 21, None, True, "5", 0.5, [])),
        *(
            {"constraint": wrong}
            for wrong in (None, 5, {}, "x" * (CONSTRAINT_BYTES_MAX + 1), "é" * CONSTRAINT_BYTES_MAX)
        ),
    ):
        with pytest.raises(Invalid):
            decode_papers(json.dumps(body | change).encode())


@given(st.binary(max_size=300))
@settings(max_examples=50)
def test_hostile_bodies_are_typed(data):
    with pytest.raises(Invalid):
        decode_papers(data)


def test_problem_names_the_amount():
    problem = json.dumps(build_problem(402, InvalidMessage("x"), 77)).encode()
    assert read_needed(problem) == 77
    for body in (b"", b"{}", b'{"needed":"-1"}', b'{"needed":"01"}', b'{"needed":5}', b"[" * 5000):
        assert read_needed(body) is None


def test_a_constraint_travels_with_its_purchase_and_is_bound(kit, offer):
    constraint = json_object()
    params = kit.build_params(mask_hash=constraint.mask_hash())
    papers = kit.build_papers(offer, kit.build_order(params=params, constraint=constraint.encode()))
    assert check_all(kit, papers, offer) > 0
    assert decode_papers(encode_papers(papers)) == papers
    opening = kit.build_opening(papers, offer, (20, kit.STOP))
    assert Opening.decode_json(json.loads(json.dumps(opening.encode_json()))) == opening
    validate_opening(kit.TERMS.protocol, opening)
    for other in (None, json_schema({}).encode()):
        with pytest.raises(InvalidConstraint, match="mask hash"):
            validate_opening(kit.TERMS.protocol, replace(opening, constraint=other))


@pytest.mark.parametrize("logprobs", [None, 0, 20])
def test_log_probabilities_are_asked_for_beside_what_is_signed(kit, offer, logprobs):
    papers = kit.build_papers(offer, kit.build_order(logprobs=logprobs))
    assert decode_papers(encode_papers(papers)) == papers
    assert papers.logprobs == logprobs
    bare = kit.build_papers(offer)
    assert replace(papers, logprobs=None) == bare
    assert (b"logprobs" in encode_papers(papers)) == (logprobs is not None)
