"""A run as one page that opens offline, as Markdown, and as tables for a paper.

``write_report`` makes those of a run folder, ``write_comparison`` the page on what changed between two.
"""

from tokred.analysis.report.comparison import write_comparison
from tokred.analysis.report.write import write_report

__all__ = ["write_comparison", "write_report"]
