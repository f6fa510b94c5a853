"""A simulated cohort: many subjects made of one real scan."""

from dataclasses import replace

from lightning_atlas.data.cases import Case, DrawnOn, Source, Split
from lightning_atlas.data.embedded import Scan, embedded_case
from lightning_atlas.data.variation import Variation

FIRST_NUMBER: dict[Split, int] = {"train": 0, "val": 8000, "test": 9000}
"""Numbers of the splits lie apart, so that a larger cohort keeps the subjects of a smaller one."""


class SimulatedCohort(Source):
    """A simulated cohort of one real scan: seeded smooth warps, changes of intensity and noise.

    It shows mechanics and regressions; it is no evidence about patients, since all its subjects are one person.

    Args:
        scan: The embedded scan that the subjects are made of.
        train: Number of training subjects.
        val: Number of validation subjects.
        test: Number of test subjects.
        displacement_mm: No voxel is moved farther than this by the warp.
        drawn_planes: Planes, counted upwards from 0, on which training subjects are annotated; `null` for all.
            Validation and test subjects are annotated throughout.
        drawn: Structures that are annotated in training subjects; `null` for all.
        seed: Another seed gives other subjects.
    """

    def __init__(
        self,
        scan: Scan = "abdomen_ct",
        train: int = 8,
        val: int = 2,
        test: int = 2,
        displacement_mm: float = 12.0,
        drawn_planes: list[int] | None = None,
        drawn: list[str] | None = None,
        seed: int = 0,
    ) -> None:
        self.scan: Scan = scan
        self.sizes: dict[Split, int] = {"train": train, "val": val, "test": test}
        self.displacement_mm = displacement_mm
        self.drawn_planes = None if drawn_planes is None else tuple(drawn_planes)
        self.drawn = None if drawn is None else tuple(drawn)
        self.seed = seed
        self.modality = embedded_case(scan, "train").modality

    def cases(self) -> list[Case]:
        """Return the training, then the validation, then the test subjects."""
        return [self._case(split, number) for split, size in self.sizes.items() for number in range(size)]

    @property
    def description(self) -> str:
        """One line for reports: it is simulated, and of what."""
        sizes = " + ".join(str(size) for size in self.sizes.values())
        return f"simulated cohort (smooth warps of one scan, {self.scan}), {sizes} subjects"

    def _case(self, split: Split, number: int) -> Case:
        real = embedded_case(self.scan, split)
        number = FIRST_NUMBER[split] + number
        case = replace(
            real,
            subject=f"simulated-{self.scan}-{number:04d}",
            variation=Variation(self.seed, number, self.displacement_mm, real.modality or ""),
        )
        if split != "train":
            return case
        drawn_on = () if self.drawn_planes is None else (DrawnOn(planes=self.drawn_planes),)
        return replace(case, drawn=self.drawn, drawn_on=drawn_on)
