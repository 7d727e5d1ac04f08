"""An ONNX file that was written, as text."""

from typing import TYPE_CHECKING

from ...plan.cost import SLOWER
from ...rewriting import Report
from .numbers import plural
from .screen import Screen
from .table import Column, Table

if TYPE_CHECKING:
    from ...deploy import Export, PreparedExport

_SITES_SHOWN = 12


def as_in_file(report: Report, prepared: "PreparedExport | None") -> Report:
    """A report whose sites are in the forms of the file, where that chose them.

    Of the form of a site one story is told, by who chooses it.
    """
    if prepared is None or prepared.options.forms == "planned":
        return report
    forms = {site.name: (site.form, site.convs) for site in prepared.sites}
    return report.without_notes_on(SLOWER).in_forms(forms)


def show_export(screen: Screen, export: "Export") -> None:
    """What is in the file, and where it is."""
    screen.line()
    for path in export.files:
        screen.wrote(path)
    screen.paragraph(f"opset {export.opset}, {plural(export.nodes, 'node')}", indent="  ")
    for word, infos in (("input", export.inputs), ("output", export.outputs)):
        for info in infos:
            sizes = ", ".join(map(str, info.shape))
            screen.paragraph(f"{word} {info.name}: {info.dtype} [{sizes}]", indent="  ")
    if export.summary is not None:
        screen.paragraph(export.summary, indent="  ")
    for note in export.notes:
        screen.paragraph(note, indent="  ")
    if not export.sites:
        return
    screen.line()
    shown = export.sites if screen.whole else export.sites[:_SITES_SHOWN]
    rows = [(site.name, site.form, str(site.convs)) for site in shown]
    screen.table(
        Table([Column("site"), Column("in the file"), Column("convolutions", right=True)], rows)
    )
    if len(shown) < len(export.sites):
        screen.paragraph(f"and {len(export.sites) - len(shown)} more (-v names them)")
