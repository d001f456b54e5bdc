# SPDX-License-Identifier: GPL-2.0
"""Bars as SVG: one picture for a group, one panel for each load, one bar for each peer."""

from collections.abc import Sequence

import report

_WIDTH, _LABEL, _BAR, _GAP, _TITLE = 760, 150, 18, 4, 30
_OURS, _THEIRS, _LINE, _TEXT = "#1b6ca8", "#b8bec6", "#30363d", "#222222"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def _text(x: float, y: float, words: str, size: int = 12, anchor: str = "start", weight: str = "normal") -> str:
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}" '
            f'fill="{_TEXT}">{_escape(words)}</text>')


def _panel(cells: Sequence[dict], top: float) -> tuple[list[str], float]:
    """The bars of one load; and where the next panel begins."""
    better = "smaller is better" if cells[0]["unit"] == "ms" else "larger is better"
    parts = [_text(10, top + 18, f"{cells[0]['load']}, {cells[0]['unit']} ({better})", 13, weight="bold")]
    longest = max((max(cell["values"]) for cell in cells if cell["n"]), default=0) or 1
    room = _WIDTH - _LABEL - 90
    y = top + _TITLE
    for cell in cells:
        parts.append(_text(_LABEL - 8, y + 13, cell["peer"], anchor="end"))
        if not cell["n"]:
            parts.append(_text(_LABEL + 4, y + 13, "failed"))
        else:
            width = cell["median"] / longest * room
            colour = _OURS if cell["peer"].startswith("cloop") else _THEIRS
            parts.append(f'<rect x="{_LABEL}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>')
            low, high = (_LABEL + value / longest * room for value in (min(cell["values"]), max(cell["values"])))
            middle = y + _BAR / 2
            parts.append(f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8" '
                         f'stroke="{_LINE}" fill="none"/>')
            parts.append(_text(max(high, _LABEL + width) + 6, y + 13, report.number(cell["median"])))
        y += _BAR + _GAP
    return parts, y + 10


def picture(title: str, cells: Sequence[dict]) -> str:
    """The picture of a group's cells: bars are medians, the lines across them reach from the least to the most."""
    parts, top = [_text(10, 24, title, 16, weight="bold")], 40.0
    for load in dict.fromkeys(cell["load"] for cell in cells):
        panel, top = _panel([cell for cell in cells if cell["load"] == load], top)
        parts += panel
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{top:.0f}" font-family="sans-serif">',
        f'<rect width="{_WIDTH}" height="{top:.0f}" fill="#ffffff"/>',
        *parts,
        "</svg>",
    ]) + "\n"
