"""The model card next to the weights, to be published with them."""

import math
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError, select_autoescape

from config import UserError
from medood.data.files import write_json, write_text
from medood.data.labels import BACKGROUND_COLOUR
from medood.data.records import RUN
from medood.data.workspace import SAMPLE_NAME
from medood.evaluation.tables import OWN_SCORES, spread
from medood.evaluation.testing import Tested
from medood.models.network import normalisation

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=StrictUndefined,
    autoescape=select_autoescape(),  # of .html, not of .md
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.globals |= {"normalisation": normalisation, "OWN_SCORES": OWN_SCORES}
TEMPLATES.filters["spread"] = spread
TEMPLATES.tests["nan"] = math.isnan


def write_card(folder: Path, run: dict) -> None:
    """Write README.md into a checkpoint folder.

    run: the content of its run.json; UserError if train.py did not write it.
    """
    try:
        text = TEMPLATES.get_template("card.md").render(
            run=run,
            sample=run["data"] == SAMPLE_NAME,
            classes=[("background", BACKGROUND_COLOUR), *run["settings"]["classes"]],
            # others do not have the path
            encoder_weights=Path(run["settings"]["encoder_weights"]).name,
        )
    except (AttributeError, KeyError, TypeError, ValueError, UndefinedError) as error:
        raise UserError(
            f"{folder / 'run.json'} is not what train.py writes ({type(error).__name__}:"
            f" {error}): copy it again, or train again"
        ) from None
    write_text(folder / "README.md", text)


def record_scores(test: Tested) -> None:
    """Write the scores of networks next to their weights: into the model card and run.json.

    A run.json that train.py did not write stays as it is.
    """
    for name, folder in test.folders.items():
        if "data" in test.runs[name]:
            run = test.runs[name] | {"scores": test.scores[name]}
            write_card(folder, run)
            write_json(folder / RUN, run)
