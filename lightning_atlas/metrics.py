"""Dice for each case and class, on drawn voxels only."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_atlas.types import Drawn, Label, Prediction, States


class DiceResult:
    """What was found in each case, in the order of `index`.

    Args:
        index: The cases' positions in their split.
        dice: NaN where the class is absent from the reference, whatever was predicted.
        reference_ml: Volume drawn; NaN where nobody decided on the class.
        predicted_ml: Volume predicted where the class was decided on; NaN where nobody decided on it.
        false_positive_ml: Volume predicted in a case known not to have the class; NaN in other cases.
    """

    # No dataclass: torchmetrics rewrites the fields of one that compute returns, and drops the axes of single numbers.
    def __init__(
        self,
        index: Integer[Tensor, " cases"],
        dice: Float[Tensor, "cases classes"],
        reference_ml: Float[Tensor, "cases classes"],
        predicted_ml: Float[Tensor, "cases classes"],
        false_positive_ml: Float[Tensor, "cases classes"],
    ) -> None:
        self.index = index
        self.dice = dice
        self.reference_ml = reference_ml
        self.predicted_ml = predicted_ml
        self.false_positive_ml = false_positive_ml

    headline = "dice"
    """Name of the score that `mean` is."""

    def per_class(self) -> Float[Tensor, " classes"]:
        """Return each class's mean over the cases that have it; NaN if none has."""
        return self.dice.nanmean(0)

    @property
    def mean(self) -> float:
        """Return the mean over cases, then classes; NaN if no case has any."""
        return self.per_class().nanmean().item()

    @property
    def global_dice(self) -> Float[Tensor, " classes"]:
        """Return each class's Dice over the volume of all cases together, as if they were one; NaN if none has any.

        Cases without the class count by what was predicted in them, and large ones count more.
        """
        both = self.reference_ml + self.predicted_ml
        return (self.dice * both).nansum(0) / both.nansum(0)

    def scores(self, classes: Sequence[str]) -> dict[str, float]:
        """Return the scores as they are logged: `dice`, and `dice/CLASS` for each class."""
        each = zip(classes, self.per_class().tolist(), strict=True)
        return {"dice": self.mean, **{f"dice/{name}": value for name, value in each}}

    @property
    def n(self) -> Integer[Tensor, " classes"]:
        """Return the number of cases that have each class."""
        return (~self.dice.isnan()).sum(0)

    @property
    def absent_with_prediction(self) -> Float[Tensor, " classes"]:
        """Return the share of the cases without the class in which it was predicted; NaN if there are none."""
        absent = ~self.false_positive_ml.isnan()
        return (self.false_positive_ml > 0).sum(0) / absent.sum(0)

    def per_dataset(self, datasets: Sequence[str]) -> dict[str, "DiceResult"]:
        """Return what was found in the cases of each dataset.

        Args:
            datasets: Of each case of the split, by the case's position in it.
        """
        found = [datasets[int(index)] for index in self.index]
        columns = (self.index, self.dice, self.reference_ml, self.predicted_ml, self.false_positive_ml)
        results: dict[str, DiceResult] = {}
        for name in dict.fromkeys(found):
            places = torch.tensor([each == name for each in found])
            results[name] = DiceResult(*(column[places] for column in columns))
        return results

    def rows(self, classes: Sequence[str]) -> list[dict[str, str | float | int]]:
        """Return a row for each class and one for their mean, as for a CSV file."""
        mistaken = (self.false_positive_ml.nanmean(0), self.absent_with_prediction)
        columns = (self.per_class(), self.n, self.global_dice, *mistaken)
        names = ("dice", "n", "global_dice", "false_positive_ml", "absent_with_prediction")
        table = zip(*(column.tolist() for column in columns), strict=True)
        rows = [{"class": name, **dict(zip(names, row, strict=True))} for name, row in zip(classes, table, strict=True)]
        means = (self.mean, self.n.sum().item(), *(column.nanmean().item() for column in columns[2:]))
        return [*rows, {"class": "mean", **dict(zip(names, means, strict=True))}]

    def table(self, classes: Sequence[str]) -> str:
        """Return the rows as aligned text in ASCII."""
        rows = self.rows(classes)
        width = max(len(str(row["class"])) for row in rows)
        head = f"{'class':{width}}  {'Dice':>6}  {'n':>5}  {'global':>6}"
        lines = [f"{head}  {'false-positive ml':>17}  {'absent, yet predicted':>21}"]
        lines += [
            f"{row['class']:{width}}  {_number(row['dice'], 4):>6}  {row['n']:>5}  "
            f"{_number(row['global_dice'], 4):>6}  "
            f"{_number(row['false_positive_ml'], 2):>17}  {_number(row['absent_with_prediction'], 2):>21}"
            for row in rows
        ]
        lines += [
            "Dice: mean over the cases that have the class, then over classes; n counts those cases.",
            "global: Dice of all cases' volume together, as if they were one case.",
            "The last two columns: mean volume predicted in cases without the class, and the share of these with any.",
        ]
        return "\n".join(lines)


class CaseDice(Metric):
    """Collects what `DiceResult` tells, over ranks; a case that a sampler had to repeat counts once.

    Args:
        classes: How many columns the tables have.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    index: list[Tensor]
    voxels: list[Tensor]
    voxel_ml: list[Tensor]

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        for name in ("index", "voxels", "voxel_ml"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self,
        prediction: Prediction,
        label: Label,
        states: States,
        drawn: Drawn,
        index: Integer[Tensor, " batch"],
        voxel_ml: Float[Tensor, " batch"],
    ) -> None:
        """Count the voxels of each case.

        Args:
            prediction: Its table has the columns of the others.
            label: Rows of the tables.
            states: As in the batch.
            drawn: As in the batch.
            index: As in the batch.
            voxel_ml: Volume of a voxel.

        Raises:
            ValueError: The tables have another number of columns.
        """
        for table in (states, prediction.inside):
            if table.shape[2] != self.classes:
                raise ValueError(f"expected tables of {self.classes} classes, found {table.shape[2]}")
        counts = [_count(*case) for case in zip(*prediction, label, states, drawn, strict=True)]
        self.index.append(index.long())
        self.voxels.append(torch.stack(counts))
        self.voxel_ml.append(voxel_ml.float())

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather over ranks; one that saw no case adds none (torchmetrics would send floats of another shape)."""
        if len(self.index) == 0:
            self.index = [torch.empty(0, dtype=torch.long, device=self.device)]
            self.voxels = [torch.empty(0, 4, self.classes, dtype=torch.long, device=self.device)]
            self.voxel_ml = [torch.empty(0, device=self.device)]
        super().sync(*args, **kwargs)

    def compute(self) -> DiceResult:
        """Return what was found, on the CPU and in double precision."""
        index, voxels, voxel_ml = (dim_zero_cat(state).cpu() for state in (self.index, self.voxels, self.voxel_ml))
        index, order = index.sort(stable=True)
        first = index.diff(prepend=index[:1] - 1) != 0
        order = order[first]
        overlap, reference, predicted, decided = voxels[order].double().unbind(1)
        to_ml = voxel_ml[order].double().unsqueeze(1)
        return DiceResult(
            index=index[first],
            dice=torch.where(reference > 0, 2 * overlap / (reference + predicted), torch.nan),
            reference_ml=torch.where(decided > 0, reference * to_ml, torch.nan),
            predicted_ml=torch.where(decided > 0, predicted * to_ml, torch.nan),
            false_positive_ml=torch.where((decided > 0) & (reference == 0), predicted * to_ml, torch.nan),
        )


def _count(
    predicted: Integer[Tensor, "i j k"],
    inside: Bool[Tensor, "predictions classes"],
    label: Integer[Tensor, "i j k"],
    states: Integer[Tensor, "rows classes"],
    drawn: Bool[Tensor, "rows classes"],
) -> Integer[Tensor, "4 classes"]:
    """Count, of each class, the drawn voxels in both, in the reference, in the prediction, and all of them."""
    rows, label = states.shape[0], label.flatten().long()
    voxels = label.bincount(minlength=rows).unsqueeze(1)
    found = _predicted_in_rows(predicted.flatten(), inside, label, rows)
    present = drawn & (states == 1)
    parts = ((found, present), (voxels, present), (found, drawn), (voxels, drawn))
    return torch.stack([(table * mask).sum(0) for table, mask in parts])


def _predicted_in_rows(
    predicted: Integer[Tensor, " voxels"],
    inside: Bool[Tensor, "predictions classes"],
    label: Integer[Tensor, " voxels"],
    rows: int,
) -> Integer[Tensor, "rows classes"]:
    """Count the voxels of each row of the label that were predicted in each class."""
    predictions = len(inside)
    if rows * predictions <= label.numel():
        pairs = (label * predictions + predicted).bincount(minlength=rows * predictions).view(rows, predictions)
        return torch.stack([pairs[:, column].sum(1) for column in inside.unbind(1)], 1)
    # An untrained network may put each voxel in a combination of its own: more pairs than voxels.
    places = predicted.long()
    return torch.stack([label[column[places]].bincount(minlength=rows) for column in inside.unbind(1)], 1)


def _number(value: str | float, digits: int) -> str:
    return "-" if value != value else f"{value:.{digits}f}"
