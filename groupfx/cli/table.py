"""Tables that fit: one row a line where the width allows it, two where not, nothing cut off."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

_GAP = "  "
_INDENT = "    "

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


def table_lines(
    columns: Sequence[Column], rows: Iterable[Sequence[Cell]], width: int | None
) -> list[Text]:
    """The header and the rows as aligned lines.

    Where they are wider than `width` (None: no limit), the first cell of each row stands on a line
    of its own and the rest below it. A column in which every cell is empty is left out.
    """
    cells = [[_text(cell) for cell in row] for row in rows]
    used = [i for i in range(len(columns)) if i == 0 or any(row[i].plain for row in cells)]
    columns = [columns[i] for i in used]
    cells = [[row[i] for i in used] for row in cells]
    header = [Text(column.title, style="bold") for column in columns]
    lines = [header, *cells]
    sizes = [max(cell_len(line[i].plain) for line in lines) for i in range(len(columns))]
    if width is None or sum(sizes) + len(_GAP) * (len(sizes) - 1) <= width:
        return [_line(line, columns, sizes) for line in lines]
    stacked = []
    for line in lines:
        stacked.append(line[0])
        stacked.append(Text(_INDENT) + _line(line[1:], columns[1:], sizes[1:]))
    return stacked


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
