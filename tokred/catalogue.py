"""The catalogue of methods, as Markdown, from what their classes say of themselves: ``tokred list --markdown``."""

import ast
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, Literal, get_args, get_origin

from tokred.model import SITES, Method, Place
from tokred.reduction import method_options
from tokred.testing import option_variants

COMMAND = "tokred list --markdown > docs/methods.md"
# What each statistic of attention is called here, and what it costs, the dearest last.
STATISTICS = {
    "cls_row": ("the class token's attention", "fused + one row"),
    "received": ("attention received", "map in chunks"),
    "row_entropy": ("entropy of attention paid", "map in chunks"),
    "head_mean": ("attention map, mean of heads", "whole map"),
    "map": ("attention maps of all heads", "whole maps"),
}
TUNING = {
    "none": "none",
    "optional": "optional: published with and without",
    "finetuned": "published with finetuning; runs without",
}
# What a method takes from its arguments, by the attribute it reads.
READS = {
    "q_BHND": "queries",
    "k_BHND": "keys",
    "v_BHND": "values",
    "x_BNC": "features",
    "before_mlp_BNC": "features before the MLP",
    "pixels": "pixels",
    "place_BN": "places in the grid",
    "places": "places in the grid",
    "grid": "size of the grid",
}
_OF_A_TENSOR = (
    "shape",
    "device",
    "dtype",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
)  # says nothing of its values
_INTRODUCTION = f"""\
# The methods

What the classes in [methods/](../methods) say of themselves, put together by `{COMMAND}`; a test holds that this page is
up to date.

- **site**: where in the encoder a method was published to work; the option `site` moves it to others.{{sites}}
- **reads**: what it decides by. **needs**: without it, it is refused.
- **training**: as published. Here all run without, unless they have parameters of their own.
- **left**: *fixed*, as many tokens in each sample as the schedule says; *varies*, by sample, at most as many.
- **attention**: what that takes in a layer that reduces. *Fused*: nothing but the fused kernel. *One row*: that of the class
  token, beside it. *Map in chunks*: written out, some queries at a time. *Whole map*: written out and held, N x N; *whole
  maps*: those of every head.
- **own MACs**: of matrix products that it adds, where a quarter of the 197 tokens of a ViT-B goes, as a share of one unreduced
  layer; and the power of N they grow with. Sorting and gathering cost time and no MACs: see [macs.md](macs.md).

Which of them work compiled, exported and in ONNX: [modes.md](modes.md)."""


def markdown(methods: Iterable[type[Method]]) -> str:
    """The page: a table of all, then a section for each, by name."""
    methods = sorted(methods, key=lambda cls: cls.name)
    sites = "".join(f"\n  - `{site}`: {about}" for site, about in SITES.items())
    head = ["method", "site", "reads", "needs", "training", "left", "attention", "own MACs"]
    rows = [[f"[{cls.name}](#{cls.name})", *overview(cls)] for cls in methods]
    parts = [_INTRODUCTION.format(sites=sites), table(head, rows), *(section(cls) for cls in methods)]
    return "\n\n".join(parts) + "\n"


def overview(cls: type[Method]) -> list[str]:
    """Its row in the table of all, behind its name."""
    default = _variants(cls)[0][1]
    left = "varies" if default.varies else "fixed"
    return [
        f"`{default.site}`",
        ", ".join(reads(cls, default)),
        needs(default),
        cls.tuning,
        left,
        cost_class(default),
        own_macs(default),
    ]


def section(cls: type[Method]) -> str:
    """All that is known of one method."""
    variants = _variants(cls)
    default = variants[0][1]
    facts = {
        "paper": text(cls.paper or "none"),
        "official code": text(cls.code or "none"),
        "training": TUNING.get(cls.tuning, text(cls.tuning)) + ("; has parameters" if default.trained else ""),
        "site": _site(cls, default),
        "reads": _with_options(variants, lambda method: ", ".join(reads(cls, method))),
        "needs": _with_options(variants, needs),
        "tokens left": _left(default),
        "attention": _with_options(variants, cost_class),
        "own MACs": _with_options(variants, own_macs),
        "proportional attention": _with_options(variants, lambda method: _yes(method.proportional_attention)),
        "mass": _with_options(variants, lambda method: "conserved" if method.conserves_mass else "not conserved"),
        "random": _with_options(variants, lambda method: _yes(method.random)),
    }
    listed = "\n".join(f"- {name}: {fact}" for name, fact in facts.items())
    return "\n\n".join([f"## {cls.name}", text(_title(cls)), listed, *options(cls), *paragraphs(cls.__doc__)])


def reads(cls: type[Method], method: Method) -> list[str]:
    """The statistics of attention it names, and what else its file takes from tokens and attention to decide by."""
    statistics = [STATISTICS[name][0] for name in method.statistics]
    return [*statistics, *_attributes_read(cls)] or ["nothing"]


def needs(method: Method) -> str:
    """What a backbone must have for it."""
    return " and ".join(["class token"] * method.needs_cls + ["frames"] * method.needs_frames) or "nothing"


def cost_class(method: Method) -> str:
    """What its statistics take of attention: the dearest of them."""
    return next((cost for name, (_, cost) in reversed(STATISTICS.items()) if name in method.statistics), "fused")


def own_macs(method: Method) -> str:
    """Its share of a ViT-B layer, and the power of N that its multiply-adds grow with."""
    num, channels = 197, 768
    macs = _macs(method, num)
    if macs == 0:
        return "0"
    share = 100 * macs / (12 * num * channels**2 + 2 * num**2 * channels)
    power = math.log2(_macs(method, 4096) / _macs(method, 2048))
    return f"{share:.2g} %, N" + ("" if round(power, 1) == 1 else f"^{power:.1f}".removesuffix(".0"))


def options(cls: type[Method]) -> list[str]:
    """A table of its options; none where it has none."""
    rows = [
        [f"`{name}`", _values(parameter.annotation), _default(parameter.default)]
        for name, parameter in method_options(cls).items()
    ]
    return [table(["option", "values", "default"], rows)] if rows else []


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a cell is one line, and no cell ends early."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def paragraphs(docstring: str | None) -> list[str]:
    """A docstring's paragraphs, each on one line, so that nothing in it begins a heading, a list or a table."""
    parts = re.split(r"\n\s*\n", inspect.cleandoc(docstring or ""))
    return [text(part) for part in parts if part.strip()]


def text(words: str) -> str:
    """Plain text as Markdown shows it: one line, ``code`` in it, no markup of its own."""
    words = " ".join(words.split()).replace("``", "`")
    pieces = words.split("`") if words.count("`") % 2 == 0 else [words.replace("`", "'")]
    shown = "".join(f"`{piece}`" if i % 2 else _escaped(piece) for i, piece in enumerate(pieces))
    return re.sub(r"^(?:(?=[-+#>=~])|(\d+)(?=[.)](?: |$)))", r"\1\\", shown)  # no list, heading, rule or quote


def _escaped(piece: str) -> str:
    return re.sub(r"([\\*_]|](?=[(\[:]))", r"\\\1", piece).replace("&", "&amp;").replace("<", "&lt;")


def _cell(words: str) -> str:
    return " ".join(words.split()).replace("|", "\\|")


def _title(cls: type[Method]) -> str:
    """The first line of its file."""
    return (getattr(sys.modules.get(cls.__module__), "__doc__", None) or cls.__name__).strip().split("\n")[0]


def _site(cls: type[Method], default: Method) -> str:
    option = method_options(cls).get("site")
    others = [f"`{site}`" for site in get_args(option.annotation) if site != default.site] if option else []
    return f"`{default.site}`, {SITES[default.site]}" + (f"; can be moved to {', '.join(others)}" if others else "")


def _left(method: Method) -> str:
    if not method.varies:
        return "as many in each sample as the schedule says"
    try:
        return f"vary by sample; a budget is solved for by `{method.knob(197)[0]}`"
    except ValueError:
        return "vary by sample; a budget cannot be solved for"


def _variants(cls: type[Method]) -> list[tuple[str, Method]]:
    """Its instances: with the default options, and with each other value of one of them, named so."""
    found = []
    for chosen in option_variants(cls):
        label = ", ".join(f"`{name}={value}`" for name, value in chosen.items())
        arguments = {name: chosen[name] for name in chosen if name in inspect.signature(cls.__init__).parameters}
        method = cls(**arguments)
        method.site = chosen.get("site", method.site)
        found.append((label, method))
    return found


def _with_options(variants: list[tuple[str, Method]], of: Callable[[Method], str]) -> str:
    """What it is by default, and with which options it is something else."""
    default = of(variants[0][1])
    labels: dict[str, list[str]] = {}
    for label, method in variants[1:]:
        labels.setdefault(of(method), []).append(label)
    others = [f"with {' or '.join(found)}: {fact}" for fact, found in labels.items() if fact != default]
    return "; ".join([default, *others])


def _macs(method: Method, num: int) -> int:
    return method.macs(num, num - num // 4, Place(1, 768, 12, depth=12, num_frames=8))


def _values(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    return getattr(annotation, "__name__", str(annotation))


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "must be given"
    return f"`{value:.6g}`" if isinstance(value, float) else f"`{value}`"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


@cache
def _attributes_read(cls: type[Method]) -> tuple[str, ...]:
    """What its file reads of tokens and attention, but for ``reduce``, which only applies, and ``macs``."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[cls.__module__]))
    except (KeyError, OSError, TypeError, SyntaxError):  # a class that was typed in has no source
        return ()
    found = {node.attr for part in tree.body for node in _values_read(part)}
    return tuple(dict.fromkeys(word for attribute, word in READS.items() if attribute in found))


def _values_read(node: ast.AST) -> Iterable[ast.Attribute]:
    """The attributes whose values are read, within ``node``."""
    if isinstance(node, ast.FunctionDef) and node.name in ("reduce", "macs", "fewest"):
        return
    if isinstance(node, ast.Attribute):
        yield node
        if node.attr in _OF_A_TENSOR and isinstance(node.value, ast.Attribute):
            node = node.value  # of this one only the shape is read
    for child in ast.iter_child_nodes(node):
        yield from _values_read(child)
