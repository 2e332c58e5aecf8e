"""Steps, batches and profiles: rules that need no model."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deaios.compute.engine import EngineProfile, InvalidStep, Step, plan_batches, split_evenly, validate_steps


@dataclass
class Bounds:
    vocabulary_size: int = 100
    context_tokens: int = 20
    sequences_max: int = 2
    tokens_max: int = 30


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([Step(2, 0, (1,), 1)], r"sequence 2 is outside 0\.\.1"),
        ([Step(-1, 0, (1,), 1)], "sequence -1 is outside"),
        ([Step(0, 5, (1,), 1), Step(0, 6, (1,), 1)], "appears twice"),
        ([Step(0, 4, (1,), 1)], "holds 5 ids, the step starts at 4"),
        ([Step(0, 5, (), 0)], "0 outputs of 0 ids"),
        ([Step(0, 5, (1,), 2)], "2 outputs of 1 ids"),
        ([Step(0, 5, (1,), -1)], "-1 outputs"),
        ([Step(0, 5, (1,) * 16, 1)], "21 ids exceeds the context of 20"),
        ([Step(0, 5, (1, 100), 1)], "token id 1 or 100 is outside the vocabulary of 100"),
        ([Step(0, 5, (-1,), 1)], "token id -1"),
        ([Step(0, 5, (1,) * 15, 1), Step(1, 0, (1,) * 11, 1)], "31 ids in all sequences exceed"),
    ],
)
def test_broken_steps_are_refused_with_the_rule_and_the_value(steps, message):
    with pytest.raises(InvalidStep, match=message):
        validate_steps(Bounds(), [5, 0], steps)


def test_steps_up_to_every_bound_pass():
    validate_steps(Bounds(), [5, 0], [Step(0, 5, (99,) * 15, 15), Step(1, 0, (0,) * 10, 0)])


steps_of_many = st.lists(
    st.integers(1, 400).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size))), min_size=1, max_size=5
)


@settings(deadline=None)
@given(steps_of_many, st.integers(4, 256), st.integers(4, 64))
def test_batches_keep_order_bounds_and_every_id(sizes, tokens_max, outputs_max):
    steps = [Step(index, 0, (7,) * size, outputs) for index, (size, outputs) in enumerate(sizes)]
    batches = plan_batches(steps, tokens_max, outputs_max)
    parts_of = {
        index: [part for batch in batches for part in batch if part.index == index] for index in range(len(steps))
    }
    for batch in batches:
        assert sum(part.last - part.first for part in batch) <= tokens_max
        assert sum(part.outputs for part in batch) <= outputs_max
    for index, step in enumerate(steps):
        parts = parts_of[index]
        assert parts[0].first == 0
        assert parts[-1].last == len(step.ids)
        assert all(before.last == after.first for before, after in pairwise(parts))
        assert sum(part.outputs for part in parts) == step.outputs
        wanted_from = len(step.ids) - step.outputs
        assert all(part.outputs == max(0, part.last - max(part.first, wanted_from)) for part in parts)


@given(st.integers(1, 5000), st.integers(1, 300))
def test_even_parts_differ_by_one_id_at_most(size, size_max):
    parts = split_evenly(size, size_max)
    lengths = [last - first for first, last in parts]
    assert sum(lengths) == size
    assert max(lengths) <= size_max
    assert max(lengths) - min(lengths) <= 1
    assert len(parts) == -(-size // size_max)


def test_profile_digest_is_frozen():
    profile = EngineProfile("llama", "build 1", "F", {"cache": "f16", "flashAttention": False})
    assert profile.digest().hex() == "e457ce05d53e3d4f163de1f880d2d904f392cf7835fe476c59828f20746189e7"
    assert profile.digest() != EngineProfile("llama", "build 2", "F", profile.details).digest()
