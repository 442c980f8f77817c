"""Where tables go: a terminal, in colour and folded to its width; a pipe, as plain text in full width."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal, TextIO

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from .text import clean

_FULL, _WIDE = 100_000, 120
"""Columns of a pipe, where nothing is folded or cut; and of a terminal that has room for ids."""

_FOLDED, _GAP = 12, 2
"""Columns that a folded name has at least, and between two columns of a table."""


class Screen:
    """Collects what is to be shown, and writes it at once."""

    def __init__(self, file: TextIO, *, width: int | None = None) -> None:
        self._file = file
        self._console = Console(file=file, markup=False, highlight=False, emoji=False)
        self.live = self._console.is_terminal
        self._console.width = width or (self._console.width if self.live else _FULL)
        self._text = io.StringIO()

    def show(self, what: RenderableType) -> None:
        """A renderable, or a line of text."""
        with self._console.capture() as captured:
            self._console.print(what, soft_wrap=False)
        text = captured.get()
        self._text.write(text if self.live else "\n".join(line.rstrip() for line in text.split("\n")))

    def heading(self, text: str) -> None:
        """A line that begins a section."""
        self.show(Text(f"\n{clean(text)}", style="bold"))

    def line(self, text: str, style: str = "") -> None:
        """A line."""
        self.show(Text(clean(text), style=style, overflow="fold"))

    @property
    def narrow(self) -> bool:
        """Long ids are better shortened."""
        return self._console.width < _WIDE

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, names: int = 1, spare: Sequence[str] = ()
    ) -> None:
        """Columns of text; the first `names` of them stand at the left and may be folded, figures at the right.

        Where a terminal is too narrow, columns named in `spare` are left out, one after the other.
        """
        grid = [list(columns), *([clean(cell) for cell in row] for row in rows)]
        for name in spare:
            if _least_width(grid, names) > self._console.width:
                at = grid[0].index(name)
                grid = [row[:at] + row[at + 1 :] for row in grid]
        table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="dim" if self.live else "")
        for n, column in enumerate(grid[0]):
            least = min(_FOLDED, _width(grid, n)) if n < names else None
            justify: Literal["left", "right"] = "left" if n < names else "right"
            table.add_column(Text(column), justify=justify, no_wrap=n >= names, overflow="fold", min_width=least)
        for row in grid[1:]:
            table.add_row(*map(Text, row))
        self.show(table)

    def flush(self) -> None:
        """Write it."""
        self._file.write(self._text.getvalue())
        self._file.flush()


def _width(grid: Sequence[Sequence[str]], column: int) -> int:
    return max(cell_len(row[column]) for row in grid)


def _least_width(grid: Sequence[Sequence[str]], names: int) -> int:
    """What a table takes with its names folded."""
    widths = [_width(grid, n) for n in range(len(grid[0]))]
    return sum(min(_FOLDED, width) if n < names else width for n, width in enumerate(widths)) + _GAP * (len(widths) - 1)
