"""What a recipe would move, when and how fast: known from the recipe and what weights fill, before any training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import yaml
from lightning.pytorch import Trainer

from lightning_atlas.adaptation.plan import AdaptationPlan
from lightning_atlas.callbacks.pictures import write_picture
from lightning_atlas.callbacks.rates import rates_picture
from lightning_atlas.modules import AtlasModule
from lightning_atlas.networks.base import stage_parameters, stage_tensors


def run_steps(module: AtlasModule, data: Any, settings: Any) -> int | None:
    """Return the optimizer steps of a recipe's fit; `None` where its data module does not say how long an epoch is.

    Args:
        module: As the recipe builds it.
        data: The same.
        settings: The recipe's `trainer`.
    """
    steps, epochs, limit = settings.max_steps, settings.max_epochs, settings.limit_train_batches
    stand_in = SimpleNamespace(
        max_steps=steps,
        max_epochs=1000 if epochs is None and steps < 0 else epochs,  # as Lightning's trainer
        limit_train_batches=1.0 if limit is None else limit,
        accumulate_grad_batches=settings.accumulate_grad_batches,
        datamodule=data,
    )
    module.trainer = cast(Trainer, stand_in)
    try:
        return module.total_steps
    except ValueError:
        return None
    finally:
        module.trainer = None


def planned(module: AtlasModule, fresh: set[str], total_steps: int | None, picture: Path | None) -> dict[str, Any]:
    """Return the stages with what they would do in a fit, in plain values, and draw their rates.

    Args:
        module: Filled from the weights; it is taken apart by what it plans.
        fresh: Stages with parameters that no weights give.
        total_steps: Of the fit.
        picture: A PNG to write.
    """
    if total_steps is None:
        return {"total_steps": None, "plan_refused": "the length of the run is not known: set trainer.max_steps"}
    choices = module.optimizer, module.schedule
    try:
        for adaptation in module.adaptation:
            adaptation.build(module.network, fresh)
        plan = AdaptationPlan(module.adaptation, module.network, fresh, total_steps)
        plan.freeze()
        steps, rates = plan.course(*choices)
        table = plan.table(*choices)
    except ValueError as error:
        return {"total_steps": total_steps, "plan_refused": str(error)}
    if picture is not None:
        told = f"{total_steps} optimizer steps of {type(module.network).__name__}, as the recipe plans them"
        write_picture(rates_picture(steps, rates, fresh, told), picture)
    decay = {
        group["stage"]: group.get("weight_decay") for group in module.optimizer(plan.parameter_groups()).param_groups
    }
    return {"total_steps": total_steps, "stages": _rows(plan, rates, decay), "table": table}


def _rows(
    plan: AdaptationPlan, rates: Mapping[str, Sequence[float]], decay: Mapping[str, float | None]
) -> list[dict[str, Any]]:
    rows = []
    for stage in plan.stages:
        parameters = stage_parameters(plan.network, stage).values()
        course = rates[stage.name]
        rows.append(
            {
                "stage": stage.name,
                "part": stage.part,
                "tensors": len(stage_tensors(plan.network, stage)),
                "parameters": sum(each.numel() for each in parameters),
                "moving": sum(each.numel() for each in parameters if each.requires_grad),
                "fresh": stage.name in plan.fresh,
                "rate": {"start": course[0], "peak": max(course), "end": course[-1]},
                "weight_decay": decay.get(stage.name),
            }
        )
    return rows


def stated_weights(configs: Sequence[Path], changes: Sequence[str]) -> str | None:
    """Return the weights that a recipe names; `None` where it starts from scratch."""
    options = ("--model.weights=", "--model.init_args.weights=")
    if typed := [word.partition("=")[2] for word in changes if word.startswith(options)]:
        return None if typed[-1] == "null" else typed[-1]
    for path in reversed(configs):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        model = content.get("model") if isinstance(content, Mapping) else None
        arguments = {**model, **(model.get("init_args") or {})} if isinstance(model, Mapping) else {}
        if "weights" in arguments:
            return arguments["weights"]
    return None
