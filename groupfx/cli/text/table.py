"""Tables that fit: one row a line where the width allows it, two where not, nothing cut off."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

_GAP = "  "
_INDENT = "    "
# Below this no table can be read anyway.
_LEAST = 20

Cell = str | Text


@dataclass(frozen=True)
class Column:
    """A column's title; numbers stand to the right."""

    title: str
    right: bool = False


def printable(text: str) -> str:
    """`text` with control characters written out: a name in a file must not steer the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


@dataclass(frozen=True)
class Table:
    """Columns and rows, one cell a column."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


def table_lines(tables: Sequence[Table], width: int | None) -> list[Text]:
    """The same table in a wide form and in narrower ones: the first that fits, as aligned lines.

    Where none fits into `width` (None: no limit), the first cell of each row of the last form
    stands on a line of its own, and the rest below it, in as many lines as it takes. A column
    without a value is left out.
    """
    forms = [_Form.of(table) for table in tables]
    fitting = next((form for form in forms if width is None or form.width <= width), None)
    return forms[-1].stacked(width or 0) if fitting is None else fitting.lines()


@dataclass(frozen=True)
class _Form:
    columns: Sequence[Column]
    cells: Sequence[Sequence[Text]]
    sizes: Sequence[int]

    @classmethod
    def of(cls, table: Table) -> "_Form":
        rows = [[_text(cell) for cell in row] for row in table.rows]
        used = [i for i in range(len(table.columns)) if i == 0 or any(row[i].plain for row in rows)]
        columns = [table.columns[i] for i in used]
        header = [Text(column.title, style="bold") for column in columns]
        cells = [header, *([row[i] for i in used] for row in rows)]
        sizes = [max(cell_len(line[i].plain) for line in cells) for i in range(len(columns))]
        return cls(columns, cells, sizes)

    @property
    def width(self) -> int:
        return sum(self.sizes) + len(_GAP) * (len(self.sizes) - 1)

    def lines(self) -> list[Text]:
        return [_line(row, self.columns, self.sizes) for row in self.cells]

    def stacked(self, width: int) -> list[Text]:
        lines, room = [], max(width, _LEAST) - len(_INDENT)
        sizes = [min(size, room) for size in self.sizes]
        for row in self.cells:
            lines.append(row[0])
            for part in self._parts(room):
                line = _line(row[part], self.columns[part], sizes[part])
                lines += [Text(_INDENT) + piece for piece in _broken(line, room)]
        return lines

    def _parts(self, width: int) -> list[slice]:
        """The columns behind the first, as many in a line as fit into `width`, at least one."""
        parts: list[slice] = []
        start, used = 1, 0
        for position, size in enumerate(self.sizes[1:], 1):
            if position > start and used + len(_GAP) + size > width:
                parts.append(slice(start, position))
                start, used = position, 0
            used += size + (len(_GAP) if position > start else 0)
        return [*parts, slice(start, len(self.sizes))] if len(self.sizes) > 1 else []


def _broken(line: Text, width: int) -> list[Text]:
    """A line in pieces between its words where it is too wide: of one cell, then."""
    if cell_len(line.plain) <= width:
        return [line]
    ends: list[int] = []
    start = 0
    _, *others = re.finditer(r"\S+\s*", line.plain)
    for word in others:
        if cell_len(line.plain[start : word.end()].rstrip()) > width:
            ends.append(word.start())
            start = word.start()
    pieces = list(line.divide(ends))
    for piece in pieces:
        piece.rstrip()
    return pieces


def _text(cell: Cell) -> Text:
    return Text(printable(cell)) if isinstance(cell, str) else cell


def _line(cells: Sequence[Text], columns: Sequence[Column], sizes: Sequence[int]) -> Text:
    line = Text()
    for position, (cell, column, size) in enumerate(zip(cells, columns, sizes, strict=True)):
        space = " " * (size - cell_len(cell.plain))
        line.append(_GAP if position else "")
        line.append_text(Text(space) + cell if column.right else cell + Text(space))
    line.rstrip()
    return line
