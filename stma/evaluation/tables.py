"""Small tables: the same on the screen, in Markdown and in CSV."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Table:
    """Named columns and rows of text; numbers are written by :func:`number`."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Padded, so that it reads well on a screen too; all columns but the first align right."""
        lines = [
            [one_line(cell).replace("|", "\\|") for cell in row]
            for row in (self.header, *self.rows)
        ]
        widths = [max(len(row[i]) for row in lines) for i in range(len(self.header))]

        def line(row: Sequence[str]) -> str:
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            return "| " + " | ".join(cells) + " |"

        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        return "\n".join([line(lines[0]), line(rule), *map(line, lines[1:])])

    def write_csv(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            csv.writer(file).writerows([self.header, *self.rows])


def one_line(text: str) -> str:
    """The text with unprintable characters and line breaks escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def number(value: float | None, digits: int = 1) -> str:
    """As in a table; empty if there is none."""
    return "" if value is None else f"{value:.{digits}f}"
