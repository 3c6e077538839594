"""A terminal's states over time as one animated SVG, without scripts: a row is drawn once for each time that it stays.

The last state is what stands there without animation (a viewer that knows none, prefers-reduced-motion, print).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from itertools import groupby

from benchkit.screen import PLAIN, Row, Style

State = tuple[float, tuple[Row, ...]]  # when, and all rows

_WIDTH, _HEIGHT, _FONT = 8.4, 20, 14  # px of a cell, and of the letters
_LEFT, _TOP, _BOTTOM, _EDGE = 20, 54, 18, 1
_STEP = 0.12  # s; what changes faster is drawn once
_SECRET = re.compile(r"((?:token|tkn)=)[\w-]+")
_COLORS = {31: "#ff7b72", 32: "#7ee787", 33: "#e3b341", 34: "#79c0ff", 35: "#d2a8ff", 36: "#76e3ea", 90: "#8b949e"}
_STYLE = """
text{font:14px ui-monospace,SFMono-Regular,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace}
text{fill:#e6edf3;white-space:pre}
.b{font-weight:700;fill:#fff}.d{fill:#8b949e}.t{fill:#8b949e;text-anchor:middle}
@media (prefers-reduced-motion:reduce){g{animation:none!important}}
@media print{g{animation:none!important}}
"""

_Span = tuple[float, float]  # from, until (seconds)


def draw(states: Sequence[State], length: float, columns: int, title: str) -> str:
    """Raises ValueError where nothing was recorded."""
    kept = _thinned(states)
    spans = _spans(kept, length)
    used = max(number for number, _, _ in spans) + 1
    width, height = columns * _WIDTH + 2 * _LEFT, _TOP + used * _HEIGHT + _BOTTOM
    groups: dict[_Span, list[str]] = {}
    for number, row, span in spans:
        groups.setdefault(span, []).append(_line(number, row))
    body, rules = [], []
    for name, (span, lines) in enumerate(sorted(groups.items())):
        if span == (0.0, length):
            body += lines
            continue
        rules.append(_rule(name, span, length))
        body.append(f'<g id="a{name}">' + "".join(lines) + "</g>")
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}"'
    head += f' height="{height:g}" role="img" aria-label="{escape(title)}">\n<title>{escape(title)}</title>'
    style = f"<style>{_STYLE}g{{animation-duration:{length:.1f}s;animation-timing-function:step-end;"
    style += "animation-iteration-count:infinite}\n" + "\n".join(rules) + "\n</style>"
    return "\n".join([head, style, _window(width, height), *body, "</svg>\n"])


def _thinned(states: Sequence[State]) -> list[State]:
    found: list[State] = []
    for when, rows in states:
        if found and when - found[-1][0] < _STEP and len(found) > 1:
            found[-1] = (found[-1][0], rows)
        else:
            found.append((when if found else 0.0, rows))
    return found


def _spans(states: Sequence[State], length: float) -> list[tuple[int, Row, _Span]]:
    """Each row that is not empty, and how long it stays the same."""
    found = []
    for number in range(max((len(rows) for _, rows in states), default=0)):
        column = [(when, _redacted(_trimmed(rows[number]))) for when, rows in states]
        starts = [(next(group)[0], row) for row, group in groupby(column, key=lambda item: item[1])]
        ends = [when for when, _ in starts[1:]] + [length]
        found += [(number, row, (start, end)) for (start, row), end in zip(starts, ends) if row]
    if not found:
        raise ValueError("nothing was recorded")
    return found


def _trimmed(row: Row) -> Row:
    end = len(row)
    while end and row[end - 1][0] == " ":
        end -= 1
    return row[:end]


def _redacted(row: Row) -> Row:
    text = "".join(character for character, _ in row)
    found: list[tuple[str, Style]] = []
    after = 0
    for match in _SECRET.finditer(text):
        found += [*row[after : match.end(1)], ("…", row[match.end(1)][1])]
        after = match.end()
    return (*found, *row[after:])


def _rule(name: int, span: _Span, length: float) -> str:
    """Shown in its time; outside of the animation only what stays to the end is."""
    start, end = (100 * when / length for when in span)
    steps = [(0.0, int(start <= 0)), (start, 1), *([(end, 0)] if end < 100 else [])]
    frames = "".join(f"{when:.2f}%{{opacity:{shown}}}" for when, shown in dict(steps).items())
    rest = "" if end >= 100 else "opacity:0;"
    return f"#a{name}{{{rest}animation-name:k{name}}}@keyframes k{name}{{{frames}}}"


def _line(number: int, row: Row) -> str:
    y, parts, column = _TOP + number * _HEIGHT + _FONT, [], 0
    for style, group in groupby(row, key=lambda cell: cell[1]):
        text = "".join(character for character, _ in group)
        blank = len(text) - len(text.lstrip(" "))
        shown = text.strip(" ")
        if shown:
            x, width = _LEFT + (column + blank) * _WIDTH, len(shown) * _WIDTH
            place = f'x="{x:.1f}" y="{y}" textLength="{width:.1f}"'
            parts.append(f"<text {place}{_look(style)}>{escape(shown, quote=False)}</text>")
        column += len(text)
    return "".join(parts)


def _look(style: Style) -> str:
    if style == PLAIN:
        return ""
    names = " ".join(name for name, on in (("b", style.bold), ("d", style.dim)) if on)
    color = _COLORS.get(style.color, "")
    return (f' class="{names}"' if names else "") + (f' style="fill:{color}"' if color else "")


def _window(width: float, height: float) -> str:
    box = f'x="{_EDGE}" y="{_EDGE}" width="{width - 2 * _EDGE:g}" height="{height - 2 * _EDGE:g}" rx="10"'
    dots = "".join(
        f'<circle cx="{24 + 20 * number}" cy="23" r="6" fill="{color}"/>'
        for number, color in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    return f'<rect {box} fill="#0d1117" stroke="#30363d"/>\n{dots}<text class="t" x="{width / 2:g}" y="28">mlbox</text>'
