"""What a content of a bundle pays: all of them the fee, none more than was set aside for it."""

from hypothesis import example, given
from hypothesis import strategies as st

from deaios.coding.parameters import Parameters, build_committee_profile
from deaios.da.blob import BUNDLE_HEADER_BYTES, ENTRY_BYTES
from deaios.da.client.bundler import BUNDLE_BYTES_MAX, bound_share, compute_share

GIB_DAY = (1 << 30) * 86_400


def compute_fee(length, profile, term_s, base, per_gib_day):
    """`DataAvailability.feeOf`."""
    held = profile.rows * Parameters(profile, length).row_bytes * term_s * per_gib_day
    return base + -(-held // GIB_DAY)


SIZES = st.one_of(st.integers(1, 70_000), st.sampled_from([4096 - 30, 4096 - 29, 8192 - 30, 8192 - 18, 65_536]))


@given(
    sizes=st.lists(st.tuples(SIZES, st.integers(1, 2000)), min_size=1, max_size=4),
    seats=st.sampled_from([3, 12, 64]),
    term_s=st.integers(120, 14 * 86_400),
    base=st.sampled_from([1, 100, 1000]),
    per_gib_day=st.sampled_from([1, 10_000, 10**9]),
)
@example([(4066, 1), (1, 1)], 12, 86_400, 1, 10**9)
def test_shares_cover_the_fee_and_none_exceeds_its_bound(sizes, seats, term_s, base, per_gib_day):
    profile, term_s_max = build_committee_profile(seats), 14 * 86_400
    contents = sum(size * count for size, count in sizes)
    if contents > BUNDLE_BYTES_MAX:
        sizes, contents = sizes[:1], sizes[0][0]
        sizes = [(contents, 1)]
    items = sum(count for _, count in sizes)
    length = BUNDLE_HEADER_BYTES + ENTRY_BYTES * items + contents
    fee = compute_fee(length, profile, term_s, base, per_gib_day)
    shares = [compute_share(fee, size, length) for size, _ in sizes]
    paid = sum(share * count for share, (_, count) in zip(shares, sizes, strict=True))
    assert fee <= paid < fee + items
    for share, (size, _) in zip(shares, sizes, strict=True):
        assert share <= compute_fee(bound_share(size, profile), profile, term_s_max, base, per_gib_day) + 1
