"""Which kernels run: those for the widest vectors that the processor has, unless an operator says otherwise."""

import os
from enum import StrEnum
from functools import cache
from typing import Any

from deaios.coding.kernels.machine import get_features, load_llvm
from deaios.coding.kernels.multipliers import GaloisMultiplier, Multiplier, ShuffleMultiplier
from deaios.primitives.errors import ConfigError

TIER_VARIABLE = "DEAIOS_CODING_TIER"


class Tier(StrEnum):
    """Kernels by what they need; all give the same bits."""

    PORTABLE = "portable"
    """Any processor."""
    AVX2 = "avx2"
    """256-bit vectors; SHA instructions where there are any."""
    AVX512 = "avx512"
    """512-bit vectors and Galois-field instructions."""


_NEEDS = {
    Tier.PORTABLE: frozenset[str](),
    Tier.AVX2: frozenset({"avx2"}),
    Tier.AVX512: frozenset({"avx512f", "avx512bw", "avx512vl", "gfni"}),
}


def list_tiers() -> tuple[Tier, ...]:
    """Those that this machine can run, the fastest last."""
    return tuple(tier for tier in Tier if _NEEDS[tier] <= get_features())


@cache
def get_tier() -> Tier:
    """The tier of this process, decided at first use.

    Raises:
        ConfigError: the operator asks for one that does not exist or that this machine cannot run.
    """
    wanted = os.environ.get(TIER_VARIABLE)
    runnable = list_tiers()
    if wanted is None:
        return runnable[-1]
    if wanted not in runnable:
        raise ConfigError(f"{TIER_VARIABLE} is {wanted!r}; this machine runs {', '.join(runnable)}")
    return Tier(wanted)


def list_instructions(tier: Tier) -> str:
    """What a tier's code may use of this processor, as LLVM's list of features.

    A narrower tier does not get the registers of a wider one: it is the same here as where there is no wider one.
    """
    features = load_llvm().get_host_cpu_features()
    narrow = tier == Tier.AVX2
    return ",".join(
        f"{'+' if has and not (narrow and name.startswith(_WIDER)) else '-'}{name}" for name, has in features.items()
    )


_WIDER = ("avx512", "avx10", "evex512", "gfni")


def get_multiplier() -> Multiplier[Any] | None:  # Any: what each calls a chunk
    """How this tier multiplies; None where only tables do."""
    return _MULTIPLIERS[get_tier()]


_MULTIPLIERS: dict[Tier, Multiplier[Any] | None] = {  # Any: as above
    Tier.PORTABLE: None,
    Tier.AVX2: ShuffleMultiplier(),
    Tier.AVX512: GaloisMultiplier(),
}
