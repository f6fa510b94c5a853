"""Scans to predict on, compared with those that training saw."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_atlas.callbacks.progress import say
from lightning_atlas.callbacks.seams import scored
from lightning_atlas.contract import MAY_LIE_OUTSIDE, SEEN, Departure, check_allowed, outside

CHECKS = "checks.json"
SHOWN = 3
"""Scans that an error names."""
MARKED = 20
"""Scans that are printed."""


class ScanCheck(Callback):
    """Refuse scans outside of what training saw before the first is computed, or mark those that are allowed.

    Channels, modality (where the file states it), voxel size, field of view and intensities are compared with the
    contract of the weights. Marked scans are printed, and listed in `checks.json`.

    Args:
        allow: Keys in which scans may lie outside: `modality`, `spacing_mm`, `extent_mm`, `intensities`.
        output: Folder of the predictions, for `checks.json`; `null` only prints.
    """

    def __init__(self, allow: Sequence[str] = (), output: Path | None = None) -> None:
        check_allowed(allow, MAY_LIE_OUTSIDE)
        self.allow = tuple(allow)
        self.output = None if output is None else Path(output)
        self.marked: dict[str, list[Departure]] = {}

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare every scan.

        Raises:
            ValueError: Some lie outside in a key that is not allowed.
        """
        data: Any = getattr(trainer, "datamodule", None)
        weights = scored(pl_module).contract
        self.marked = {}
        if weights is None or not hasattr(data, "described"):
            return
        found = {subject: outside(weights, scan) for subject, scan in data.described("predict").items()}
        if trainer.is_global_zero and not any(getattr(weights, key) for key in SEEN):
            say("note: the weights do not say which scans they saw, so only channels and modality were checked")
        self._refuse(found)
        self.marked = {subject: each for subject, each in found.items() if each}

    def _refuse(self, found: dict[str, list[Departure]]) -> None:
        bad = {subject: [each for each in all_ if not self._may(each)] for subject, all_ in found.items()}
        bad = {subject: each for subject, each in bad.items() if each}
        if not bad:
            return
        lines = [f"{len(bad)} of {len(found)} scans lie outside of what training saw; nothing was computed:"]
        lines += [f"  {subject}: {'; '.join(map(str, each))}" for subject, each in list(bad.items())[:SHOWN]]
        keys = dict.fromkeys(each.key for all_ in bad.values() for each in all_ if not each.forbidden)
        rest = f"and {len(bad) - SHOWN} more scans. " if len(bad) > SHOWN else ""
        allow = f", or predict and mark them: --allow {','.join([*self.allow, *keys])}" if keys else ""
        never = next((each.forbidden for all_ in bad.values() for each in all_ if each.forbidden), None)
        why = f" (other channels are never allowed, since {never})" if never else ""
        raise ValueError("\n".join([*lines, f"{rest}Take them out{allow}{why}"]))

    def _may(self, departure: Departure) -> bool:
        return departure.key in self.allow and not departure.forbidden

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print and list the marked scans."""
        if not trainer.is_global_zero:
            return
        if self.output is not None:
            self._write(self.output / CHECKS)
        if self.marked:
            shown = [f"  {name}: {'; '.join(map(str, each))}" for name, each in list(self.marked.items())[:MARKED]]
            more = [f"  ... and {len(self.marked) - MARKED} more"] if len(self.marked) > MARKED else []
            head = f"outside of what training saw, as allowed ({', '.join(self.allow)}):"
            say("\n".join([head, *shown, *more]))

    def _write(self, path: Path) -> None:
        if not self.marked:
            path.unlink(missing_ok=True)  # of an earlier prediction, which this one replaced
            return
        marked = {
            subject: [{"key": each.key, "training": each.weights, "scan": each.data} for each in all_]
            for subject, all_ in self.marked.items()
        }
        path.write_text(json.dumps({"allowed": list(self.allow), "outside": marked}, indent=2) + "\n", encoding="utf-8")
