"""WebSocket as bytes (RFC 6455): a handshake, frames, and what is almost a frame. Not a test module."""

MESSAGE_BYTES_MAX = 8 << 20
"""As the chain's door has it."""


def handshake(path="/"):
    lines = [f"GET {path} HTTP/1.1", "Host: x", "Upgrade: websocket", "Connection: Upgrade"]
    lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def frame(opcode, payload, *, is_last=True, masked=True):
    """One frame; its mask is zero, so that the payload stays readable."""
    size = len(payload)
    length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2) if size < 65536 else b"\x7f" + size.to_bytes(8)
    head = bytes([(0x80 if is_last else 0) | opcode, length[0] | (0x80 if masked else 0)]) + length[1:]
    return head + bytes(4) + payload if masked else head + payload


GARBAGE = {
    "reserved bits": b"\xf1" + frame(1, b"{}")[1:],
    "unknown opcode": frame(3, b"{}"),
    "not masked": frame(1, b"{}", masked=False),
    "long ping": frame(9, bytes(126)),
    "continuation of nothing": frame(0, b"{}"),
    "fragmented ping": frame(9, b"", is_last=False),
    "message in a message": frame(1, b"{", is_last=False) + frame(1, b"{}"),
    "too long": b"\x81\xff" + (MESSAGE_BYTES_MAX + 1).to_bytes(8) + bytes(4),
    "enormous": b"\x81\xff" + (2**63 - 1).to_bytes(8) + bytes(4),
    "close with half a code": frame(8, b"\x03"),
    "no websocket at all": b"\x00" * 5000,
}
