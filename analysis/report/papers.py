"""Tables as Markdown and as LaTeX (booktabs), every text as text: a name cannot become a command, a link or a column."""

import re

from tokred.analysis.report.tables import Table
from tokred.terminal import plain

_LATEX = {
    **{char: rf"\{char}" for char in "{}$&#_%"},
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "[": "{[}",  # after the end of a line it would begin an option
    "]": "{]}",
    "*": "{*}",  # and so would a star
}
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def markdown(table: Table) -> str:
    """A table of GitHub's Markdown, its caption above."""
    titles = [markdown_text(heading.text) for heading in table.headings]
    ruler = [":--" if heading.words else "--:" for heading in table.headings]
    lines = [[markdown_text(cell.text) for cell in line] for line in table.lines]
    body = "\n".join(f"| {' | '.join(texts)} |" for texts in (titles, ruler, *lines))
    return f"{markdown_text(table.caption)}\n\n{body}\n"


def latex(table: Table) -> str:
    r"""A ``tabular``, to be put between ``\begin{table}`` and ``\end{table}``; needs ``\usepackage{booktabs}``."""
    places = "".join("l" if heading.words else "r" for heading in table.headings)
    titles = _line([heading.text for heading in table.headings])
    lines = [_line([cell.text for cell in line]) for line in table.lines]
    return "\n".join(
        [
            rf"% {latex_text(table.caption)}",
            rf"\begin{{tabular}}{{{places}}}",
            *(r"\toprule", titles, r"\midrule", *lines, r"\bottomrule"),
            "\\end{tabular}\n",
        ]
    )


def markdown_text(text: str) -> str:
    r"""
    >>> markdown_text("a|b_c <i> _x_ $5$")
    'a\\|b_c &lt;i&gt; \\_x\\_ \\$5\\$'
    """
    text = re.sub(r"[&<>]", lambda found: _HTML[found[0]], plain(text))
    text = re.sub(r"[\\`*|$~\[\]!#@]|(?<![^\W_])_|_(?![^\W_])", lambda found: f"\\{found[0]}", text)
    return re.sub(r"(?i)\b(https?|ftp)://", r"\1:\\//", re.sub(r"(?i)\bwww\.", r"www\\.", text))


def latex_text(text: str) -> str:
    r"""
    >>> latex_text("50 % of $\\foo$")
    '50 \\% of \\$\\textbackslash{}foo\\$'
    """
    return "".join(_LATEX.get(char, char) for char in plain(text))


def _line(texts: list[str]) -> str:
    return " & ".join(map(latex_text, texts)) + r" \\"
