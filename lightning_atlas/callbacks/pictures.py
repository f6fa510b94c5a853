"""Pictures of a run: a file in its folder, and the same in TensorBoard."""

from pathlib import Path

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def publish(trainer: Trainer, figure: Figure, path: Path) -> None:
    """Write a picture as a file and into TensorBoard, under the file's name and without pyplot and its state."""
    pixels = write_picture(figure, path)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(path.stem, pixels, trainer.global_step, dataformats="HWC")


def write_picture(figure: Figure, path: Path) -> np.ndarray:
    """Write a PNG and return its pixels: rows, columns, and red, green and blue."""
    canvas = FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.print_png(path)
    return np.asarray(canvas.buffer_rgba())[..., :3]
