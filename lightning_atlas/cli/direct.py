"""`test RECIPE --weights WEIGHTS`: score weights on a recipe's scans as they are, without training."""

import json
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from lightning_atlas.cli.recipes import CommandError
from lightning_atlas.cli.request import Request
from lightning_atlas.cli.run_folder import forget_run_folder
from lightning_atlas.cli.runner import AtlasCLI, import_parts, leave_processes
from lightning_atlas.cli.segmenting import ask_for_spacing, fill, usable
from lightning_atlas.contract import Contract
from lightning_atlas.data import Classes, ScanDataModule
from lightning_atlas.data.labels.classes import ClassMap, match_classes
from lightning_atlas.intake import read_weights
from lightning_atlas.intake.exported import public_spec
from lightning_atlas.intake.weights import SourceWeights
from lightning_atlas.intake.zoo import build_network
from lightning_atlas.modules import AtlasModule, SupervisedPretraining
from lightning_atlas.modules.agreement import check_agreement
from lightning_atlas.tasks import MultiLabelSegmentation, Segmentation, VoxelTask
from lightning_atlas.tasks.translated import TranslatedTask


def score(request: Request) -> None:
    """Score weights on the scans of a recipe.

    Args:
        request: A `test` or `validate` with weights.

    Raises:
        CommandError: The weights cannot be read, name no classes, or none that the recipe has.
    """
    name = str(request.weights)
    if request.run or request.checkpoint or not request.configs:
        raise CommandError(
            f"write `{request.verb} RECIPE --weights {name}`: the recipe says on which scans; a run brings weights of "
            "its own"
        )
    import_parts()
    try:
        source = read_weights(name)
        contract = usable(source, name)
    except (OSError, ValueError) as error:
        raise CommandError(str(error)) from error
    ask_for_spacing(request, source, contract)
    if not request.asks_only:
        print(f"weights: {source.origin} ({len(contract.classes)} classes, sha256 {source.sha256[:12]})", flush=True)
    try:
        DirectTest(request, source, contract)
    finally:
        forget_run_folder()
        leave_processes()


class DirectTest(AtlasCLI):
    """Scores weights that bring their own network and preprocessing on the scans and in the classes of a recipe.

    Args:
        request: The command, read.
        source: The weights.
        contract: Theirs.
    """

    def __init__(self, request: Request, source: SourceWeights, contract: Contract) -> None:
        self.source, self.contract = source, contract
        super().__init__(request)

    def given_options(self) -> list[str]:
        """Return the preprocessing that was handed on with the weights, in the place of the recipe's."""
        steps = self.source.card.get("preprocessing")
        return [*super().given_options(), *([f"--data.preprocess={json.dumps(steps)}"] if steps else [])]

    def instantiate_classes(self) -> None:
        """Build what the recipe names, and put the weights' network and task in the place of its own."""
        super().instantiate_classes()
        try:
            lines = self._take_over()
        except ValueError as error:
            raise CommandError(str(error)) from error
        if self.trainer.is_global_zero:
            print("\n".join(lines), flush=True)

    def _take_over(self) -> list[str]:
        data, recipe = self.datamodule, self.model
        if not isinstance(data, ScanDataModule) or not isinstance(recipe, AtlasModule):
            raise ValueError(f"--weights needs a recipe with a ScanDataModule, found {type(data).__name__}")
        if not isinstance(recipe.task, VoxelTask):
            raise ValueError(f"--weights segments, and the recipe's task is {type(recipe.task).__name__}")
        data.classes, untold = shared_classes(data, self.contract.classes)
        adopted = data.adopt(self.contract)
        allowed = check_agreement(self.contract, data.contract, recipe.allow, str(self.request.weights))
        task = TranslatedTask(self._task(recipe.task), self.contract.classes, _translation(data, self.contract.classes))
        module = SupervisedPretraining(build_network(public_spec(self.source.network or {})), task)
        fill(module.network, self.source, task.outputs(()))
        module.source = {"origin": self.source.origin, "sha256": self.source.sha256}
        self.model = module
        return [
            f"classes scored: {', '.join(data.class_map.names)}",
            *(f"not scored: {name}: {why}" for name, why in untold.items()),
            *(f"adopted: {line}" for line in adopted),
            *(f"allowed: {line}" for line in allowed),
        ]

    def _task(self, recipe: VoxelTask) -> VoxelTask:
        """Return the weights' task with the recipe's window."""
        told = self.source.card.get("task") or {}
        settings: dict[str, Any] = {key: told[key] for key in ("threshold",) if key in told}
        kind = MultiLabelSegmentation if self.contract.overlapping else Segmentation
        return kind(recipe.window, **settings)


def shared_classes(data: ScanDataModule, known: Sequence[str]) -> tuple[Classes, dict[str, str]]:
    """Return the recipe's classes that weights can tell, and why they cannot tell the others.

    Args:
        data: Of the recipe.
        known: Classes of the weights.

    Raises:
        ValueError: They can tell none.
    """
    datasets = {(case.names, case.vocabulary): None for case in data.cases if case.names}
    wanted = match_classes(datasets, data.classes)
    untold = {name: _in_words(why) for name, why in wanted.undecided(known, None).items()}
    told = {name: sorted(atoms) for name, atoms in wanted.atoms.items() if name not in untold}
    if not told:
        raise ValueError(
            f"the weights tell none of the recipe's classes ({', '.join(wanted.names)}); they know {', '.join(known)}"
        )
    return Classes(told, wanted.exclusive, list(wanted.assume_equal)), untold


def _in_words(why: str) -> str:
    return why.replace("nobody drew it", "the weights have no such class").replace("nobody drew", "the weights lack")


def _translation(data: ScanDataModule, names: Sequence[str]) -> Any:
    """Return what reads a prediction in the recipe's classes, as labels of a dataset with these names would be."""
    classes: ClassMap = data.class_map

    def translate(table: Bool[Tensor, "rows classes"]) -> Bool[Tensor, "rows others"]:
        states = table.cpu().numpy().astype(np.int8)
        found = classes.table(states, np.ones(states.shape, dtype=bool), names).states
        return torch.from_numpy(cast(np.ndarray, found == 1)).to(table.device)

    return translate
