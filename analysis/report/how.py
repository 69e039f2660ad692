"""How to read a report: what its terms mean, one text for the page, the page on two runs, and Markdown."""

from typing import NamedTuple

from tokred.analysis.bootstrap import NUM_DRAWS
from tokred.analysis.front import SURE


class Term(NamedTuple):
    name: str
    meaning: str


INTERVAL = Term(
    "Interval",
    "In brackets stand the two ends of a 95 % interval: if the run were repeated with new samples from the same source, 95 of "
    "100 such intervals would hold the true value. Many samples make it narrow.",
)
PAIRED = Term(
    "Paired difference",
    "All methods see the same samples, so two of them are compared on each sample: only those that one has right and the other "
    "wrong count. That is much surer than to look at whether two intervals overlap, which says little.",
)
OF_RUNS = Term(
    "Paired and unpaired",
    "Where both runs saw the same samples, a cell is compared with itself on each of them: only those count that one run has "
    "right and the other wrong. Where samples cannot be matched, as of other data or another number of clips, they are taken "
    "as independent; such a difference needs to be much larger to be detected.",
)
EQUAL_COMPUTE = Term(
    "Equal compute",
    "Methods are compared at the same MACs (multiply-adds, the method's own included). The difference is the mean over the "
    "budgets that both reach (delta-AUC, in ln MACs); between two budgets that were run it is interpolated, and beyond them "
    "nothing is said.",
)
HOLM = Term(
    "Holm's correction",
    "Of many comparisons in which nothing differs, some look as if it did, by chance. The p of each is raised for the number of "
    "comparisons, so that a report in which nothing differs makes a false claim in at most 5 of 100 cases. A claim needs p of "
    "0.05 or less after that, and an interval that leaves out 0. Intervals are each alone: one can leave out 0 where p, so "
    "raised, is above 0.05.",
)
NONE_DETECTED = Term(
    "No detectable difference",
    "It does not say that two are equal. The smallest detectable difference beside it is what would have been found in at least "
    "4 of 5 repetitions; what is smaller may be missed. More samples find smaller ones.",
)
FRONT = Term(
    "Front",
    "A cell is on the Pareto front if no other has as much accuracy at as little cost. The line is the front of these samples; "
    f"a marker is filled where its cell is on the front in {100 * SURE:.0f} % of {NUM_DRAWS:,} draws of them, "
    "and hollow where that is not sure.",
)
SPEEDUP = Term(
    "Speed-up",
    "The time of the unreduced model over that of the reduced one, measured in turn in the same rounds. The resolution is how "
    "far the unreduced model seems to differ from itself: what differs from 1 by no more is marked ~.",
)
OF_ONE_RUN = (INTERVAL, PAIRED, EQUAL_COMPUTE, HOLM, NONE_DETECTED, FRONT, SPEEDUP)
OF_TWO_RUNS = (INTERVAL, OF_RUNS, HOLM, NONE_DETECTED, SPEEDUP)
