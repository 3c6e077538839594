"""A terminal as small as this program's output needs: text, CR, LF, BS, erase to the end, SGR; the rest is dropped."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

_CONTROL = re.compile(
    r"\x1b\[([?>=]?[0-9;]*)([@-~])"  # CSI
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # OSC: a window's title
    r"|\x1b[()][0-9A-B]|\x1b[=>78cM]"
)


@dataclass(frozen=True)
class Style:
    bold: bool = False
    dim: bool = False
    color: int = 0  # 30 to 37 as in SGR, 90 to 97; 0: the terminal's own


Cell = tuple[str, Style]
Row = tuple[Cell, ...]
PLAIN = Style()


class Screen:
    def __init__(self, rows: int, columns: int) -> None:
        self._columns = columns
        self._cells: list[list[Cell]] = [[] for _ in range(rows)]
        self._row = self._column = 0
        self._style = PLAIN
        self._bytes, self._pending = b"", ""

    def feed(self, data: bytes) -> None:
        """Sequences and characters may be cut anywhere."""
        self._bytes += data
        text = self._bytes.decode(errors="ignore")
        self._bytes = self._bytes[len(text.encode()) :]
        text, self._pending = self._pending + text, ""
        while text:
            if text[0] != "\x1b":
                self._put(text[0])
                text = text[1:]
            elif match := _CONTROL.match(text):
                self._obey(match[1], match[2])
                text = text[match.end() :]
            elif len(text) > 200:
                text = text[1:]
            else:
                self._pending, text = text, ""

    def rows(self) -> tuple[Row, ...]:
        return tuple(tuple(row) for row in self._cells)

    def text(self) -> str:
        return "\n".join("".join(character for character, _ in row).rstrip() for row in self._cells).rstrip()

    def _put(self, character: str) -> None:
        if character == "\r":
            self._column = 0
        elif character == "\n":
            self._down()
        elif character == "\b":
            self._column = max(0, self._column - 1)
        elif character >= " ":
            if self._column == self._columns:
                self._column = 0
                self._down()
            row = self._cells[self._row]
            row.extend([(" ", PLAIN)] * (self._column + 1 - len(row)))
            row[self._column] = (character, self._style)
            self._column += 1

    def _down(self) -> None:
        if self._row + 1 < len(self._cells):
            self._row += 1
        else:
            self._cells = [*self._cells[1:], []]

    def _obey(self, parameters: str | None, verb: str | None) -> None:
        if verb == "m":
            for word in (parameters or "0").split(";"):
                self._style = _styled(self._style, int(word or 0))
        elif verb == "K" and parameters in ("", "0"):
            del self._cells[self._row][self._column :]
        elif verb == "J" and parameters in ("", "0"):
            del self._cells[self._row][self._column :]
            self._cells[self._row + 1 :] = [[] for _ in self._cells[self._row + 1 :]]
        elif verb in ("C", "D"):
            step = int(parameters or 1) * (1 if verb == "C" else -1)
            self._column = min(max(0, self._column + step), self._columns)


def _styled(style: Style, code: int) -> Style:
    if code == 0:
        return PLAIN
    if code == 1:
        return replace(style, bold=True)
    if code == 2:
        return replace(style, dim=True)
    if code == 22:
        return replace(style, bold=False, dim=False)
    if code == 39:
        return replace(style, color=0)
    return replace(style, color=code) if 30 <= code <= 37 or 90 <= code <= 97 else style
