"""`predict --weights`: segment scans by weights alone, without a recipe and without a run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from lightning_atlas.cli.recipes import CommandError
from lightning_atlas.cli.request import Request
from lightning_atlas.cli.run_options import boxes_of, classes_of, scans_of
from lightning_atlas.cli.runner import AtlasCLI, import_parts
from lightning_atlas.contract import Contract
from lightning_atlas.data import BatchAugmentation
from lightning_atlas.data.augmentation.spatial import Mirroring, Spatial
from lightning_atlas.intake import load_weights, read_weights
from lightning_atlas.intake.exported import check_network, check_transforms, public_spec
from lightning_atlas.intake.weights import SourceWeights
from lightning_atlas.networks import Network

VOXEL_TASKS = {False: "Segmentation", True: "MultiLabelSegmentation"}
SCAN_TASKS = {
    "class": "Classification",
    "labels": "MultiLabelClassification",
    "values": "Regression",
    "boxes": "Detection",
}
DECODING = ("threshold", "overlap", "most")
"""Arguments of tasks that weights bring besides the window."""
TRAINER = {"accelerator": "auto", "devices": 1}


def segment(request: Request) -> None:
    """Segment the scans of a folder.

    Args:
        request: A `predict` with weights.

    Raises:
        CommandError: The weights cannot be read, name no classes, or need code that is not ours.
    """
    import_parts()
    name = str(request.weights)
    try:
        source = read_weights(name)
        contract = usable(source, name)
    except (OSError, ValueError) as error:
        raise CommandError(str(error)) from error
    ask_for_spacing(request, source, contract)
    if not request.asks_only:
        print(f"weights: {source.origin} ({len(contract.classes)} classes, sha256 {source.sha256[:12]})", flush=True)
    Segmenter(request, source, contract)


def usable(source: SourceWeights, name: str) -> Contract:
    """Return the contract of weights that can predict by themselves.

    Raises:
        ValueError: They cannot; says what to do instead.
    """
    train = f"train a network from them: fit RECIPE --model.weights {name}"
    if source.network is None:
        raise ValueError(f"{name} does not say of which network it is, so it cannot predict by itself; {train}")
    if source.contract is None or not source.contract.classes or source.card.get("head") == "none":
        raise ValueError(f"{name} has no classes: what was published has no head that could name a voxel; {train}")
    if source.contract.modality == "photograph":
        raise ValueError(
            f"{name} was trained on photographs, which weights alone do not read: predict with the run that made it "
            f"(predict RUN --input DIR --output DIR), or {train} --model.contract adopt"
        )
    if "task" in source.card and source.card["task"] is None:
        raise ValueError(
            f"{name} was trained on a task that is code of its maker's own, which is not handed on; {train}"
        )
    check_network(public_spec(source.network))
    check_transforms(source.card.get("preprocessing"))
    return source.contract


def ask_for_spacing(request: Request, source: SourceWeights, contract: Contract) -> None:
    """Refuse to guess the voxel size of weights that were published without one.

    Raises:
        CommandError: Nobody says it; says what to type.
    """
    stated = contract.spacing_mm is not None or source.card.get("preprocessing") is not None
    if stated or request.asks_only or any("preprocess" in each for each in request.options):
        return
    raise CommandError(
        f"{request.weights}: the voxel size that these weights were trained on is not known; say one, in mm: "
        "--data.preprocess '[{class_path: torchio.Resample, init_args: {target: [1, 1, 1]}}]', or [] for the files' own"
    )


class Segmenter(AtlasCLI):
    """Predicts with weights that bring their own network, task and preprocessing.

    Args:
        request: The command, read.
        source: The weights.
        contract: Theirs.
    """

    def __init__(self, request: Request, source: SourceWeights, contract: Contract) -> None:
        self.source, self.contract = source, contract
        super().__init__(request)

    def given_options(self) -> list[str]:
        """Return the recipe that follows from the weights, as options."""
        recipe = {"model": self._model(), "data": self._data(), **{f"trainer.{k}": v for k, v in TRAINER.items()}}
        return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in recipe.items()]

    def _model(self) -> dict[str, Any]:
        card = self.source.card
        task: Mapping[str, Any] = card.get("task") or {}
        sizes = task.get("window", {key: card[key] for key in ("patch",) if key in card})
        window = {"class_path": "lightning_atlas.inference.SlidingWindow", "init_args": dict(sizes or {})}
        window = None if sizes is None else window
        name = SCAN_TASKS.get(self.contract.predicts) or VOXEL_TASKS[self.contract.overlapping]
        arguments = {"window": window, **{key: task[key] for key in DECODING if key in task}}
        init_args = {
            "network": public_spec(self.source.network or {}),
            "task": {"class_path": f"lightning_atlas.tasks.{name}", "init_args": arguments},
        }
        return {"class_path": "lightning_atlas.modules.SupervisedPretraining", "init_args": init_args}

    def _data(self) -> dict[str, Any]:
        values = self.contract.to_dict()
        init_args: dict[str, Any] = {
            "source": scans_of(self.request.input or Path(), values["modality"]),  # none is needed for --help
            "preprocess": self.source.card.get("preprocessing"),
        }
        if values["predicts"] == "voxels":
            init_args["classes"] = classes_of(values)
        elif values["predicts"] == "boxes":
            init_args["boxes"] = boxes_of(values)
        else:
            told = {"kind": values["predicts"], "names": values["classes"]}
            init_args["targets"] = {"class_path": "lightning_atlas.data.Targets", "init_args": told}
        return {"class_path": "lightning_atlas.data.ScanDataModule", "init_args": init_args}

    def instantiate_classes(self) -> None:
        """Build what the weights ask for, and fill the network with them, whole."""
        super().instantiate_classes()
        if getattr(self.model.task.window, "mirror", False):  # asks the data along which axes training mirrored
            mirroring = Mirroring(axes=cast(Any, self.contract.mirrored_axes))
            self.datamodule.augment = BatchAugmentation(Spatial(mirroring=mirroring), swap_sides=True)
        try:
            self.datamodule.adopt(self.contract)
            self.model.contract = self.contract
            fill(self.model.network, self.source, self.model.task.outputs(self.contract.classes))
        except ValueError as error:
            raise CommandError(str(error)) from error


def fill(network: Network, source: SourceWeights, outputs: int) -> None:
    """Load weights into a network that has nothing but them.

    Raises:
        ValueError: A tensor of the network is not among them.
    """
    classes = source.contract.classes if source.contract else ()
    network.resize(outputs)
    report = load_weights(network, source, classes, required_share=1.0)
    if report.fresh_names:
        some = ", ".join(sorted(report.fresh_names)[:3])
        raise ValueError(f"{source.origin} lacks {some}, which its network needs: it cannot predict by itself")
