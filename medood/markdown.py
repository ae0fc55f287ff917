"""Tables as Markdown."""


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
