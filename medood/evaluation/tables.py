"""Tables as people read them."""

import numpy as np

# the order of every table; the scores are explained in medood/evaluation/scores.py
SCORES = ("miou", "dsc", "miou_paper", "dsc_paper", "fg_to_bg", "bg_to_fg", "fg_to_fg")
INTERVAL = "with the 95 % interval of a bootstrap over regions and, if several, trainings"


def spread(values: list[float | None], scale: float = 100, digits: int = 1) -> str:
    """Return `mean ± standard deviation` of a score over runs, `-` where no run defines it."""
    known = [value * scale for value in values if value is not None]
    if not known:
        return "-"
    mean = round(np.mean(known), digits) + 0.0  # no "-0.0"
    deviation = f" ± {np.std(known, ddof=1):.{digits}f}" if len(known) > 1 else ""
    return f"{mean:.{digits}f}{deviation}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table, its columns aligned to the right."""
    widths = [max(2, *(len(line[i]) for line in [header, *rows])) for i in range(len(header))]
    lines = [header, [("-" * width)[:-1] + ":" for width in widths], *rows]
    return "".join(
        "| "
        + " | ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True))
        + " |\n"
        for line in lines
    )
