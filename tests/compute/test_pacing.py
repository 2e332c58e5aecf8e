"""The estimate of a wait, against a queue that is really played out turn by turn."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.compute.pacing import Outstanding, Pace


def paced(seconds_per_id=0.5):
    pace = Pace()
    pace.observe_turn(seconds_per_id * 4, 4)
    return pace


def play(running, waiting, wanted, sequences_max, tokens_max):
    """Seconds until the new job begins, half a second an id: prompts are read at once, then an id for each per turn."""
    line = [*waiting, Outstanding(0, 1, wanted)]
    left = [[job.allowed, job.tokens] for job in running]
    seconds = sum(job.unread for job in running) * 0.5 if True else 0
    began_at_once = True
    while True:
        while line and len(left) < sequences_max and sum(tokens for _, tokens in left) + line[0].tokens <= tokens_max:
            job = line.pop(0)
            if not line:
                return 0.0 if began_at_once and not waiting else seconds
            seconds += job.unread * 0.5
            left.append([job.allowed, job.tokens])
        began_at_once = False
        seconds += len(left) * 0.5
        for job in left:
            job[0] -= 1
        left = [job for job in left if job[0] > 0]


jobs = st.builds(
    lambda unread, allowed, room: Outstanding(unread, allowed, unread + allowed + room),
    st.integers(0, 20),
    st.integers(1, 20),
    st.integers(0, 20),
)


@settings(deadline=None)
@given(st.lists(jobs, max_size=4), st.lists(jobs, max_size=6), st.integers(1, 60), st.integers(60, 240))
def test_the_estimate_is_what_happens(running, waiting, wanted, tokens_max):
    while sum(job.tokens for job in running) > tokens_max:
        running.pop()
    found = paced().estimate_wait_s(running, waiting, wanted, 4, tokens_max)
    assert found == pytest.approx(play(running, waiting, wanted, 4, tokens_max))


def test_nothing_is_estimated_before_anything_was_measured():
    assert Pace().estimate_wait_s([Outstanding(5, 5, 10)], [], 10, 1, 100) == 0.0


def test_means_follow_what_is_seen():
    pace = paced()
    for _ in range(100):
        pace.observe_turn(8.0, 4)
        pace.observe_answer(25, 100)
    assert pace.seconds_per_id == pytest.approx(2.0, rel=0.01)
    assert pace.share_used == pytest.approx(0.25, rel=0.01)
    assert pace.estimate_wait_s([Outstanding(0, 100, 100)], [], 1, 1, 100) == pytest.approx(50.0, rel=0.02)
