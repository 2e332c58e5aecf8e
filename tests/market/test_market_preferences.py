"""The `provider` object of bodies: OpenRouter's members, each read or refused by its name."""

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.market.fields import InvalidParameter
from deaios.market.parts import read_part
from deaios.market.preferences import (
    NO_COLLECTION,
    NO_PREFERENCES,
    ZERO_RETENTION,
    Preferences,
    SortBy,
    name_quantization,
    read_preferences,
)
from deaios.market.question import Api, Part
from deaios.primitives.units import CREDIT

ONE, TWO = "0x" + "11" * 20, "0x" + "22" * 20
FIRST, SECOND = bytes.fromhex("11" * 20), bytes.fromhex("22" * 20)
BODIES = {
    Api.CHAT: {"model": "m", "messages": [{"role": "user", "content": "x"}]},
    Api.COMPLETIONS: {"model": "m", "prompt": "x"},
    Api.RESPONSES: {"model": "m", "input": "x"},
    Api.MESSAGES: {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4},
    Api.EMBEDDINGS: {"model": "m", "input": "x"},
}


def test_every_member_means_what_openrouter_says():
    found = read_preferences(
        "provider",
        {
            "order": [ONE, TWO],
            "only": [ONE, TWO],
            "ignore": ["0x" + "33" * 20],
            "allow_fallbacks": False,
            "require_parameters": True,
            "data_collection": "deny",
            "zdr": True,
            "enforce_distillable_text": False,
            "sort": "throughput",
            "max_price": {"prompt": 1.5, "completion": "2.25", "request": 0, "image": None},
            "quantizations": ["fp16", "int8"],
            "preferred_min_throughput": 20,
            "preferred_max_latency": {"p50": 1.5, "p99": None},
        },
    )
    assert found == Preferences(
        order=(FIRST, SECOND),
        only=frozenset({FIRST, SECOND}),
        ignore=frozenset({bytes.fromhex("33" * 20)}),
        allow_fallbacks=False,
        sort=SortBy.THROUGHPUT,
        input_price_max=3 * CREDIT // 2,
        output_price_max=9 * CREDIT // 4,
        quantizations=frozenset({"fp16", "int8"}),
        promises=frozenset({NO_COLLECTION, ZERO_RETENTION}),
        throughput_min=20.0,
        latency_max_s=1.5,
    )
    assert read_preferences("provider", {"sort": {"by": "price", "partition": "none"}}).sort == SortBy.PRICE
    nothing = dict.fromkeys(("order", "sort", "max_price", "zdr", "data_collection", "quantizations"))
    assert read_preferences("provider", nothing) == read_preferences("provider", {}) == NO_PREFERENCES
    allowing = {"data_collection": "allow", "zdr": False, "allow_fallbacks": True}
    assert read_preferences("provider", allowing) == NO_PREFERENCES


@pytest.mark.parametrize(
    ("member", "value", "where"),
    [
        ("colour", "red", "provider.colour"),
        ("options", {}, "provider.options"),
        ("order", "openai", "provider.order"),
        ("order", ["openai"], "provider.order[0]"),
        ("only", [ONE] * 65, "provider.only"),
        ("allow_fallbacks", 1, "provider.allow_fallbacks"),
        ("sort", "beauty", "provider.sort"),
        ("sort", {"by": "price", "partition": "galaxy"}, "provider.sort.partition"),
        ("sort", {"order": "price"}, "provider.sort.order"),
        ("max_price", {"prompt": -1}, "provider.max_price.prompt"),
        ("max_price", {"prompt": True}, "provider.max_price.prompt"),
        ("max_price", {"prompt": "NaN"}, "provider.max_price.prompt"),
        ("max_price", {"prompt": "1" * 31}, "provider.max_price.prompt"),
        ("max_price", {"video": 1}, "provider.max_price.video"),
        ("max_price", 3, "provider.max_price"),
        ("quantizations", ["int3"], "provider.quantizations[0]"),
        ("quantizations", "int8", "provider.quantizations"),
        ("data_collection", "maybe", "provider.data_collection"),
        ("zdr", "yes", "provider.zdr"),
        ("require_parameters", "yes", "provider.require_parameters"),
        ("enforce_distillable_text", True, "provider.enforce_distillable_text"),
        ("preferred_min_throughput", 0, "provider.preferred_min_throughput"),
        ("preferred_max_latency", {"p90": 3}, "provider.preferred_max_latency.p90"),
        ("preferred_max_latency", {"p95": 3}, "provider.preferred_max_latency.p95"),
        ("preferred_max_latency", {}, "provider.preferred_max_latency"),
    ],
)
def test_what_is_not_understood_is_refused_by_its_name(member, value, where):
    with pytest.raises(InvalidParameter) as refused:
        read_preferences("provider", {member: value})
    assert refused.value.param == where


@pytest.mark.parametrize("api", list(Api))
def test_every_door_takes_it_and_who_checks_reads_the_same(api):
    body = BODIES[api] | {"provider": {"only": [ONE], "sort": "latency"}, "deaios": {"hedge": True}}
    question = read_part(Part(api), json.dumps(body).encode())
    assert question.preferences == Preferences(only=frozenset({FIRST}), sort=SortBy.LATENCY)
    assert question.hedge
    assert read_part(Part(api), json.dumps(BODIES[api]).encode()).preferences is None
    with pytest.raises(InvalidParameter, match=r"provider\.colour"):
        read_part(Part(api), json.dumps(BODIES[api] | {"provider": {"colour": 1}}).encode())


@pytest.mark.parametrize("api", [Api.CHAT, Api.RESPONSES])
def test_a_cache_key_is_a_short_text(api):
    body = BODIES[api] | {"prompt_cache_key": "my app"}
    assert read_part(Part(api), json.dumps(body).encode()).cache_key == "my app"
    for wrong in ("", "x" * 257, 3):
        with pytest.raises(InvalidParameter, match="prompt_cache_key"):
            read_part(Part(api), json.dumps(body | {"prompt_cache_key": wrong}).encode())


@settings(max_examples=40)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_value_gives_preferences_or_a_typed_error(value):
    for name in ("order", "max_price", "sort", "quantizations", "preferred_max_latency", "zdr", "data_collection"):
        with contextlib.suppress(InvalidParameter):
            assert isinstance(read_preferences("provider", {name: value}), Preferences)


def test_quantisations_by_openrouters_words():
    names = ["F16", "BF16", "F32", "Q8_0", "Q4_K_M", "IQ4_XS", "Q5_0", "MXFP4"]
    words = ["fp16", "bf16", "fp32", "int8", "int4", "int4", "unknown", "fp4"]
    assert [name_quantization(name) for name in names] == words
