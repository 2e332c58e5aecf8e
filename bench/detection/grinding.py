"""A buyer who grinds nonces at filter edges, where engines keep other sets, until honesty looks like a violation."""

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deaios.compute.records import DEFAULT_THRESHOLDS
from deaios.compute.sampling import Row, sample, score
from deaios.ledger.structs import Params

MAX_TOKENS = 64


class Answered(Protocol):
    """An answer with the provider's logits."""

    @property
    def prompt(self) -> tuple[int, ...]: ...

    @property
    def rows(self) -> Sequence[NDArray[np.float32]]: ...


def _make_params(temperature: int, top_k: int = 0, top_p: int = 1000) -> Params:
    return Params(temperature, top_k, top_p, MAX_TOKENS, (), (), bytes(32))


@dataclass(frozen=True)
class Edge:
    """A position and filter where provider and checker keep different sets."""

    position: int
    params: Params
    provider_row: NDArray[np.float32]
    checker_row: NDArray[np.float32]
    weight: float
    """Share of the token on the edge: how often grinding hits it."""


def find_edges(
    answers: Sequence[Answered], checker_rows: Sequence[NDArray[np.float32]], count: int, temperature: int = 1000
) -> list[Edge]:
    """The likeliest tokens that one side keeps and the other drops, over all positions and every top_p and top_k."""
    edges = []
    for answer, rows in zip(answers, checker_rows, strict=True):
        for place, (own, other) in enumerate(zip(answer.rows, rows, strict=True)):
            position = len(answer.prompt) + place
            for params, weight in _edges_of(own, other, temperature):
                edges.append(Edge(position, params, own, other, weight))
    edges.sort(key=lambda edge: -edge.weight)
    by_top_k = [edge for edge in edges if edge.params.top_k]
    by_top_p = [edge for edge in edges if not edge.params.top_k]
    return by_top_p[: count - count // 4] + by_top_k[: count // 4]


def _edges_of(own: Row, other: Row, temperature: int) -> Iterator[tuple[Params, float]]:
    top = np.argsort(-own)[:64]
    above_own, weights = _mass_above(own, top, temperature)
    above_other, _ = _mass_above(other, top, temperature)
    for low, high, weight in zip(
        np.minimum(above_own, above_other), np.maximum(above_own, above_other), weights, strict=True
    ):
        first = math.floor(low * 1000) + 1
        if 0 < first < 1000 and first <= high * 1000:
            yield _make_params(temperature, 0, first), float(weight)
    ranks_own, ranks_other = np.argsort(-own, kind="stable")[:64], np.argsort(-other, kind="stable")[:64]
    for k in range(1, 64):
        if set(ranks_own[:k].tolist()) != set(ranks_other[:k].tolist()):
            yield _make_params(temperature, k), float(weights[k - 1])


def _mass_above(
    row: Row, tokens: NDArray[np.intp], temperature: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    weights = np.exp((row.astype(np.float64) - float(row.max())) / (temperature / 1000))
    weights /= weights.sum()
    return np.array([weights[row > row[token]].sum() for token in tokens]), weights[tokens]


@dataclass(frozen=True)
class Grinding:
    """What grinding nonces at edges gave."""

    edges: int
    nonces: int
    framed_without_edge_rule: int
    framed: int
    margin_max: float
    ok: bool
    seconds: float


def grind(edges: Sequence[Edge], nonces: int, noise: float = 0.0) -> Grinding:
    """Try `nonces` seeds at every edge: how often would the honest pick be called a violation?

    Args:
        edges: from `find_edges`.
        nonces: per edge.
        noise: when above 0, the provider's row is the checker's plus normal noise of this size instead.
    """
    start = time.monotonic()
    dice = np.random.default_rng(5)
    framed = without = 0
    margin_max = 0.0
    limit, epsilon = DEFAULT_THRESHOLDS.margin, DEFAULT_THRESHOLDS.epsilon
    for index, edge in enumerate(edges):
        row = edge.provider_row
        for nonce in range(nonces):
            seed = hashlib.sha256(f"nonce {index} {nonce}".encode()).digest()
            if noise and nonce % 64 == 0:
                row = (edge.checker_row + dice.normal(0, noise, edge.checker_row.size)).astype(np.float32)
            token = sample(row, edge.params, seed, edge.position)
            if token == sample(edge.checker_row, edge.params, seed, edge.position):
                continue
            margin = score(edge.checker_row, edge.params, seed, edge.position, token, epsilon).margin
            margin_max = max(margin_max, margin)
            framed += margin > limit
            without += score_without_edges(edge, seed, token) > limit
    seconds = time.monotonic() - start
    return Grinding(len(edges), nonces * len(edges), without, framed, margin_max, framed == 0, seconds)


def score_without_edges(edge: Edge, seed: bytes, token: int) -> float:
    """The margin that a checker without the edge rule would see: against its own pick, whatever the filters' noise."""
    row, params = edge.checker_row, edge.params
    rival = sample(row, params, seed, edge.position)
    open_params = _make_params(params.temperature_milli)
    own = score(row, open_params, seed, edge.position, token, 0.0).margin
    return abs(own - score(row, open_params, seed, edge.position, rival, 0.0).margin)
