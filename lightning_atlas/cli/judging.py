"""A run opened again, so that other weights of its network can be scored on its validation cases."""

import io
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI
from torch import Tensor

from lightning_atlas.adaptation.statistics import reestimate_statistics, statistic_layers
from lightning_atlas.cli.endings import plain_words
from lightning_atlas.cli.recipes import CommandError
from lightning_atlas.cli.request import Request
from lightning_atlas.cli.run_folder import made_in
from lightning_atlas.cli.runner import AtlasCLI
from lightning_atlas.modules import AtlasModule

STATISTICS_BATCHES = 100
"""Batches of training patches that running statistics are estimated from, or an epoch where that is less."""
ALONE: dict[str, Any] = {
    "devices": 1,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "logger": False,
    "num_nodes": 1,
    "strategy": "auto",
}
"""Arguments of the trainer, whatever the recipe says: one process that writes nothing."""


class Judge(AtlasCLI):
    """Scores weights on the validation cases of a run, on one device; nothing is written, and no test case is opened.

    Args:
        run: Its folder.
        recipe: The run's, as read.
    """

    def __init__(self, run: Path, recipe: Mapping[str, Any]) -> None:
        self.measure, self.sign = "dice", 1.0
        self.layers: set[str] = set()
        """Those whose running statistics are estimated anew, since training moved them."""
        if (folder := made_in(run)) and str(folder) not in sys.path:
            sys.path.append(str(folder))
        # Merged weights are whole: what an adaptation would change in the network is part of them already.
        given = (recipe.get("model") or {}).get("init_args") or {}
        options = ["--model.init_args.adaptation=null"] if "adaptation" in given else []
        super().__init__(Request("validate", configs=[run / "recipe.yaml"], options=options, run=run))
        if not isinstance(self.model, AtlasModule):
            raise CommandError(f"{run}: its {type(self.model).__name__} is no AtlasModule, whose weights merge knows")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build a trainer that runs here alone."""
        return LightningCLI.instantiate_trainer(self, callbacks=[], **kwargs, **ALONE)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run none yet."""

    @property
    def module(self) -> AtlasModule:
        """The run's module; its network is filled by `open`."""
        return self.model

    def cases(self) -> list[str]:
        """Return the names of the validation cases.

        Raises:
            CommandError: The run's data cannot be read.
        """
        try:
            return list(self.datamodule.subjects("val"))
        except (OSError, ValueError) as error:
            raise CommandError(str(error)) from error

    def open(self, checkpoint: Path) -> None:
        """Set everything up by a checkpoint, and score it once.

        Args:
            checkpoint: Of the run, with plain weights.
        """
        with plain_words(self.trainer, None):
            self.trainer.validate(self.module, datamodule=self.datamodule, ckpt_path=checkpoint, verbose=False)

    def score(self, state: Mapping[str, Tensor], merged: bool) -> float:
        """Return how good weights are on the validation cases; higher is better.

        Args:
            state: Of the network, whole.
            merged: They are of no training, so running statistics that training moved are estimated anew.

        Raises:
            CommandError: No case has anything to score.
        """
        self.fill(state, merged)
        with redirect_stdout(io.StringIO()):  # that the scans are prepared was said once
            self.trainer.validate(self.module, datamodule=self.datamodule, verbose=False)
        result: Any = self.module.results["val"]
        self.measure = result.headline
        self.sign = -1.0 if getattr(result, "kind", "") == "values" else 1.0  # an error is better the lower it is
        if result.mean != result.mean:
            raise CommandError("no validation case has any of the classes, so no weights can be chosen by them")
        return self.sign * result.mean

    def fill(self, state: Mapping[str, Tensor], merged: bool) -> None:
        """Put weights into the network; of merged ones the statistics in `layers` are those of training patches."""
        self.module.network.load_state_dict(state)
        if merged and self.layers:
            device = self.trainer.strategy.root_device
            reestimate_statistics(self.module.network.to(device), self._patches(), self.layers)

    def moved(self, first: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> set[str]:
        """Return the layers whose running statistics differ: where training held them, they are the same."""
        means = {name: f"{name}.running_mean" for name in statistic_layers(self.module.network)}
        return {name for name, mean in means.items() if not torch.equal(first[mean], other[mean])}

    def _patches(self) -> Iterator[Float[Tensor, "batch channels i j k"]]:
        trainer, data = self.trainer, self.datamodule
        finish: Callable[..., Any] = data.on_after_batch_transfer
        for batch in islice(data.train_dataloader(), STATISTICS_BATCHES):
            trainer.training = True  # or what augments on the device does not
            on_device = finish(data.transfer_batch_to_device(batch, trainer.strategy.root_device, 0), 0)
            trainer.training = False
            yield on_device["image"]
