"""What a recipe would take of weights, and where its data break their contract: nothing is trained or read whole."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_atlas.adaptation.groups import fresh_stages
from lightning_atlas.cli.planning import planned, run_steps
from lightning_atlas.cli.recipes import CommandError
from lightning_atlas.cli.request import Request
from lightning_atlas.cli.runner import AtlasCLI, import_parts
from lightning_atlas.contract import PREPROCESSED, Contract, differences
from lightning_atlas.data.adoption import expected_of
from lightning_atlas.intake import IntakeReport, SourceWeights, load_weights
from lightning_atlas.intake.adapters import met_by
from lightning_atlas.intake.exported import public_spec
from lightning_atlas.intake.loading import as_adapted
from lightning_atlas.modules import AtlasModule


@dataclass
class Parts:
    """What a recipe names: the module, and the contract of its data where these can be read.

    Args:
        module: Not yet filled.
        contract: `None` where the data cannot be read here.
        missing: Why not.
        data: Of the recipe.
        total_steps: Of a fit; `None` where that cannot be known.
    """

    module: AtlasModule
    contract: Contract | None
    missing: str | None = None
    data: Any = None
    total_steps: int | None = None


class _Inspection(AtlasCLI):
    """Builds what a recipe names, and neither trains nor makes a run folder."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Build none."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run none."""


def build_parts(configs: Sequence[Path], changes: Sequence[str], network: Mapping[str, Any] | None) -> Parts:
    """Build module and data of a recipe; the weights' network takes its place where it names none.

    Raises:
        CommandError: The recipe is refused, or is for another module.
    """
    import_parts()
    options = list(changes)
    if network and not _names_network(configs, changes):
        options.insert(0, f"--model.network={json.dumps(dict(network))}")
    built = _Inspection(Request("fit", configs=list(configs), options=options))
    if not isinstance(built.model, AtlasModule):
        raise CommandError(f"{configs[0]}: {type(built.model).__name__} takes no weights; inspect knows AtlasModule")
    total = run_steps(built.model, built.datamodule, built.config_init["fit"]["trainer"])
    try:
        return Parts(built.model, built.datamodule.contract, data=built.datamodule, total_steps=total)
    except (OSError, ValueError) as error:
        return Parts(built.model, None, str(error), total_steps=total)


def _names_network(configs: Sequence[Path], changes: Sequence[str]) -> bool:
    if any(word.startswith(("--model.network", "--model.init_args.network")) for word in changes):
        return True
    for path in configs:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        model = content.get("model") if isinstance(content, Mapping) else None
        arguments = {**model, **(model.get("init_args") or {})} if isinstance(model, Mapping) else {}
        if "network" in arguments:
            return True
    return False


def compare(
    source: SourceWeights | None, configs: Sequence[Path], changes: Sequence[str] = (), picture: Path | None = None
) -> dict[str, Any]:
    """Return what a recipe would take of weights, where its data break their contract, and what would move how fast.

    Args:
        source: As read; `None` for a start from scratch.
        configs: Recipes in order.
        changes: Options that change them.
        picture: A PNG of the rates to write.

    Raises:
        CommandError: The recipe is refused.
    """
    parts = build_parts(configs, changes, public_spec(source.network) if source and source.network else None)
    module, contract = parts.module, parts.contract
    classes, channels = (contract.classes, contract.channels) if contract else ((), ())
    source = as_adapted(source, module.adapters) if source else None
    if classes:
        module.network.resize(module.task.outputs(classes))
    found: dict[str, Any] = {
        "configs": [str(path) for path in configs],
        "network": type(module.network).__name__,
        "data_not_read": parts.missing,
    }
    fresh, fresh_outputs = {stage.name for stage in module.network.stages()}, list(classes)
    for share in (module.required_share, 0.0):  # what a fit would say, then all that fits
        if source is None:
            break
        try:
            report = load_weights(
                module.network, source, classes, share, module.adapters, module.head, channels=channels
            )
        except ValueError as error:
            found.setdefault("refused", str(error))
            continue
        found |= _intake(report)
        fresh = fresh_stages(module.network, report.fresh_names)
        untouched = {*module.network.output_axes()} <= {each.name for each in report.fresh}
        fresh_outputs = list(classes) if untouched else report.fresh_outputs
        break
    found |= planned(module, fresh, parts.total_steps, picture)
    if contract and source and source.contract:
        found["head"] = _head(source.contract.classes, classes, fresh_outputs)
        found["differences"] = contract_differences(source.contract, parts)
    return found


def _intake(report: IntakeReport) -> dict[str, Any]:
    return {
        "encoder_share": report.encoder_share,
        "loaded": list(report.loaded),
        "renamed": [list(each) for each in report.renamed],
        "reshaped": [{"source": each.source, "name": each.name, "how": each.how} for each in report.reshaped],
        "fresh": [{"name": each.name, "shape": list(each.shape)} for each in report.fresh],
        "left_over": [{"name": each.name, "shape": list(each.shape)} for each in report.left_over],
        "report": str(report),
    }


def _head(theirs: Sequence[str], ours: Sequence[str], fresh: Sequence[str]) -> dict[str, list[str]]:
    taken = [name for name in ours if name in theirs and name not in fresh]
    return {
        "matched": taken,
        "fresh": [name for name in ours if name not in taken],
        "not_used": [name for name in theirs if name not in taken],
    }


def contract_differences(expected: Contract, parts: Parts) -> list[dict[str, Any]]:
    """Return in what the data break the contract of weights, and whether the recipe allows or mends it."""
    # Of scans in other units the weights' window cannot be taken over; what stands in for it must be allowed.
    taken = expected_of(expected, parts.contract.modality if parts.contract else None, parts.contract)
    allowed = {*parts.module.allow, *met_by(parts.module.adapters)}
    adopted = {key for key in PREPROCESSED if parts.module.adopts and getattr(taken, key) == getattr(expected, key)}
    return [
        {
            "key": each.key,
            "weights": each.weights,
            "data": each.data,
            "says": str(each),
            "allowed": each.key in allowed,
            "adopted": each.key in adopted,
        }
        for each in differences(expected, parts.contract or Contract())
    ]
