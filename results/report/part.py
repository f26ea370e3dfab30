"""What stands under one heading of the report."""

from __future__ import annotations

from dataclasses import dataclass, field

from results.report.charts import Chart
from results.report.sheets import Sheet
from results.report.tables import ReportTable


@dataclass
class Part:
    """Lines, then tables, charts and sheets; `folded` tables open on a click."""

    id: str
    title: str
    lines: tuple[str, ...] = ()
    charts: list[Chart] = field(default_factory=list)
    tables: list[ReportTable] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)
    folded: bool = False

    @property
    def empty(self) -> bool:
        return not (self.charts or self.tables or self.sheets)

    @property
    def blocks(self) -> list[tuple[str, str]]:
        """Id and title of everything in it, in the order of the page."""
        tables = [(made.id, made.table.title) for made in self.tables]
        charts, pictures = ([(one.id, one.title) for one in some] for some in (self.charts, self.sheets))
        return tables + charts + pictures
