"""Signed posted offers: a price, a model, a level, until when.

Pure. An offer is the provider's signed word; its digest stands in the buyer's signed request, so the price of a
purchase can never be argued about later. It does not know whether the provider has stake or is reachable.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

from deaios.ledger.eip712 import Domain, hash_struct, recover_signer, sign_struct
from deaios.ledger.structs import Level, Offer
from deaios.market.conduct import ConductBody
from deaios.primitives.errors import Invalid
from deaios.primitives.keys import Address, PrivateKey
from deaios.primitives.units import CREDIT, compute_fee

OFFER_LIFETIME_MS_MAX = 30 * 24 * 3600 * 1000
"""A price stays binding this long at most; a longer one is a mistake that nobody wants to be held to."""
PRICE_MAX = 1_000_000 * CREDIT
"""Per million tokens. Keeps every fee far inside 128 bits and a typing error from being signed away."""
URL_CHARS_MAX = 2048
STREAMS_LIMIT = 4096
CONTEXT_TOKENS_LIMIT = 1 << 24


class InvalidOffer(Invalid):
    """An offer nobody should buy under."""


@dataclass(frozen=True, slots=True)
class SignedOffer:
    """An offer and its provider's signature, with the digest requests refer to.

    Attributes:
        sealing_key: what papers are sealed to (`market.conduct`, signed beside the offer); None for none.
        conduct: the statement that it came from, checked; None where there was none.
    """

    offer: Offer
    signature: bytes
    digest: bytes
    sealing_key: bytes | None = None
    conduct: ConductBody | None = None


def sign_offer(key: PrivateKey, domain: Domain, offer: Offer) -> SignedOffer:
    """Post a price under one's own key."""
    if offer.provider != key.address:
        raise InvalidOffer(f"offer names provider 0x{offer.provider.hex()}, signer is 0x{key.address.hex()}")
    _validate_terms(offer)
    return SignedOffer(offer, sign_struct(key, domain, offer), hash_struct(offer))


def validate_offer(domain: Domain, offer: Offer, signature: bytes, provider: Address, now_ms: int) -> SignedOffer:
    """Check an offer as received.

    Args:
        domain: the network's protocol domain.
        offer: as decoded.
        signature: 65 bytes.
        provider: whose offer it must be.
        now_ms: wall time.

    Raises:
        InvalidOffer: another signer, expired, or terms out of bounds.
    """
    signer = recover_signer(domain, offer, signature)
    if offer.provider != provider or signer != provider:
        raise InvalidOffer(
            f"offer of 0x{provider.hex()} names 0x{offer.provider.hex()} and is signed by 0x{signer.hex()}"
        )
    if offer.valid_until <= now_ms:
        raise InvalidOffer(f"offer ended at {offer.valid_until} ms, now is {now_ms} ms")
    if offer.valid_until > now_ms + OFFER_LIFETIME_MS_MAX:
        raise InvalidOffer(f"offer is valid for {offer.valid_until - now_ms} ms, at most {OFFER_LIFETIME_MS_MAX}")
    _validate_terms(offer)
    return SignedOffer(offer, signature, hash_struct(offer))


def _validate_terms(offer: Offer) -> None:
    if offer.level not in set(Level):
        raise InvalidOffer(f"offer level {offer.level} is not one of {[int(level) for level in Level]}")
    for name, price in (("input", offer.input_price), ("output", offer.output_price)):
        if price > PRICE_MAX:
            raise InvalidOffer(f"{name} price {price} exceeds {PRICE_MAX} per million tokens")
    if not 1 <= offer.context_tokens <= CONTEXT_TOKENS_LIMIT:
        raise InvalidOffer(f"offer has {offer.context_tokens} context tokens, 1 to {CONTEXT_TOKENS_LIMIT} allowed")
    if not 1 <= offer.streams_max <= STREAMS_LIMIT:
        raise InvalidOffer(f"offer has {offer.streams_max} streams, 1 to {STREAMS_LIMIT} allowed")
    validate_url(offer.url)


def validate_url(url: str) -> None:
    """Refuse what is not a plain http(s) base URL.

    Raises:
        InvalidOffer: no scheme or host, credentials, query, fragment, or too long.
    """
    if len(url) > URL_CHARS_MAX or not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidOffer(f"URL is not printable ASCII of at most {URL_CHARS_MAX} characters: {url[:80]!r}")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidOffer(f"not a URL: {url[:80]!r} ({error})") from error
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc or parts.query or parts.fragment:
        raise InvalidOffer(f"not a plain http(s) base URL: {url[:80]!r}")


def compute_quote(offer: Offer, prompt_tokens: int, max_tokens: int) -> int:
    """The most a purchase under this offer can cost, in smallest units."""
    return compute_fee(prompt_tokens, max_tokens, offer.input_price, offer.output_price)
