"""The model card that lies beside the weights, and goes along when they are published."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError

from config import UserError
from medood.data.files import write_text
from medood.data.labels import BACKGROUND_COLOUR
from medood.data.workspace import SAMPLE_NAME
from medood.evaluation.tables import SCORES, spread
from medood.models.network import normalisation

TEMPLATES = Path(__file__).parent / "templates"


def write_card(folder: Path, run: dict) -> None:
    """Write README.md into a checkpoint folder.

    run: the content of its run.json; UserError if it is not what train.py writes there.
    """
    try:
        text = _card(run)
    except (AttributeError, KeyError, TypeError, ValueError, UndefinedError) as error:
        raise UserError(
            f"{folder / 'run.json'} is not what train.py writes ({type(error).__name__}:"
            f" {error}): copy it again, or train again"
        ) from None
    write_text(folder / "README.md", text)


def _card(run: dict) -> str:
    settings = run["settings"]
    classes = [("background", BACKGROUND_COLOUR), *settings["classes"]]
    scores = []
    if tested := run.get("scores"):
        scores = [(f"`{name}`", spread([tested[name]])) for name in SCORES]
        scores += [
            (f"IoU {name}", spread([value]))
            for (name, _), value in zip(classes, tested["iou"], strict=True)
        ]
    mean, std = normalisation(settings["encoder"])
    template = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True
    ).get_template("card.md")
    return template.render(
        run={"scores": None, **run},
        sample=run["data"] == SAMPLE_NAME,
        names=[name for name, _ in classes],
        classes=classes,
        # a path says nothing to others
        encoder_weights=Path(settings["encoder_weights"]).name,
        mean=mean,
        std=std,
        scores=scores,
    )
