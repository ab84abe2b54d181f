"""Draws the images per second of all servers as bars, in an SVG file."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

from .machine import describe
from .report import Result


def draw(result: Result, path: Path) -> None:
    """Draw one panel for each closed loop.

    The line on each bar reaches from the slowest to the fastest round.
    """
    loads = [load for load in result.loads if load.rate is None]
    ours = {server.alternative for server in result.servers if server.ours}
    figure, panels = pyplot.subplots(
        len(loads),
        1,
        figsize=(8, 0.8 + len(loads) * 0.35 * (1 + len(result.servers))),
        squeeze=False,
    )
    for panel, load in zip(panels[:, 0], loads, strict=True):
        rows = list(reversed(result.under(load)))
        rates = [row.rate for row in rows]
        spread = [
            [row.rate - row.spread[0] for row in rows],
            [row.spread[1] - row.rate for row in rows],
        ]
        colors = ["tab:blue" if row.alternative in ours else "tab:gray" for row in rows]
        panel.barh(
            [row.alternative for row in rows], rates, xerr=spread, color=colors, ecolor="black"
        )
        panel.set_title(str(load), fontsize=9, loc="left")
        panel.tick_params(labelsize=8)
    panels[-1, 0].set_xlabel(
        f"images per second, ensemble '{result.ensemble}'\n{describe(result.machine)}", fontsize=8
    )
    figure.tight_layout()
    # The file has no date, so that equal measurements give equal files.
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
