"""Writing LLVM assembly: lines, and names for values."""

from collections.abc import Iterable


class Assembly:
    """Lines of a function, or of a part of one. Values are named as they are written, so that no name comes twice."""

    def __init__(self, prefix: str = "v") -> None:
        self._lines: list[str] = []
        self._prefix = prefix
        self._count = 0

    def __str__(self) -> str:
        return "\n".join(self._lines)

    def line(self, text: str) -> None:
        """Write something that has no value."""
        self._lines.append(text)

    def value(self, text: str) -> str:
        """Write an instruction; returns the name of its value."""
        self._count += 1
        name = f"%{self._prefix}{self._count}"
        self._lines.append(f"  {name} = {text}")
        return name

    def at(self, pointer: str, offset: int | str) -> str:
        """A pointer some bytes further."""
        return self.value(f"getelementptr i8, ptr {pointer}, i64 {offset}")

    def load(self, kind: str, pointer: str, offset: int | str = 0) -> str:
        """What stands at a pointer, aligned or not."""
        return self.value(f"load {kind}, ptr {self.at(pointer, offset)}, align 1")

    def store(self, kind: str, value: str, pointer: str, offset: int | str = 0) -> None:
        """Write a value at a pointer, aligned or not."""
        self.line(f"  store {kind} {value}, ptr {self.at(pointer, offset)}, align 1")

    def shuffle(self, kind: str, left: str, right: str, places: Iterable[int]) -> str:
        """Elements of two vectors by place; those of the second come after those of the first."""
        chosen = list(places)
        mask = ", ".join(f"i32 {place}" for place in chosen)
        return self.value(f"shufflevector {kind} {left}, {kind} {right}, <{len(chosen)} x i32> <{mask}>")


def write_constant(words: Iterable[int], bits: int = 32) -> str:
    """A vector constant of unsigned words."""
    half = 1 << (bits - 1)
    return "<" + ", ".join(f"i{bits} {word if word < half else word - 2 * half}" for word in words) + ">"
