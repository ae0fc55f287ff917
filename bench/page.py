"""Print the tables of docs/performance.md from the measurements: `python bench/page.py`.

The figures come from the JSON files in bench/results, which the benchmarks wrote with --json.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from medood.markdown import markdown

RESULTS = Path(__file__).parent / "results"


def duration(ms: float) -> str:
    """Return a time in a suitable unit."""
    return f"{ms / 1000:.1f} s" if ms >= 1000 else f"{ms:.3g} ms"


def times(ratio: float) -> str:
    """Return a ratio with its significant digits."""
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.1f}"


def tables(folder: Path = RESULTS) -> list[str]:
    """Return the comparisons with plain loops, and the steps of the attacks, as Markdown."""
    rows, attacks = {}, []
    for path in sorted(folder.glob("*.json")):
        figures = json.loads(path.read_text())
        network = " ".join(figures["about"].split(",")[0].split(" ")[-3:])
        for row in figures["rows"]:
            cells = duration(row["reference_ms"]), duration(row["ours_ms"])
            if figures["bench"] == "attack":
                ratio = f"{1 / row['ratio']:.2f} ({1 / row['high']:.2f} to {1 / row['low']:.2f})"
                attacks.append([row["what"], *cells, ratio])
                continue
            of = network if row["unit"] == "patch" else ""
            ratio = f"{times(row['ratio'])} ({times(row['low'])} to {times(row['high'])})"
            rows[row["what"], of] = [row["what"], of, *cells, row["unit"], ratio]
    header = ["", "network", "plain loop", "ours", "per", "ratio"]
    return [
        markdown(header, [rows[key] for key in sorted(rows)]),
        markdown(["", "pass, a patch", "step, a patch", "ratio"], attacks),
    ]


if __name__ == "__main__":
    print("\n".join(tables()))
