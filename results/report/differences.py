"""The differences between protocols that were asked about: a table and a waterfall each, and what they rest on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from results.comparison.explain import Explanation, explanations
from results.comparison.explained import Question
from results.errors import InputError
from results.pictures.waterfall import draw_waterfall
from results.report.charts import Chart, chart
from results.report.part import Part
from results.report.tables import TableMaker
from results.store import StoredRecord
from results.tables.roster import matching

LINE = "What was measured between two protocols stands here alone, and not in the other tables."


@dataclass(frozen=True)
class Answers:
    """What the records say to the questions.

    Attributes:
        explained: in the order of the questions.
        unanswered: a sentence for each question that these records do not answer.
    """

    explained: tuple[Explanation, ...]
    unanswered: tuple[str, ...]

    def others(self, records: Sequence[StoredRecord]) -> list[StoredRecord]:
        """The records but those that were measured for the way between two protocols alone."""
        ends = {stored.path for one in self.explained for stored in (one.records[0], one.records[-1])}
        between = {stored.path for one in self.explained for stored in one.records} - ends
        return [stored for stored in records if stored.path not in between]


def answers(records: Sequence[StoredRecord], asked: Sequence[Question]) -> Answers:
    """Takes the differences apart that were asked about."""
    explained: list[Explanation] = []
    unanswered: list[str] = []
    for question in asked:
        try:
            own = matching(records, encoder=question.encoder)
            explained += explanations(own, question.a, question.b, question.column)
        except InputError as error:
            unanswered.append(f"{question.a} against {question.b}: {error}")
    return Answers(tuple(explained), tuple(unanswered))


def differences_part(explained: Sequence[Explanation], maker: TableMaker) -> Part:
    """A table and a waterfall for each."""
    part = Part("differences", "Why two protocols differ", (LINE,))
    part.tables = [maker.explanation(one) for one in explained]
    drawn = [_waterfall(f"difference-{i}", one) for i, one in enumerate(explained)]
    part.charts = [one for one in drawn if one is not None]
    return part


def _waterfall(identifier: str, one: Explanation) -> Chart | None:
    steps = ", ".join(f"{switch.field} {switch.share:+.{one.decimals}f}" for switch in one.switches)
    says = (
        f"{one.encoder}, {one.column} on {one.dataset}: from {one.score_a:.{one.decimals}f} by {steps} to "
        f"{one.score_b:.{one.decimals}f}. Falling bars are hatched."
    )

    def draw(out: Path) -> None:
        draw_waterfall([one], out)

    return chart(identifier, f"From {one.a} to {one.b}", says, draw)
