"""`python -m benchmarks report`: results files in, one page to read out; plots beside it, and a table in Markdown.

stored.py    reads the files; every plot asks it
targets.py   what targets are called, and their colours
plot.py      a plot: its figures as a table, and how it is drawn wide and narrow; as SVG and PNG
plots/       one file per plot: measurements in, a plot out, or the command that makes what it lacks
losses.py    what `accuracy` says, also for `recommend`
headline.py  the five figures that come first, as ratios to peers and floor
page.py      all of it as HTML (page.html.j2) and as Markdown
"""

from benchmarks.report.command import add_arguments, main

__all__ = ["add_arguments", "main"]
