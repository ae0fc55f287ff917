"""Export a trained network to ONNX, and check that its output stays the same.

Reads   <folder>/                a checkpoint of train.py or train_ood.py
Writes  <folder>/model.onnx      `images`, float32 RGB 0..255 (N, 3, P, P) -> `probabilities`,
                                 float32 (N, C, P, P): normalisation and softmax are inside

N is free, P is the network's patch size. The names of the C classes are in the file's metadata.

`python export.py workspace/models/79_unet_vgg11_bn_ood`
"""

import json
import logging
import warnings
from pathlib import Path

from tyro.conf import Positional

from config import Data, Network, UserError, settings
from medood.data.files import whole
from medood.processes import on_main
from medood.runs.command_line import run

TOLERANCE = 1e-3  # of a probability, between the two versions of the network


@settings
class ExportConfig(Network, Data):
    """The settings of export.py only."""

    folder: Positional[Path | None] = None
    """Folder of the trained network."""


def export(cfg: ExportConfig, folder: Path) -> Path:
    """Write the network in `folder` as ONNX into the same folder and return the file.

    Raises UserError, and leaves no file, if the outputs differ by more than TOLERANCE.
    """
    import torch

    try:
        import onnxruntime
        import onnxscript  # noqa: F401  what torch exports with
    except ImportError as error:
        raise UserError(
            f"export.py needs {error.name}: `pip install onnx onnxscript onnxruntime`"
        ) from None

    from medood.models.checkpoints import load_model, with_settings_of
    from medood.models.foreign import reason_of
    from medood.models.network import Normalise

    cfg = with_settings_of(cfg, folder)
    model = load_model(folder, cfg)
    network = torch.nn.Sequential(
        Normalise(model.config["encoder_name"]), model, torch.nn.Softmax(1)
    ).eval()
    # smooth blobs: a network predicts much the same for all patches of plain noise
    coarse = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = 255 * torch.nn.functional.interpolate(coarse, size=cfg.patch_size, mode="bilinear")
    path = folder / "model.onnx"
    logging.disable(logging.WARNING)  # of torch and onnxscript, about their internals
    try:
        with warnings.catch_warnings(), torch.inference_mode(), whole(path) as partial:
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (images[:2],),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["probabilities"],
                dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
            )
            program.model.metadata_props["classes"] = json.dumps(cfg.class_names)
            program.save(partial)
            session = onnxruntime.InferenceSession(partial, providers=["CPUExecutionProvider"])
            found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
            expected = network(images)
            furthest = (found - expected).abs().max().item()
            if furthest > TOLERANCE:
                raise ValueError(f"a probability differs by {furthest:.2g}")
    except OSError:
        raise
    except Exception as error:  # torch and onnxruntime raise many kinds for unsupported operations
        cure = "use other versions of torch, onnxscript or onnxruntime"
        raise UserError(f"{folder} cannot be exported ({reason_of(error)}): {cure}") from None
    finally:
        logging.disable(logging.NOTSET)
    same = (found.argmax(1) == expected.argmax(1)).float().mean().item()
    print(
        f"{path}: {path.stat().st_size / 1e6:.1f} MB; probabilities differ by at most"
        f" {furthest:.1g}, {same:.4%} of pixels get the same class"
    )
    return path


@on_main
def start(cfg: ExportConfig) -> None:
    """Export the network named on the command line."""
    if cfg.folder is None or cfg.folder.is_file():
        raise UserError("no network: name its folder, `python export.py FOLDER`")
    export(cfg, cfg.folder)


if __name__ == "__main__":
    run(start, ExportConfig(), lambda cfg: None)
