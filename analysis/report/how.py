"""How to read a report: what its terms mean, one text for the page, the page on two runs, and Markdown."""

from typing import NamedTuple

from tokred.analysis.bootstrap import NUM_DRAWS
from tokred.analysis.front import SURE


class Term(NamedTuple):
    name: str
    meaning: str


CELL = Term(
    "Cell",
    "One method at one schedule on one backbone. A schedule says how many tokens go, and where: budget 0.8 is one that spends "
    "80 % of the unreduced model's MACs (multiply-adds, the method's own included). A cell of a random method has several seeds.",
)
INTERVAL = Term(
    "Interval",
    "In brackets stand the two ends of a 95 % interval: if the run were repeated with new samples from the same source, about "
    "95 of 100 such intervals would hold the true value. More samples make it narrower.",
)
PAIRED = Term(
    "Paired difference",
    "All methods see the same samples, so two of them are compared on each sample: only those that one has right and the other "
    "wrong count. That finds smaller differences than two separate intervals do; whether those overlap says little.",
)
OF_RUNS = Term(
    "Paired and unpaired",
    "Where both runs saw the same samples, a cell is compared with itself on each of them: only those count that one run has "
    "right and the other wrong. Where samples cannot be matched, as of other data or another number of clips, they are taken "
    "as independent; a difference must then be larger to be detected.",
)
EQUAL_COMPUTE = Term(
    "Equal compute",
    "Methods are compared at the same MACs. Their difference is the mean over all budgets that both reach, evenly spread over "
    "the logarithm of the MACs (delta-AUC). Between two budgets that were run each sample is interpolated; beyond them nothing "
    "is said.",
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
    "It does not say that two are equal. A true difference as large as the smallest detectable beside it would have been found, "
    "after the correction, in at least 4 of 5 repetitions. A smaller one is found less often; more samples find smaller ones. "
    "It can lie outside the interval where hardly any sample is right in one and wrong in the other: a larger difference would "
    "take more such samples.",
)
FRONT = Term(
    "Front",
    "A cell is on the Pareto front if no other is as accurate at less cost, or more accurate at no more cost. The step line is "
    f"the front in these samples. A marker is filled where its cell is on the front in at least {100 * SURE:.0f} % of "
    f"{NUM_DRAWS:,} draws of the samples (bootstrap), and hollow where that is not sure: it may be there, or not, by chance.",
)
SPEEDUP = Term(
    "Speed-up",
    "The time of the unreduced model over that of the reduced one, measured in turn in the same rounds; above 1 the reduced "
    "model is faster. The resolution is how far the unreduced model seems to differ from itself: a speed-up that differs from 1 "
    "by no more is below resolution, and marked ~.",
)
OF_ONE_RUN = (CELL, INTERVAL, PAIRED, EQUAL_COMPUTE, HOLM, NONE_DETECTED, FRONT, SPEEDUP)
OF_TWO_RUNS = (CELL, INTERVAL, OF_RUNS, HOLM, NONE_DETECTED, SPEEDUP)
