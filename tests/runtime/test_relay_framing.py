"""Frames and sessions: any bytes give a frame or a typed refusal, and no order of frames holds more than the bounds."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deaios.runtime.errors import RefusedBusy
from deaios.runtime.relay import framing
from deaios.runtime.relay.framing import CREDIT_BYTES, Frame, Head, InvalidFrame, Kind, Opening
from deaios.runtime.relay.session import Budget, Session, Stream, UnavailableStream

OPENING = Opening("POST", "/purchases", [("content-type", "application/json")])
HEAD = Head(200, [("content-type", "application/x-ndjson")])


def test_frames_say_what_was_said() -> None:
    assert framing.decode_frame(framing.encode_frame(Kind.DATA, 7, b"x")) == Frame(Kind.DATA, 7, b"x")
    assert framing.decode_opening(framing.decode_frame(framing.encode_opening(1, OPENING))) == OPENING
    assert framing.decode_head(framing.decode_frame(framing.encode_head(1, HEAD))) == HEAD
    assert framing.encode_credit(258, 65536).hex() == "060000010200010000"
    assert framing.encode_frame(Kind.DRAIN, 0).hex() == "0700000000"


@given(st.binary(max_size=200))
def test_any_bytes_give_a_frame_or_a_typed_refusal(data: bytes) -> None:
    try:
        frame = framing.decode_frame(data)
        decode = {Kind.OPEN: framing.decode_opening, Kind.HEAD: framing.decode_head}.get(frame.kind)
        if decode is not None:
            decode(frame)
    except InvalidFrame:
        return
    assert framing.encode_frame(frame.kind, frame.stream, frame.payload) == data


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"\x03\0\0\0", "frame has 4 bytes"),
        (framing.encode_frame(Kind.DATA, 1, bytes(framing.DATA_BYTES_MAX + 1)), "frame has"),
        (b"\x08\0\0\0\x01", "kind 8"),
        (framing.encode_frame(Kind.DATA, 1), "DATA has 0 bytes"),
        (framing.encode_frame(Kind.END, 1, b"x"), "END has 1 bytes"),
        (framing.encode_frame(Kind.CREDIT, 1, bytes(4)), "CREDIT has 4 bytes"),
        (framing.encode_frame(Kind.DRAIN, 1), "DRAIN on stream 1"),
        (framing.encode_frame(Kind.DATA, 0, b"x"), "DATA on stream 0"),
    ],
)
def test_what_no_frame_is(data: bytes, rule: str) -> None:
    with pytest.raises(InvalidFrame, match=rule):
        framing.decode_frame(data)


@pytest.mark.parametrize("path", ["", "offer", "//host/offer", "/a b", "/\r\nx", "/é", "/#x", "/" + "a" * 2048])
def test_paths_of_a_door_only(path: str) -> None:
    with pytest.raises(InvalidFrame, match="not a path"):
        framing.validate_path(path)


@pytest.mark.parametrize(
    "opening",
    [
        Opening("DELETE", "/x", []),
        Opening("GET", "/x", [("a", "b")] * 65),
        Opening("GET", "/x", [("a\r\nb", "c")]),
        Opening("GET", "/x", [("a", "b\r\nc: d")]),
    ],
)
def test_heads_smuggle_nothing(opening: Opening) -> None:
    with pytest.raises(InvalidFrame):
        framing.decode_opening(framing.decode_frame(framing.encode_opening(1, opening)))


class Wire:
    """What a session sent."""

    def __init__(self, *, on_open: bool = False, budget: int = 1 << 20, streams_max: int = 4) -> None:
        self.sent: list[Frame] = []
        self.opened: list[Stream] = []
        self.budget = Budget(budget)
        callback = self.opened.append if on_open else None
        self.session = Session(self.send, self.budget, on_open=callback, streams_max=streams_max)

    async def play(self, frames: list[bytes]) -> None:
        for frame in frames:
            await self.session.receive(frame)

    async def send(self, data: bytes) -> None:
        self.sent.append(framing.decode_frame(data))


async def test_a_session_ends_at_the_first_broken_rule() -> None:
    cases = {
        "which was never opened": [framing.encode_frame(Kind.DATA, 9, b"x")],
        "only a relay opens": [framing.encode_opening(1, OPENING)],
        "which has one": [framing.encode_head(1, HEAD), framing.encode_head(1, HEAD)],
        "outside of what": [framing.encode_frame(Kind.DATA, 1, b"x")],
        "ended twice": [framing.encode_frame(Kind.END, 1)] * 2,
        "credit of stream 1": [framing.encode_credit(1, 1)],
        "more than its credit": [
            framing.encode_head(1, HEAD),
            *[framing.encode_frame(Kind.DATA, 1, bytes(framing.DATA_BYTES_MAX))] * 5,
        ],
    }
    for rule, frames in cases.items():
        wire = Wire()
        await wire.session.open(OPENING)
        with pytest.raises(InvalidFrame, match=rule):
            await wire.play(frames)


async def test_the_role_s_side_refuses_what_a_relay_must_not_do() -> None:
    for rule, frames in {
        "opened after stream 2": [framing.encode_opening(2, OPENING), framing.encode_opening(2, OPENING)],
        "does not drain": [framing.encode_frame(Kind.DRAIN, 0)],
        "which has one": [framing.encode_opening(1, OPENING), framing.encode_head(1, HEAD)],
    }.items():
        wire = Wire(on_open=True)
        with pytest.raises(InvalidFrame, match=rule):
            await wire.play(frames)


async def test_credit_holds_a_writer_up_and_comes_back_with_reading() -> None:
    wire = Wire()
    stream = await wire.session.open(OPENING)
    writing = asyncio.create_task(stream.write(bytes(CREDIT_BYTES + 5)))
    await asyncio.sleep(0)
    assert sum(len(frame.payload) for frame in wire.sent if frame.kind is Kind.DATA) == CREDIT_BYTES
    assert not writing.done()
    await wire.session.receive(framing.encode_credit(1, 5))
    await writing
    assert sum(len(frame.payload) for frame in wire.sent if frame.kind is Kind.DATA) == CREDIT_BYTES + 5

    await wire.session.receive(framing.encode_head(1, HEAD))
    piece = bytes(framing.DATA_BYTES_MAX)
    for _ in range(4):
        await wire.session.receive(framing.encode_frame(Kind.DATA, 1, piece))
    assert wire.budget.held_bytes == CREDIT_BYTES
    assert [await stream.read(), await stream.read()] == [piece, piece]
    assert wire.sent[-1] == Frame(Kind.CREDIT, 1, (CREDIT_BYTES // 2).to_bytes(4))
    assert wire.budget.held_bytes == CREDIT_BYTES // 2
    await stream.reset("enough")
    assert wire.budget.held_bytes == 0


async def test_all_streams_together_hold_no_more_than_the_budget() -> None:
    wire = Wire(budget=10)
    first, second = await wire.session.open(OPENING), await wire.session.open(OPENING)
    for number in (1, 2):
        await wire.session.receive(framing.encode_head(number, HEAD))
        await wire.session.receive(framing.encode_frame(Kind.DATA, number, b"12345678"))
    with pytest.raises(UnavailableStream, match="too many bytes"):
        await second.read()
    assert await first.read() == b"12345678"
    await second.reset("whatever")
    assert wire.sent[-1].kind is Kind.RESET
    assert (wire.budget.held_bytes, len(wire.session)) == (0, 1)


async def test_streams_are_bounded_and_their_places_come_back() -> None:
    wire = Wire(streams_max=2)
    streams = [await wire.session.open(OPENING) for _ in range(2)]
    with pytest.raises(RefusedBusy, match="all 2 streams"):
        await wire.session.open(OPENING)
    await streams[0].end()
    await wire.session.receive(framing.encode_head(1, HEAD))
    await wire.session.receive(framing.encode_frame(Kind.END, 1))
    assert (await wire.session.open(OPENING)).number == 3
    role = Wire(on_open=True, streams_max=1)
    for number in (1, 2):
        await role.session.receive(framing.encode_opening(number, OPENING))
    assert [frame.kind for frame in role.sent] == [Kind.RESET]
    assert len(role.opened) == 1


async def test_when_a_session_ends_nobody_waits_for_ever() -> None:
    wire = Wire()
    stream = await wire.session.open(OPENING)
    waiting = [asyncio.create_task(stream.read_head()), asyncio.create_task(wire.session.drain())]
    await asyncio.sleep(0)
    wire.session.close("gone")
    with pytest.raises(UnavailableStream, match="gone"):
        await waiting[0]
    await waiting[1]
    with pytest.raises(UnavailableStream, match="away"):
        await wire.session.open(OPENING)


_FRAMES = st.one_of(
    st.binary(max_size=64),
    st.builds(
        framing.encode_frame,
        st.sampled_from(list(Kind)),
        st.integers(0, 3),
        st.one_of(st.binary(max_size=40), st.just(bytes(3000)), st.just((4096).to_bytes(4))),
    ),
    st.builds(framing.encode_opening, st.integers(1, 5), st.just(OPENING)),
    st.builds(framing.encode_head, st.integers(1, 3), st.just(HEAD)),
)


@given(st.lists(_FRAMES, max_size=30), st.booleans())
def test_no_order_of_frames_breaks_a_session_or_its_bounds(frames: list[bytes], is_role: bool) -> None:
    async def play() -> None:
        wire = Wire(on_open=is_role, budget=5000, streams_max=2)
        if not is_role:
            for _ in range(2):
                await wire.session.open(OPENING)
        try:
            for frame in frames:
                await wire.session.receive(frame)
                assert 0 <= wire.budget.held_bytes <= 5000
                assert len(wire.session) <= 2
        except InvalidFrame:
            pass
        wire.session.close("over")
        assert (wire.budget.held_bytes, len(wire.session)) == (0, 0)

    asyncio.run(play())
