"""Say in one sentence why a score differs from a published one: which settings explain how much, and what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from results.compare.explain import Explanation
from results.errors import InputError, did_you_mean
from results.noise import TWO_SIDED
from results.published import Figure, figures
from results.schema import Record

NAMED = 4  # settings that the sentence names; the table has all


@dataclass(frozen=True)
class Gap:
    """The difference between one's own score and a published figure, taken apart.

    Attributes:
        figure: the published one.
        published: its value.
        as_published: the encoder's score under the published protocol.
        mine: its score under the user's protocol, in the column that the user reports.
        column, mine_column: the published column, and the user's.
        settings: effect of each setting, as (words, points), largest first; they and `selection` add up to
            `mine - as_published`.
        selection: effect of reporting another column, where the user does.
        standard_error: of `as_published`, of the test sample.
        comparable: whether the score was measured on the data of the figure.
    """

    figure: Figure
    published: float
    as_published: float
    mine: float
    column: str
    mine_column: str
    settings: tuple[tuple[str, float], ...]
    selection: float
    standard_error: float | None
    comparable: bool
    dataset: str

    @property
    def explained(self) -> float:
        """What the settings and the choice of the column move the score by."""
        return self.mine - self.as_published

    @property
    def left(self) -> float:
        """What no setting explains: the encoder itself, its input, or the data."""
        return self.as_published - self.published

    @property
    def within_noise(self) -> bool | None:
        """Whether what is left could be the noise of the test sample alone; None if that is not known."""
        return None if self.standard_error is None else abs(self.left) <= TWO_SIDED * self.standard_error


def published_figure(model: str, protocol: str | None = None, source: str = "*", column: str | None = None) -> Figure:
    """The one published figure that a model, a protocol or benchmark, a source and a column choose.

    Without a column the first figure of the protocol counts, in the order of published.csv.

    Raises:
        InputError: there is none, or there are several protocols or sources; the message lists the choices.
    """
    known = sorted({figure.model for figure in figures()})
    own = [f for f in figures() if f.model == model or fnmatchcase(f.model, model)]
    if not own:
        raise InputError(f"published.csv has no model {model!r}{did_you_mean(model, known)}")
    own = [f for f in own if f.place is not None and f.number is not None and f.comparable(f.place.protocol)]
    own = [f for f in own if fnmatchcase(f.source, source)]
    if protocol is not None:
        wanted = (protocol, f"{protocol}@*")
        own = [f for f in own if f.place and any(
            fnmatchcase(name, text) for name in (f.place.protocol, f.place.benchmark) for text in wanted)]  # fmt: skip
    if column is not None:
        own = [f for f in own if f.place and f.place.column == column]
    if not own:
        raise InputError(f"published.csv has no figure of {model} that matches these flags and has a protocol")
    for name, values in (
        ("--published", [f.model for f in own]),
        ("--protocol", [f.place.protocol for f in own if f.place]),
    ):
        found = list(dict.fromkeys(values))
        if len(found) > 1:
            raise InputError(f"{model} has several published figures; choose one with {name}:\n" + "\n".join(found))
    same = [f for f in own if f.place and own[0].place and f.place.column == own[0].place.column]
    if len({f.text for f in same}) > 1:  # several sources may print one figure
        choices = "\n".join(f"{f.source}: {f.text}" for f in same)
        raise InputError(f"sources print different figures of {model}; choose one with --source:\n{choices}")
    return same[0]


def gap(figure: Figure, published: Record, mine: Record, mine_column: str, explained: Explanation | None) -> Gap:
    """Take the difference apart.

    Args:
        published, mine: the records under the published protocol and under the user's.
        explained: of the figure's column between the two protocols; None where they are the same.
    """
    assert figure.place is not None
    assert figure.number is not None
    column = figure.place.column
    values = [record.scores[name].value for record, name in ((published, column), (mine, column), (mine, mine_column))]
    first, second, last = (float(value) if value is not None else float("nan") for value in values)
    settings = [] if explained is None else [(f"{s.field} {s.a} → {s.b}", s.share) for s in explained.switches]
    return Gap(
        figure=figure,
        published=figure.number,
        as_published=first,
        mine=last,
        column=column,
        mine_column=mine_column,
        settings=tuple(sorted(settings, key=lambda one: -abs(one[1]))),
        selection=last - second,
        standard_error=published.scores[column].standard_error,
        comparable=published.dataset.official is not False and not published.dataset.embedded,
        dataset=published.dataset.shown_name,
    )


def sentence(one: Gap, decimals: int = 2) -> str:
    """What explains how much, and what is left."""
    form = f"+.{decimals}f"
    steps = list(one.settings)
    if one.mine_column != one.column:
        steps.append((f"reporting {one.mine_column} instead of {one.column}", one.selection))
    named = "; ".join(f"{words}: {share:{form}}" for words, share in steps[:NAMED])
    rest = steps[NAMED:]
    named += f"; {len(rest)} others: {sum(share for _, share in rest):{form}}" if rest else ""
    settings = f"your settings explain {one.explained:{form}} ({named})" if steps else "no setting differs"
    score = f"{one.mine:.{decimals}f}"
    if not one.comparable:
        return (
            f"The published {one.figure.text} cannot be compared with a score on {one.dataset}; there, "
            f"{settings}, from {one.as_published:.{decimals}f} under the published protocol to {score} under yours."
        )
    total = one.mine - one.published
    direction = "above" if total > 0 else "below"
    noise = {
        None: "; how much of that is noise is not known",
        True: ", which the noise of the test sample alone could give",
        False: ", more than the noise of the test sample",
    }[one.within_noise]
    return (
        f"Your {score} is {abs(total):.{decimals}f} {direction} the published {one.figure.text}: {settings}, and "
        f"{one.left:{form}} is left{noise}."
    )


def advice(one: Gap) -> Sequence[str]:
    """What to do about what is left."""
    if not one.comparable or one.within_noise:
        return ()
    return (
        "What is left is no setting of the protocol. `encoder-bench audit` checks channel order, normalisation and "
        "dead channels; another checkpoint, other training or other images of the data set are the remaining causes.",
    )
