"""How runs look on a terminal. Needs rich, the extra `cli`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console, OverflowMethod
from rich.text import Text

from .console_runs import Row

_BAR = 24
_SHORT_BAR = 10
_FULL = 3
"""Lines a run takes at most where there is room for all of them."""

_FINE, _FINER = 1_000_000_000, 10_000_000
_SIGNS = {"spent": "█", "held": "▓", "unknown": "░", "free": "·"}
_ASCII_SIGNS = {"spent": "#", "held": "=", "unknown": "?", "free": "."}
_STYLES = {"spent": "green", "held": "cyan", "unknown": "magenta", "free": "dim"}
_WARN_AT, _FULL_AT = 80, 100


class View:
    """Draws runs as lines for a console, none of them wider than it is."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._signs = _ASCII_SIGNS if _is_ascii(console.encoding) else _SIGNS

    def area(self, rows: Sequence[Row], more: int) -> list[str]:
        """The live area: every run in full where there is room, else one line each; `more` are not among them."""
        room = max(1, self._console.height - 2)
        if sum(_FULL if row.warnings else _FULL - 1 for row in rows) + bool(more) <= room:
            lines = [line for row in rows for line in self._full(row)]
        else:
            most = max(1, room - 1)
            rows, more = rows[-most:], more + max(0, len(rows) - most)
            lines = [self._short(row) for row in rows]
        if more:
            lines.append(Text(f"and {more} more runs", style="dim"))
        return self.render(lines)

    def render(self, lines: Iterable[Text]) -> list[str]:
        """Lines as the terminal takes them, in its colours; those that are too long are cut."""
        overflow: OverflowMethod = "crop" if _is_ascii(self._console.encoding) else "ellipsis"
        width = max(1, self._console.width - 1)  # a full line would wrap on some terminals
        with self._console.capture() as captured:
            for line in lines:
                self._console.print(line, no_wrap=True, overflow=overflow, width=width)
        return captured.get().splitlines()

    def _full(self, row: Row) -> list[Text]:
        lines = [self._head(row), Text("  ").append_text(self._figures(row))]
        if row.warnings:
            lines.append(Text("  ! " + " | ".join(reversed(row.warnings)), style="yellow"))
        return lines

    def _head(self, row: Row) -> Text:
        text = Text(row.label, style="bold")
        if row.state:
            text.append(f"  {row.state}", style="bold red")
        text.append(f"  {_step(row)}  {row.tokens:,} tokens", style="not bold")
        for what, style in ((row.tier, "not bold"), (row.tool, "not bold blue"), (row.tags, "not bold cyan")):
            text.append(f"  {what}" if what else "", style=style)
        return text

    def _figures(self, row: Row) -> Text:
        text = Text()
        if row.cap:
            text.append_text(self._bar(row, _BAR)).append(" ")
        text.append_text(_dollars(row))
        for name in ("held", "unknown"):
            if nano := getattr(row, name):
                text.append(f"  {self._signs[name]} {_money(nano)} {name}", style=_STYLES[name])
        if row.unpriced:
            text.append(f"  {row.unpriced} unpriced", style="magenta")
        return text.append(f"  {row.seconds:,.0f} s", style="dim")

    def _short(self, row: Row) -> Text:
        text = Text.assemble((row.label, "bold"), " ")
        if row.cap:
            text.append_text(self._bar(row, _SHORT_BAR)).append(" ")
        text.append_text(_dollars(row)).append(f" {_step(row)}")
        if row.state:
            text.append(f" {row.state}", style="bold red")
        elif row.warnings:
            text.append(f" ! {row.warnings[-1]}", style="yellow")
        return text.append(f" {row.tags} {row.tier} {row.tool}", style="dim")

    def _bar(self, row: Row, width: int) -> Text:
        """Spent, held and unknown of the cap; what is there at all has a cell."""
        parts = {"spent": row.spent, "held": row.held, "unknown": row.unknown}
        whole = max(row.cap or 0, sum(parts.values()), 1)
        cells = {name: max(int(nano > 0), round(nano * width / whole)) for name, nano in parts.items()}
        largest = max(cells, key=cells.__getitem__)
        cells[largest] -= max(0, sum(cells.values()) - width)
        cells["free"] = max(0, width - sum(cells.values()))
        bar = Text()
        for name, count in cells.items():
            bar.append(self._signs[name] * count, style=_STYLES[name])
        return bar


def _dollars(row: Row) -> Text:
    if not row.cap:
        return Text(_money(row.spent))
    share = (row.spent + row.held + row.unknown) * 100 // row.cap
    style = "bold red" if share >= _FULL_AT else "yellow" if share >= _WARN_AT else ""
    return Text.assemble(f"{_money(row.spent)} of {_money(row.cap)} ", (f"{share}%", style))


def _step(row: Row) -> str:
    return f"step {row.step}" if row.steps is None else f"step {row.step}/{row.steps}"


def _money(nano: int) -> str:
    """Dollars as one glances at them: two to six decimals."""
    digits = 2 if nano >= _FINE else 4 if nano >= _FINER else 6
    whole, _, cents = f"{nano / 1e9:.{digits}f}".partition(".")
    return f"${whole}.{cents.rstrip('0').ljust(2, '0')}"


def _is_ascii(encoding: str) -> bool:
    return not encoding.lower().replace("-", "").startswith("utf")
