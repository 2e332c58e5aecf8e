"""Python's search for cycles, in a process that has loaded what it works with."""

import gc

YOUNG = 50_000
"""New containers after which Python looks for cycles; by itself it does after 700."""


def spare_collector() -> None:
    """Make Python look for cycles less often, from now on among what is new.

    A chain's state, a tokenizer's vocabulary and everything imported hold no cycles and outlive everything: unless told
    so, each full collection walks all of it, and young ones come several times within one request. Together they took a
    tenth of the time of a chain, of a gateway and of a provider.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG)
