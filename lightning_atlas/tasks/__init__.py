"""What is predicted: each task has its head's size, loss, metrics and decoding."""

from lightning_atlas.tasks.base import Task
from lightning_atlas.tasks.segmentation import Segmentation

__all__ = ["Segmentation", "Task"]
