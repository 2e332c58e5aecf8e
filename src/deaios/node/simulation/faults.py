"""Faults: drawn from a seed, laid over a stretch of time, healed at its end.

Each lasts at most `LAST_S_MAX`, which is far below every window in which silence is punished; that silence beyond the
windows costs something is a rule, not a fault of the program.
"""

from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from deaios.node.simulation.network import Weather
from deaios.node.simulation.world import JOB_MOMENTS, SEND_MOMENT, Trigger, World

LAST_S_MAX = 5.0
SKEW_MS_MAX = 4_000
STALL_S_MAX = 1.5
JOBS_MAX, SENDS_MAX = 60, 80
"""How far into a role's work a crash may fall."""

Plan = Callable[[World, Random, str, float], None]
"""Lays one fault on a role within so many seconds from now."""


def _crash(when: str) -> Plan:
    def plan(world: World, random: Random, name: str, _span_s: float) -> None:
        role = world.roles[name]
        count = (
            role.sends + random.randrange(1, SENDS_MAX)
            if when == SEND_MOMENT
            else role.jobs + random.randrange(1, JOBS_MAX)
        )
        role.triggers.append(Trigger(when, count))

    return plan


def _crash_at(world: World, random: Random, name: str, span_s: float) -> None:
    def fire() -> None:
        if world.roles[name].process.is_alive:
            world.counts["crash at a time"] += 1
            world.kill(name, is_torn=False)

    world.at(random.random() * span_s, fire)


def _weather(**changes: float) -> Plan:
    def plan(world: World, random: Random, _name: str, span_s: float) -> None:
        def begin() -> None:
            for key, most in changes.items():
                setattr(world.network.weather, key, random.random() * most)

        def end() -> None:
            world.network.weather = Weather()

        start_s = random.random() * span_s
        world.at(start_s, begin)
        world.at(start_s + random.random() * LAST_S_MAX, end)

    return plan


def _partition(world: World, random: Random, name: str, span_s: float) -> None:
    start_s = random.random() * span_s

    def begin() -> None:
        world.counts["partition"] += 1
        world.note(f"{name} is cut off")
        world.network.cut(name)

    world.at(start_s, begin)
    world.at(start_s + random.random() * LAST_S_MAX, partial(world.network.join, name))


def _full_disk(world: World, random: Random, name: str, span_s: float) -> None:
    disk = world.roles[name].disk
    start_s = random.random() * span_s

    def begin() -> None:
        world.note(f"the disk of {name} is full")
        disk.is_full = True

    def end() -> None:
        disk.is_full = False
        if disk.refused_jobs:
            world.counts["full disk"] += 1

    world.at(start_s, begin)
    world.at(start_s + random.random() * LAST_S_MAX, end)


def _stall(world: World, random: Random, name: str, span_s: float) -> None:
    start_s, seconds = random.random() * span_s, random.random() * STALL_S_MAX

    def begin() -> None:
        world.counts["stalled process"] += 1
        world.roles[name].process.stall_s = seconds

    def end() -> None:
        world.roles[name].process.stall_s = 0.0

    world.at(start_s, begin)
    world.at(start_s + random.random() * LAST_S_MAX, end)


def _skew(world: World, random: Random, name: str, span_s: float) -> None:
    role = world.roles[name]
    skew_ms = random.randrange(-SKEW_MS_MAX, SKEW_MS_MAX)

    def begin() -> None:
        world.counts["clock skew"] += 1
        role.skew_ms = role.process.skew_ms = skew_ms

    world.at(random.random() * span_s, begin)


FAULTS: dict[str, Plan] = {
    **{f"crash {when}": _crash(when) for when in (*JOB_MOMENTS, SEND_MOMENT)},
    "crash at a time": _crash_at,
    "message loss": _weather(loss=0.3),
    "message delay": _weather(delay_s=0.4),
    "message doubling": _weather(doubling=0.5),
    "bad weather": _weather(loss=0.15, delay_s=0.2, doubling=0.3),
    "partition": _partition,
    "full disk": _full_disk,
    "stalled process": _stall,
    "clock skew": _skew,
}
WITNESSED = (
    *(f"crash {when}" for when in (*JOB_MOMENTS, SEND_MOMENT)),
    "crash at a time",
    "torn write",
    "partition",
    "full disk",
    "stalled process",
    "clock skew",
    "message lost",
    "message delayed",
    "message doubled",
    "message reordered",
    "answer broken midway",
    "question broken off",
    "repetition charged",
)
"""What must have happened over many histories, by the names under which worlds count it."""


def lay_faults(world: World, random: Random, names: Sequence[str], span_s: float, count: int) -> None:
    """Draw faults for some of these roles."""
    for _ in range(count):
        kind = random.choice(list(FAULTS))
        name = random.choice(list(names))
        world.note(f"planned: {kind} on {name}")
        FAULTS[kind](world, random, name, span_s)


def count_faults(world: World) -> None:
    """Bring what disks and the network saw into the world's counts."""
    world.counts["torn write"] += sum(role.disk.torn for role in world.roles.values())
    for key, name in (
        ("lost", "message lost"),
        ("delayed", "message delayed"),
        ("doubled", "message doubled"),
        ("reordered", "message reordered"),
        ("broken midway", "answer broken midway"),
    ):
        world.counts[name] += world.network.counts[key]
