"""How a method looks: one colour and one marker in all figures, told apart by the colour-blind and in grey."""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tokred.terminal import plain

# Okabe and Ito (2008) without black, which is the unreduced model's, and without yellow, which is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "p", "<", "X", ">", "h")
# A method's look follows from its place here: new names go to the end, so that no older figure changes.
WELL_KNOWN = (
    "tome",
    "vid_tldr",
    "random_drop",
    "evit",
    "top_k",
    "random_merge",
    "pitome",
    "tofu",
    "dpc_knn",
    "ats",
    "diffrate",
    "mctf",
    "ltmp",
    "k_medoids",
    "sinkhorn",
    "patch_merger",
    "token_learner",
    "dynamic_vit",
    "sit",
    "zero_tprune",
    "grid_pool",
    "norm_prune",
    "oracle_slice",
    "prumerge",
    "rep_shift",
    "rlt",
    "spatial_merge",
    "sta",
    "temporal_merge",
    "visionzip",
)
_NUM_LOOKS = len(COLOURS) * len(MARKERS)  # 6 and 11 have no common divisor: counting both up meets every pair


@dataclass(frozen=True)
class Look:
    colour: str
    marker: str


UNREDUCED = Look("black", "x")


def looks(methods: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Look]:
    """The look of each (method, options); no two share one, as long as there are at most 66.

    A method with options has the method's colour and a marker of its own. A name that is not well known takes its look
    from its checksum, or the next that is free.

    >>> looks([("tome", ""), ("none", "")])["tome", ""]
    Look(colour='#0072B2', marker='o')
    """
    given: dict[tuple[str, str], Look] = {}
    for name in sorted(set(methods), key=lambda name: (name[0] not in WELL_KNOWN, name[1] != "", name)):
        free = (look for look in _preferred(*name) if look not in given.values())
        given[name] = UNREDUCED if name[0] == "none" else next(free, next(_preferred(*name)))
    return given


def named(label: str) -> tuple[str, str]:
    """Method and options of a label, the key of ``looks``.

    >>> named("tome matching=kth fuse=true")
    ('tome', 'matching=kth fuse=true')
    """
    method, _, options = label.partition(" ")
    return method, options


def printable(label: str, *, width: int = 36) -> str:
    """``label`` for matplotlib: its middle cut out where it is long, no mathematics in it, never hidden from a legend.

    >>> printable("_costs_$5")
    ' _costs_\\\\$5'
    """
    text = plain(label)
    if len(text) > width:
        text = f"{text[: width - width // 3 - 1]}…{text[-(width // 3) :]}"
    text = text.replace("$", r"\$")  # two of them would begin a formula
    return f" {text}" if text.startswith("_") else text  # a legend leaves out what begins with _


def ink(face: tuple[float, float, float, float]) -> str:
    """Black or white, whichever stands out: by the luminance of ITU-R BT.709."""
    return "black" if 0.2126 * face[0] + 0.7152 * face[1] + 0.0722 * face[2] > 0.45 else "white"


def _preferred(method: str, options: str) -> Iterator[Look]:
    """All looks, the method's own first, then those of its colour."""
    place = WELL_KNOWN.index(method) if method in WELL_KNOWN else _checksum(method) % _NUM_LOOKS
    # options take one of the last five markers, which the first six methods have not
    marker = 6 + _checksum(options) % 5 if options else place
    for step in range(_NUM_LOOKS):
        colour = COLOURS[(place + step // len(MARKERS)) % len(COLOURS)]
        yield Look(colour, MARKERS[(marker + step) % len(MARKERS)])


def _checksum(text: str) -> int:
    return zlib.crc32(text.encode())
