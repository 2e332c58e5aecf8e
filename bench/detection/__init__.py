"""How often cheating providers are caught and honest ones flagged: `compute.detection_128`, on real engines.

    python -m bench.detection [ROW ...] [--seconds S] [--seed N] [--json]

Every cheat runs in windows of 128 audited tokens with a nonce each, over 128 prompts; every honest pair of engines over
10,000 tokens. Finished work is kept in bench/results/detection.jsonl and another run goes on from there. Exit status 1
when an honest token was flagged. The outcome that was accepted is docs/detection.md.
"""

from collections.abc import Iterator

from bench.rows import Row

BENCH_SECONDS = 600.0
"""`make bench` adds this much work to what is finished; the whole takes most of an hour on two idle cores."""


def measure() -> Iterator[Row]:
    """Go on for a while, then give the rows of all that is finished."""
    # Imported here: the package is also read by tests and tools that need a part of it only.
    from bench.detection.campaign import open_campaign  # noqa: PLC0415
    from bench.detection.summary import build_rows, build_summary  # noqa: PLC0415

    campaign = open_campaign(seconds=BENCH_SECONDS)
    campaign.run()
    yield from build_rows(build_summary(campaign.store.read()))
