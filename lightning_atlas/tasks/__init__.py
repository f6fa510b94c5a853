"""What is predicted: each task has its head's size, loss, metrics and decoding."""

from lightning_atlas.tasks.base import Task
from lightning_atlas.tasks.classification import Classification, MultiLabelClassification
from lightning_atlas.tasks.detection import Detection
from lightning_atlas.tasks.multi_label import MultiLabelSegmentation
from lightning_atlas.tasks.regression import Regression
from lightning_atlas.tasks.scans import ScanTask
from lightning_atlas.tasks.segmentation import Segmentation
from lightning_atlas.tasks.voxels import VoxelTask

__all__ = [
    "Classification",
    "Detection",
    "MultiLabelClassification",
    "MultiLabelSegmentation",
    "Regression",
    "ScanTask",
    "Segmentation",
    "Task",
    "VoxelTask",
]
