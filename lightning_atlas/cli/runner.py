"""LightningCLI as this package uses it: recipes in, a run folder out."""

import inspect
import json
import logging
import sys
import traceback
import warnings
from datetime import datetime
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonargparse
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, Checkpoint, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_atlas.callbacks import (
    BoxWriter,
    Expectation,
    Movement,
    PredictionTable,
    PredictionWriter,
    RatesPicture,
    RunReport,
    ScanCheck,
    WholeRunProgress,
)
from lightning_atlas.callbacks.seams import CaseData
from lightning_atlas.cli.endings import is_refusal, plain_words, unused_gpu
from lightning_atlas.cli.mistakes import LOGGER, discarded_arguments, explain, name_discarded, read_all
from lightning_atlas.cli.recipes import CommandError
from lightning_atlas.cli.request import RUN_VERBS, Request
from lightning_atlas.cli.run_folder import TIME, TRAINING_DATA, environment, forget_run_folder, made_in, make_run_folder
from lightning_atlas.cli.run_options import options_of_run
from lightning_atlas.cli.sources import read_sources
from lightning_atlas.modules import AtlasModule

PARTS = ("networks", "tasks", "inference", "intake", "adaptation")
"""Imported before a recipe is read, so that short names resolve; `data`, above, brings TorchIO's transforms."""

NOISE = (
    ".*LeafSpec.*is deprecated",
    ".*callbacks used to create the checkpoint need to be provided",
    ".*in eval mode at the start of training",
    ".*dirpath has changed",
)
"""Warnings of Lightning on its own code, on `last_weights`, which only a fit needs, on layers held on purpose, and on a
resumed run that writes to a folder of its own."""
USAGE = {
    "fit": "RECIPE [RECIPE ...] [--KEY VALUE ...]",
    "validate": "RUN | RECIPE [RECIPE ...] [--ckpt_path FILE | --weights WEIGHTS] [--KEY VALUE ...]",
    "test": "RUN | RECIPE [RECIPE ...] [--ckpt_path FILE | --weights WEIGHTS] [--KEY VALUE ...]",
    "predict": "RUN | --weights WEIGHTS --input DIR --output DIR [--overwrite] [--allow KEYS] [--KEY VALUE ...]",
}
DESCRIPTION = """RECIPE is a file or a packaged recipe's name (`lightning-atlas recipes list`), RUN a folder in which a
fit ended. --print_config prints the merged recipe; --model.help CLASS and --data.help CLASS list what CLASS takes."""


def _write_enum(dumper: yaml.SafeDumper, value: Enum) -> yaml.Node:
    return dumper.represent_data(value.value)


# Lightning's Timer has an enum among its defaults, which PyYAML does not write.
yaml.SafeDumper.add_multi_representer(Enum, _write_enum)


WRITERS = {"voxels": PredictionWriter, "boxes": BoxWriter}
"""Of what is predicted; of whole scans there is a table."""


class RecipeSaver(SaveConfigCallback):
    """Write the merged recipe and the environment into the run folder.

    Args:
        command: What was typed.
        kwargs: Those of Lightning's callback.
    """

    def __init__(self, *args: Any, command: str, **kwargs: Any) -> None:
        super().__init__(*args, config_filename="recipe.yaml", **kwargs)
        self.command = command

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write both files once."""
        written = self.already_saved
        make_absolute(self.config)
        super().setup(trainer, pl_module, stage)
        folder = Path(str(trainer.log_dir))  # asks every process, so not from `save_config`, which one process runs
        if trainer.is_global_zero and not written:
            (folder / "environment.txt").write_text(environment(self.command), encoding="utf-8")
            if stage == "fit" and (told := training_data(trainer)):
                (folder / TRAINING_DATA).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def training_data(trainer: Trainer) -> dict[str, Any] | None:
    """Return what a fit learns from, without names of subjects; `None` where the data module does not tell."""
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, CaseData):
        return None
    counts = {split: len(data.subjects(split)) for split in ("train", "val", "test")}
    datasets = sorted({case.dataset for case in getattr(data, "cases", ())} - {""})
    return {"description": data.describe(), "subjects": counts, "datasets": datasets}


def make_absolute(values: jsonargparse.Namespace | dict[str, Any]) -> None:
    """Spell every path in a merged recipe from the root, so that the recipe runs from any folder."""
    for key, value in list(values.items()):
        if isinstance(value, Path):
            values[key] = value.absolute()
        elif isinstance(value, dict):
            make_absolute(value)


class AtlasCLI(LightningCLI):
    """Run one request.

    Args:
        request: The command, read.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.folder = request.run
        logger = logging.getLogger(LOGGER)
        logger.propagate = False
        recipes = [f"--config={path}" for path in request.configs]
        settings = {"allow_abbrev": False, "exit_on_error": False, "logger": logger}
        texts = {"usage": f"lightning-atlas {request.verb} {USAGE[request.verb]}", "description": DESCRIPTION}
        super().__init__(
            LightningModule,
            LightningDataModule,
            save_config_callback=RecipeSaver if request.run is None and request.verb != "predict" else None,
            save_config_kwargs={"command": request.command},
            seed_everything_default=0,
            parser_kwargs={**settings, **dict.fromkeys(RUN_VERBS, settings | texts)},
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            args=[request.verb, *recipes, *self.given_options(), *request.options],
        )

    def given_options(self) -> list[str]:
        """Return the options that nobody typed: a run's checkpoint, and the folder of scans."""
        return options_of_run(self.request)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return Lightning's verbs, less the arguments that are settled here."""
        ours = {"test": {"verbose"}, "validate": {"verbose"}, "predict": {"return_predictions"}}
        return {verb: skipped | ours.get(verb, set()) for verb, skipped in LightningCLI.subcommands().items()}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, say which arguments a changed class dropped, and explain what is refused."""
        sources = read_sources(self.request.configs, self.request.options)
        with discarded_arguments() as heard:
            try:
                self.config = parser.parse_args(args)
            except jsonargparse.ArgumentError as error:
                heard.clear()
                raise CommandError(explain(str(error), sources, self._top())) from error
            finally:
                for line in name_discarded(heard, sources, self._top()):
                    print(f"note: {line}", file=sys.stderr)

    def _top(self) -> dict[str, Any]:
        arguments = inspect.signature(getattr(Trainer, self.request.verb)).parameters
        names = self._subcommand_method_arguments[self.request.verb]
        return {
            "model": LightningModule,
            "data": LightningDataModule,
            "trainer": Trainer,
            "seed_everything": bool | int,
            **{name: arguments[name].annotation for name in names},
        }

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would let the checkpoint's arguments replace the recipe's."""

    def instantiate_classes(self) -> None:
        """Build what the recipe names; what a constructor refuses is an error of the recipe."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, OSError, ImportError, MisconfigurationException) as error:
            reading = read_all(read_sources(self.request.configs, self.request.options), self._top())
            first = first_cause(error)
            raise CommandError(f"{reading.place_of_class(built_by(first))}{first}") from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with a run folder and with what is always shown and written."""
        config = self._get(self.config_init, "trainer")
        given = config.callbacks or []
        given = given if isinstance(given, list) else [given]
        kwargs["callbacks"] = [*given, *self._watchers(config, given)]
        root = Path(config.default_root_dir or Path.cwd())
        if self.request.verb != "fit" and not any(isinstance(each, Checkpoint) for each in given):
            kwargs["enable_checkpointing"] = False
        if self.request.run or self.request.verb == "predict":
            kwargs |= {"logger": False, "default_root_dir": str(_folder_of_scores(self.request, root).resolve())}
        elif not config.fast_dev_run:
            self.folder = make_run_folder(root, self.request.name)
            kwargs |= _folder_arguments(self.folder, config.logger)
        return super().instantiate_trainer(**kwargs)

    def _watchers(self, config: Any, given: list[Callback]) -> list[Callback]:
        """Return the callbacks of every run, less those that the recipe brings or switches off."""
        ours, fits = isinstance(self.model, AtlasModule), self.request.verb == "fit"
        wanted: list[tuple[bool, type[Callback], Callback]] = [
            (config.enable_progress_bar is not False, ProgressBar, WholeRunProgress()),
            (self.request.verb != "predict" and ours, Expectation, Expectation()),
            (self.request.verb != "predict" and ours, RunReport, RunReport()),
            (fits and ours, RatesPicture, RatesPicture()),
            (fits and ours, Movement, Movement()),
            (config.enable_checkpointing is not False and self.request.verb == "fit", ModelCheckpoint, last_weights()),
        ]
        writers = self._writers(given) if self.request.verb == "predict" else []
        missing = [new for use, kind, new in wanted if use and not any(isinstance(each, kind) for each in given)]
        return [] if config.barebones else [*missing, *writers]

    def _writers(self, given: list[Callback]) -> list[Callback]:
        if self.request.output:
            try:
                check = ScanCheck(self.request.allow, self.request.output)
            except ValueError as error:
                raise CommandError(f"--{error}") from error
            predicts = getattr(getattr(self.model, "task", None), "predicts", "voxels")
            writer = WRITERS.get(predicts, PredictionTable)
            return [writer(self.request.output, overwrite=self.request.overwrite), check]
        if not any(isinstance(each, (*WRITERS.values(), PredictionTable, BasePredictionWriter)) for each in given):
            raise CommandError("predict has nowhere to write: add --output DIR")
        return []

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand == "fit" and is_first() and (hint := unused_gpu()):
            print(hint, flush=True)
        with plain_words(self.trainer, self.folder):
            super()._run_subcommand(subcommand)

    def after_fit(self) -> None:
        """Score the last weights, so that every run ends with numbers."""
        if self._get(self.config_init, "trainer").fast_dev_run or self.trainer.interrupted:
            return
        data = self.datamodule
        tests = data.has("test") if hasattr(data, "has") else is_overridden("test_dataloader", data)
        if not tests and hasattr(data, "has") and not data.has("val"):
            return
        score, step = (self.test, "test_step") if tests else (self.validate, "validation_step")
        if is_overridden(step, self.model):
            score(model=self.model, datamodule=data)

    def test(self, **kwargs: Any) -> None:
        """Score without Lightning's own table: `RunReport` prints one."""
        self.trainer.test(verbose=False, **kwargs)

    def validate(self, **kwargs: Any) -> None:
        """Score without Lightning's own table: `RunReport` prints one."""
        self.trainer.validate(verbose=False, **kwargs)

    def predict(self, **kwargs: Any) -> None:
        """Predict without keeping every volume in memory."""
        self.trainer.predict(return_predictions=False, **kwargs)


def last_weights() -> ModelCheckpoint:
    """Return the callback that keeps `checkpoints/last.ckpt`, which is what is scored and handed on."""
    return ModelCheckpoint(filename="last", enable_version_counter=False, save_on_train_epoch_end=True)


def _folder_arguments(folder: Path, given: Any) -> dict[str, Any]:
    """Return the trainer's arguments with which its `log_dir` is the run folder, whatever logger the recipe gives."""
    if given is False:
        return {"default_root_dir": str(folder)}
    loggers = [each for each in (given if isinstance(given, list) else [given]) if isinstance(each, Logger)]
    if any(isinstance(each, TensorBoardLogger) for each in loggers):
        return {}
    name, start = folder.parent.name, folder.name
    return {"logger": [TensorBoardLogger(folder.parents[1], name, start, default_hp_metric=False), *loggers]}


def _folder_of_scores(request: Request, root: Path) -> Path:
    """Return the run's own folder, or one inside it for scores of the run changed."""
    if request.run is None or request.verb == "predict" or not request.changes_the_run:
        return request.run or root
    return request.run / "tests" / datetime.now().strftime(TIME)


def _quiet_advertisements(record: logging.LogRecord) -> bool:
    return "Tip:" not in record.getMessage()


def run(request: Request) -> None:
    """Run one of Lightning's verbs.

    Args:
        request: The command, read.

    Raises:
        CommandError: The command cannot run, or its run ended early in a way that has plain words.
    """
    import_parts()
    if request.run and (folder := made_in(request.run)):
        sys.path.append(str(folder))
    _announce(request)
    try:
        AtlasCLI(request)
    finally:
        forget_run_folder()
        leave_processes()


class _Preparation(AtlasCLI):
    """Prepares the scans of a recipe, and neither trains nor makes a run folder."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Build none."""

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            self.datamodule.prepare_data()
        except Exception as error:
            if not is_refusal(error):
                raise
            raise CommandError(str(error)) from error


def prepare_recipe(request: Request) -> None:
    """Prepare the scans of a recipe, as its first fit would.

    Args:
        request: A `fit`; nothing is trained.

    Raises:
        CommandError: The recipe or its scans are refused.
    """
    import_parts()
    _Preparation(request)


def leave_processes() -> None:
    """End the group of processes: the interpreter may abort while threads of gloo are still at work."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def import_parts() -> None:
    """Load what recipes name by short names, and still what Lightning says of itself."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_quiet_advertisements)
    for noise in NOISE:
        warnings.filterwarnings("ignore", message=noise)
    for part in PARTS:
        import_module(f"lightning_atlas.{part}")


def _announce(request: Request) -> None:
    """Print the files that are used; standard output is left to what `--print_config` and `--help` print there."""
    lines = [f"recipe: {path}" for path in request.configs]
    if request.checkpoint:
        lines.append(f"checkpoint: {request.checkpoint}")
    for line in lines if is_first() else []:
        print(line, file=sys.stderr if request.asks_only else sys.stdout, flush=True)


def is_first() -> bool:
    """Tell whether this process is the one that prints."""
    return getattr(rank_zero_only, "rank", 0) == 0


def first_cause(error: BaseException) -> BaseException:
    """Return what a constructor said, without what jsonargparse wraps around it while it tries the other types."""
    inner = error.__cause__ or error.__context__
    return first_cause(inner) if inner and "Does not validate against" in str(error) else error


def built_by(error: BaseException) -> list[type]:
    """Return the classes whose constructors an error left, innermost first."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == "__init__"]
    return [type(frame.f_locals["self"]) for frame in reversed(frames) if "self" in frame.f_locals]
