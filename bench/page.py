"""Write docs/performance.md from what the benchmarks measured: `python bench/page.py`.

Every figure comes from a JSON in bench/results, which a benchmark wrote with --json; the text
around them is in bench/performance.md.
"""

import json
import sys
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

sys.path.insert(0, str(Path(__file__).parents[1]))

from medood.data.files import write_text
from medood.evaluation.tables import AT_ARGMAX, markdown, spread

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "performance.md"
ORDER = ("train", "mine", "infer", "prepare")  # of the benchmarks that compare with plain loops
LIZARD_STEPS = 36 * 3 * (12_249 + 18_059)  # patches that the paper's main experiment trains on


def network(figures: dict) -> str:
    """Return the network that a benchmark ran, such as `unet on vgg11_bn`."""
    words = figures["about"].split(",")[0].split(" ")
    return " ".join(words[-3:])


def duration(ms: float) -> str:
    """Return a time in the unit that suits it."""
    return f"{ms / 1000:.1f} s" if ms >= 1000 else f"{ms:.3g} ms"


def times(ratio: float) -> str:
    """Return a ratio with its significant digits."""
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.1f}"


def comparisons(results: dict[str, dict]) -> str:
    """Return the table of ours against the plain loops."""
    rows = {}
    for bench in ORDER:
        for figures in (each for each in results.values() if each["bench"] == bench):
            for row in figures["rows"]:
                of = network(figures) if row["unit"] == "patch" else ""
                rows[row["what"], of] = [
                    row["what"],
                    of,
                    duration(row["reference_ms"]),
                    duration(row["ours_ms"]),
                    row["unit"],
                    f"{times(row['ratio'])} ({times(row['low'])} to {times(row['high'])})",
                ]
    return markdown(["", "network", "plain loop", "ours", "per", "ratio"], list(rows.values()))


def shares(results: dict[str, dict], of: str) -> str:
    """Return a table of shares, a column for each benchmark that has them."""
    found = {network(each): each["shares"][of] for each in results.values() if of in each["shares"]}
    first = next(iter(found.values()))
    rows = [
        [part, *(f"{100 * each.get(part, 0):.1f}" for each in found.values())] for part in first
    ]
    return markdown(["%", *found], rows)


def variants(results: dict[str, dict], of: str) -> str:
    """Return a table of what was tried, a column for each network."""
    found = {network(each): each["variants"] for each in results.values() if "variants" in each}
    tables = {
        name: next(rows for what, rows in each.items() if of in what)
        for name, each in found.items()
    }
    rows = []
    for i, row in enumerate(next(iter(tables.values()))):
        cells = [table[i] for table in tables.values()]
        texts = (
            f"{each['ms']:.1f} ms"
            if not i
            else f"{each['ratio']:.2f} ({each['low']:.2f} to {each['high']:.2f})"
            for each in cells
        )
        rows.append([row["variant"], *texts])
    return markdown(["", *tables], rows)


def seeds(results: dict[str, dict]) -> str:
    """Return the table of scores over seeds."""
    scores = results["seeds"]["scores"]
    rows = [
        [kind, *(spread([run[score] for run in runs]) for score in AT_ARGMAX)]
        for kind, runs in scores.items()
    ]
    return markdown(["", *(f"`{score}`" for score in AT_ARGMAX)], rows)


def growth(results: dict[str, dict]) -> str:
    """Return the table of time and memory as the data grow."""
    rows = [
        [
            f"{row['factor']}x",
            row["step"],
            f"{row['patches']:,}",
            f"{row['seconds']:,.1f}",
            f"{1000 * row['seconds'] / row['patches']:.2f}",
            f"{row['anonymous_mb']:,}",
        ]
        for row in results["scale"]["rows"]
    ]
    return markdown(["", "step", "patches", "s", "ms a patch", "MB of memory"], rows)


def attacks(results: dict[str, dict]) -> str:
    """Return the table of a step of each attack, as a multiple of a pass of the network."""
    rows = [
        [
            row["what"],
            duration(row["reference_ms"]),
            duration(row["ours_ms"]),
            f"{1 / row['ratio']:.2f} ({1 / row['high']:.2f} to {1 / row['low']:.2f})",
        ]
        for row in results["attack_mobilenet_v2"]["rows"]
    ]
    return markdown(["", "pass, a patch", "step, a patch", "ratio"], rows)


def roofline(results: dict[str, dict]) -> str:
    """Return the table of the least time of a step on a GPU, which is worked out."""
    paper = results["roofline"]
    rows = [
        [
            encoder,
            name,
            f"{counts['flop'] / 1e9:.0f}",
            f"{counts['bytes'] / 1e9:.2f}",
            f"{counts['fused_bytes'] / 1e9:.2f}",
            f"{floor['arithmetic']:.2f}",
            f"{floor['memory']:.2f}",
            f"{floor['fused_memory']:.2f}",
            f"{1000 * paper['launch_s'] * counts['operations']:.1f} ({counts['operations']})",
            f"{1000 * paper['launch_s'] * counts['recorded']:.3f} ({counts['recorded']})",
        ]
        for encoder, counts in paper["networks"].items()
        for name, floor in counts["floors_ms"].items()
    ]
    counted = ["unet on", "worked out for", "GFLOP", "GB", "GB, fused"]
    floors = ["arithmetic, ms", "memory, ms", "memory, fused, ms", "launches, ms", "recorded, ms"]
    return markdown([*counted, *floors], rows)


def parts_of_gpu(figures: dict) -> str:
    """Return a list of all parts of bench/gpu.py, also of those that failed."""
    return "\n".join(
        f"- {name}, {part['state']}, {part['seconds']:.0f} s: {part['words']}"
        for name, part in figures["parts"].items()
    )


def steps_of_gpu(figures: dict) -> str:
    """Return the table of the steps that were timed on a GPU, or "" if none was."""
    columns = {  # of what only our own steps have, with the digits to show
        "kernels run, ms": ("busy_ms", 2),
        "kernels": ("kernels", 0),
        "launches": ("calls", 0),
        "waits": ("waits", 0),
        "MB": ("peak_mb", 0),
        "first step, s": ("first_s", 1),
        "fourth, s": ("recording_s", 3),
    }
    rows = []
    for name, part in figures["parts"].items():
        for version, row in part.get("times", {}).items():
            ours = part["ours"].get(version, {})
            counts = (f"{ours[of]:.{n}f}" if ours else "" for of, n in columns.values())
            times = f"{row['ms']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
            rows.append([name, version, times, f"{100 * row['reached']:.0f}", *counts])
    return markdown(["", "", "ms a step", "% of matrix rate", *columns], rows) if rows else ""


def page(folder: Path = RESULTS) -> str:
    """Return docs/performance.md, made from the JSON files in a folder."""
    results = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    words = Environment(
        loader=FileSystemLoader(HERE), undefined=StrictUndefined, keep_trailing_newline=True
    )
    words.globals |= {"markdown": markdown, "network": network}
    words.globals |= {"parts_of_gpu": parts_of_gpu, "steps_of_gpu": steps_of_gpu}
    commands = [figures["command"] for figures in results.values()]
    return words.get_template("performance.md").render(
        results=results,
        comparisons=comparisons(results),
        parts=shares(results, "parts of a step"),
        kinds=shares(results, "kinds of operation"),
        region=results["prepare"]["shares"]["parts of a region"],
        training_variants=variants(results, "training step"),
        inference_variants=variants(results, "predicted"),
        seeds=seeds(results),
        growth=growth(results),
        attacks=attacks(results),
        gpus=[figures for figures in results.values() if figures["bench"] == "gpu"],
        roofline=roofline(results),
        commands="\n".join(commands),
        lizard_steps=LIZARD_STEPS,
    )


if __name__ == "__main__":
    write_text(PAGE, page())
