"""The raw data of nnU-Net: `imagesTr/CASE_0000`, `labelsTr/CASE`, `imagesTs` and a `dataset.json`.

Source: https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md, for v2; v1 wrote values first.
"""

from pathlib import Path

from lightning_atlas.data.formats import stem
from lightning_atlas.data.sources.layouts.label_table import channel_names, modality_of, read_labels
from lightning_atlas.data.sources.layouts.listing import CHANNEL, by_channel, images, scans
from lightning_atlas.data.sources.layouts.result import Layout, LayoutResult
from lightning_atlas.data.sources.tables import expect, read_json

TABLE = "dataset.json"


def is_nnunet(path: Path) -> bool:
    """Tell whether images carry the numbers of their channels, and labels do not."""
    files = images(path / "imagesTr") if (path / TABLE).is_file() else []
    found = CHANNEL.fullmatch(stem(files[0])) if files else None
    return found is not None and found["subject"] in {stem(file) for file in images(path / "labelsTr")}


def read_nnunet(path: Path) -> LayoutResult:
    """List the training cases and, to be tested or predicted, those of `imagesTs`.

    Raises:
        ValueError: `dataset.json` has a fault, or a folder is missing.
    """
    document = expect(read_json(path / TABLE), dict, str(path / TABLE), '{"channel_names": {...}, "labels": {...}}')
    table, channels = read_labels(path / TABLE, document), channel_names(document)
    facts = {"values": table.values, "modality": modality_of(channels), "ignore_value": table.ignore_value}
    result = LayoutResult("nnunet", unions=table.unions)
    labels = scans(path / "labelsTr")
    result.add_pairs(by_channel(scans(path / "imagesTr"), labels, channels), labels, "train", **facts)
    labels = scans(path / "labelsTs") if images(path / "labelsTs") else {}
    testing = by_channel(scans(path / "imagesTs"), labels, channels) if images(path / "imagesTs") else {}
    if labels:
        result.add_pairs(testing, labels, "test", **facts)
    else:
        for subject, image in testing.items():
            result.add(subject, "predict", image, None, **facts)
    return result


NNUNET = Layout(
    "nnunet", "dataset.json, imagesTr/CASE_0000, labelsTr/CASE and perhaps imagesTs", is_nnunet, read_nnunet
)
