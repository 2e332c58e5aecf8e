"""All doors, started once, each in a process of its own."""

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def load_module(name):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


door_client = load_module("door_client")
load_module("storms")
load_module("frames")


@pytest.fixture(scope="session")
def doors(tmp_path_factory):
    with door_client.running_doors(tmp_path_factory.mktemp("doors")) as running:
        yield running


@pytest.fixture(params=door_client.NAMES)
def door(request, doors):
    """Each door in turn; whatever a test did to it, it lives and answers a good client afterwards."""
    found = doors[request.param]
    yield found
    found.check_alive()


@pytest.fixture
def provider_papers(doors):
    """The papers of a purchase that the provider would take, as JSON."""
    import json

    spec = importlib.util.spec_from_file_location("market_helpers", HERE.parent / "market" / "conftest.py")
    market = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = market
    spec.loader.exec_module(market)
    import msgspec

    from deaios.market.wire import OfferAnswer, encode_papers, read_offer

    answer = doors["provider"].ask("GET", "/offer")
    offer, signature = read_offer(msgspec.json.decode(answer.body, type=OfferAnswer))
    signed = market.SignedOffer(offer, signature, market.hash_struct(offer))
    order = market.build_order(logprobs=2)
    return json.loads(encode_papers(market.build_papers(signed, order)))
