"""From a segmentation to a decision about a patient: is there a lesion, and how far such decisions can be trusted."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from scipy import ndimage
from scipy.stats import binomtest
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

UNKNOWN = -1
DRAWS, SEED, LEVEL = 2000, 0, 0.95
UNDEFINED = (float("nan"), float("nan"), float("nan"))


def evidence(
    probability: Float[np.ndarray, "i j k"],
    lesion: Bool[np.ndarray, "i j k"],
    organ: Bool[np.ndarray, "i j k"],
    least_mm3: float = 0.0,
    voxel_mm3: float = 1.0,
) -> float:
    """Return the highest probability within the components of a lesion that count; 0 where none does.

    A component (of voxels that share a face) counts if it has a volume of `least_mm3` or more and touches the organ, by
    a corner at least, or lies in it; the organ is its own largest component.

    Source: Li et al., "How Well Do Supervised 3D Models Transfer to Medical Imaging Tasks?", 2024,
    https://arxiv.org/abs/2501.11253; target_applications/pancreas_tumor_detection/eval.py of its repository.
    Differs: sizes are volumes (there numbers of voxels, whatever their size); what lies outside of such components does
    not count (there the probability within the organ does too).

    Args:
        probability: Of the lesion.
        lesion: Where it is predicted.
        organ: Where the organ is predicted.
        least_mm3: Components of less do not count.
        voxel_mm3: Volume of a voxel.
    """
    around: Any = ndimage.binary_dilation(largest_component(organ), np.ones((3, 3, 3), dtype=bool))
    numbers, count = _components(lesion)
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)
    enough = sizes * voxel_mm3 >= least_mm3 * (1 - 1e-5)  # spacings come in float32
    counts = enough & np.isin(np.arange(count + 1), numbers[around])
    counts[0] = False
    kept = counts[numbers]
    return float(probability[kept].max()) if kept.any() else 0.0


def largest_component(mask: Bool[np.ndarray, "i j k"]) -> Bool[np.ndarray, "i j k"]:
    """Return the largest set of voxels that hang together by their faces; an empty mask stays empty."""
    numbers, count = _components(mask)
    if count == 0:
        return mask
    return numbers == 1 + np.bincount(numbers.ravel())[1:].argmax()


def _components(mask: Bool[np.ndarray, "i j k"]) -> tuple[Integer[np.ndarray, "i j k"], int]:
    """Number the sets of voxels that hang together by their faces from 1."""
    found: Any = ndimage.label(mask)
    return found


@dataclass(frozen=True)
class Evidence:
    """What was found in each case, in the order of `index`.

    Args:
        index: The cases' positions in their split.
        score: Highest probability of each lesion, 0 where none is predicted.
        truth: 1 with the lesion, 0 without it, -1 where that is not known.
    """

    index: Int[np.ndarray, " cases"]
    score: Float[np.ndarray, "cases lesions"]
    truth: Int[np.ndarray, "cases lesions"]


class CaseEvidence(Metric):
    """Collects evidence over ranks; a case that a sampler had to repeat counts once.

    Args:
        lesions: How many lesions are told apart.
    """

    is_differentiable = False
    full_state_update = False
    index: list[Tensor]
    score: list[Tensor]
    truth: list[Tensor]

    def __init__(self, lesions: int) -> None:
        super().__init__()
        self.lesions = lesions
        for name in ("index", "score", "truth"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self,
        index: Integer[Tensor, " batch"],
        score: Float[Tensor, "batch lesions"],
        truth: Integer[Tensor, "batch lesions"],
    ) -> None:
        """Add cases."""
        self.index.append(index.long())
        self.score.append(score.float())
        self.truth.append(truth.long())

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather over ranks; one that saw no case adds none."""
        if len(self.index) == 0:
            self.index = [torch.empty(0, dtype=torch.long, device=self.device)]
            self.score = [torch.empty(0, self.lesions, device=self.device)]
            self.truth = [torch.empty(0, self.lesions, dtype=torch.long, device=self.device)]
        super().sync(*args, **kwargs)

    def compute(self) -> list[Tensor]:
        """Return index, score and truth of each case once, on the CPU."""
        index, score, truth = (dim_zero_cat(state).cpu() for state in (self.index, self.score, self.truth))
        index, order = index.sort(stable=True)
        first = index.diff(prepend=index[:1] - 1) != 0
        return [index[first], score[order][first], truth[order][first]]


def per_patient(
    found: Evidence, patients: list[str], judged: Bool[np.ndarray, "cases lesions"]
) -> tuple[list[str], Float[np.ndarray, "patients lesions"], Int[np.ndarray, "patients lesions"]]:
    """Return each patient's highest score and whether any of the patient's scans has the lesion.

    Args:
        found: Of the cases.
        patients: Whose each case of the split is.
        judged: Whether a lesion is looked for in a case.

    Returns:
        The patients, their scores (NaN where no scan of theirs is judged), and the truth (-1 where it is not known).
    """
    names = [patients[index] for index in found.index.tolist()]
    told: list[str] = list(dict.fromkeys(names))
    score = np.full((len(told), found.score.shape[1]), np.nan)
    truth = np.full(score.shape, UNKNOWN)
    for row, name in enumerate(told):
        own = np.array([each == name for each in names])
        for column in range(score.shape[1]):
            scans = own & judged[:, column]
            if scans.any():
                score[row, column] = found.score[scans, column].max()
            said = found.truth[own, column]
            truth[row, column] = 1 if (said == 1).any() else 0 if (said == 0).all() else UNKNOWN
    return told, score, truth


def any_lesion(
    score: Float[np.ndarray, "patients lesions"], truth: Int[np.ndarray, "patients lesions"]
) -> tuple[Float[np.ndarray, " patients"], Int[np.ndarray, " patients"]]:
    """Return the score and the truth of having any of the lesions."""
    none = (truth == 0).all(1)
    highest = np.where(np.isnan(score), -np.inf, score).max(1)
    return (
        np.where(np.isinf(highest), np.nan, highest),
        np.where((truth == 1).any(1), 1, np.where(none, 0, UNKNOWN)),
    )


class Accuracy(NamedTuple):
    """How well decisions about patients agree with the truth: each value with its 95 % interval; NaN without patients.

    Args:
        positives: Patients with the lesion.
        negatives: Patients without it.
        auc: Area under the receiver operating characteristic; interval by bootstrap over patients.
        sensitivity: Share of those with the lesion in whom it was found; Wilson's interval, as below.
        specificity: Share of those without it in whom nothing was found.
        ppv: Share of those in whom it was found who have it.
    """

    positives: int
    negatives: int
    auc: tuple[float, float, float]
    sensitivity: tuple[float, float, float]
    specificity: tuple[float, float, float]
    ppv: tuple[float, float, float]


def accuracy(score: Float[np.ndarray, " patients"], truth: Int[np.ndarray, " patients"]) -> Accuracy:
    """Compare scores with the truth; patients of whom either is not known are left out.

    A patient is taken to have the lesion where the score is above 0: some component counted.
    """
    known = (truth != UNKNOWN) & ~np.isnan(score)
    score, has = score[known], truth[known] == 1
    found = score > 0
    return Accuracy(
        int(has.sum()),
        int((~has).sum()),
        auc_with_interval(score[has], score[~has]),
        _share(int((found & has).sum()), int(has.sum())),
        _share(int((~found & ~has).sum()), int((~has).sum())),
        _share(int((found & has).sum()), int(found.sum())),
    )


def auc_with_interval(
    positives: Float[np.ndarray, " positives"], negatives: Float[np.ndarray, " negatives"]
) -> tuple[float, float, float]:
    """Return the share of pairs in which the positive has the higher score (a tie counts half), and its 95 % interval.

    The interval is between percentiles over draws with replacement of as many positives and as many negatives.
    """
    if len(positives) == 0 or len(negatives) == 0:
        return UNDEFINED
    one, other = positives[:, None], negatives[None]
    higher = (one > other) + 0.5 * (one == other)
    random = np.random.default_rng(SEED)
    weights = [
        random.multinomial(count, np.full(count, 1 / count), size=DRAWS) / count
        for count in (len(positives), len(negatives))
    ]
    drawn = np.einsum("dn,dn->d", weights[0] @ higher, weights[1])
    low, high = np.percentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(higher.mean()), float(low), float(high)


def _share(part: int, whole: int) -> tuple[float, float, float]:
    if whole == 0:
        return UNDEFINED
    interval = binomtest(part, whole).proportion_ci(LEVEL, method="wilson")
    return part / whole, float(interval.low), float(interval.high)
