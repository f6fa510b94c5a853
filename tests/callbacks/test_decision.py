from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader

from lightning_atlas.callbacks.decision import PatientDecision, decision_table
from lightning_atlas.contract import Contract
from lightning_atlas.inference import SlidingWindow
from lightning_atlas.tasks import Segmentation

CLASSES = ("organ", "lesion")
STATES = torch.tensor([[-1, -1], [0, 0], [1, 0], [0, 1], [1, -1]], dtype=torch.int8)
"""Unknown; neither; organ; lesion; organ where nobody looked for the lesion."""


class Toy(LightningModule):
    """Predicts what each case says is to be predicted."""

    def __init__(self):
        super().__init__()
        self.contract = Contract(classes=CLASSES)
        self.network = torch.nn.Identity()
        self.task = Segmentation(SlidingWindow((8, 8, 8), overlap=0.0))
        self.results = {}

    def test_step(self, batch, batch_idx):
        logits = batch["logits"]
        return {"prediction": self.task.decode(logits), "logits": logits}


class People(LightningDataModule):
    """Cases of 8 x 8 x 8 voxels: a slab of organ, and on it what each case is to have."""

    def __init__(self, owners, cases):
        super().__init__()
        self.owners = owners
        self.batches: Any = [self._case(number, **case) for number, case in enumerate(cases)]

    def patients(self, split):
        return self.owners

    def subjects(self, split):
        return [f"{owner}_{number}" for number, owner in enumerate(self.owners)]

    def test_dataloader(self):
        return DataLoader(self.batches, batch_size=None)

    def _case(self, number, truth, predicted, strength=4.0, looked=True, side_mm=1.0):
        label = torch.ones(1, 8, 8, 8, dtype=torch.int16)
        label[:, :4] = 2 if looked else 4
        if truth:
            label[:, 4:6, :4, :4] = 3
        logits = torch.zeros(1, 3, 8, 8, 8)
        logits[:, 0] = 2
        logits[:, 1, :4] = 4
        if predicted:
            logits[:, 2, 4:6, :4, :4] = strength
        tables = {"states": STATES[None], "drawn": (STATES >= 0)[None], "spacing_mm": torch.full((1, 3), side_mm)}
        return {"label": label, "logits": logits, "index": torch.tensor([number]), **tables}


@pytest.fixture
def decided(make_trainer, tmp_path):
    """Tests with the callback: owners of the cases, the cases, the callback's arguments -> its results, the metrics."""

    def run(owners, cases, *arguments):
        callback = PatientDecision(*arguments)
        trainer = make_trainer(callback, default_root_dir=tmp_path, enable_progress_bar=False)
        trainer.test(Toy(), People(owners, cases), verbose=False)
        return callback.results, trainer.callback_metrics

    return run


def test_the_decisions_are_those_of_patients(decided):
    cases = [
        {"truth": True, "predicted": False},
        {"truth": True, "predicted": True},
        {"truth": False, "predicted": False},
        {"truth": False, "predicted": True, "strength": 2.5},
        {"truth": False, "predicted": True, "looked": False},  # nobody knows of d
    ]
    results, metrics = decided(["a", "a", "b", "c", "d"], cases, "organ", {"lesion": 30.0})
    found = results["lesion"]
    assert (found.positives, found.negatives) == (1, 2)
    assert (found.sensitivity[0], found.specificity[0], found.ppv[0]) == (1.0, 0.5, 0.5)
    assert found.auc[0] == float(metrics["test/auc/lesion"]) == 1.0


TWO = [{"truth": True, "predicted": True}, {"truth": False, "predicted": False}]


def test_a_component_below_the_least_size_and_a_scan_that_is_not_judged_do_not_count(decided):
    small = decided(["a", "b"], TWO, "organ", {"lesion": 32.5})[0]["lesion"]
    assert small.sensitivity[0] == 0.0
    other = decided(["a", "b"], TWO, "organ", {"lesion": 0.0}, {"lesion": "*_1"})[0]["lesion"]
    assert (other.positives, other.negatives) == (0, 1)


def test_a_component_counts_by_its_volume_in_each_case(decided):
    """32 voxels are 4 mm3 at 0.5 mm a side, and 108 mm3 at 1.5 mm."""
    found = [{**TWO[0], "side_mm": side_mm} for side_mm in (0.5, 1.5)]
    for least_mm3, share in ((4.0, 1.0), (5.0, 0.5), (108.0, 0.5), (109.0, 0.0)):
        assert decided(["a", "b"], found, "organ", {"lesion": least_mm3})[0]["lesion"].sensitivity[0] == share


def test_the_table_has_a_line_for_each_lesion_its_least_volume_and_its_intervals(decided):
    lesions = {"lesion": 3.75}
    line = decision_table(decided(["a", "b"], TWO, "organ", lesions)[0], lesions).splitlines()[1]
    assert line.split()[:5] == ["lesion", ">=", "3.75", "mm3", "1/2"]
    assert "1.000 [0.207, 1.000]" in line  # Wilson's interval of 1 in 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("organ", {}), "write class: least volume in mm3"),
        (("organ", {"lesion": -1.0}), "write class: least volume in mm3"),
        (("organ", {"lesion": 3.0}, {"leison": "*"}), "leison, which is none of the lesions"),
    ],
)
def test_rules_that_cannot_be_are_refused(arguments, told):
    with pytest.raises(ValueError, match=told):
        PatientDecision(*arguments)


def test_a_class_that_the_run_does_not_have_is_told_before_anything_is_scored(decided):
    with pytest.raises(ValueError, match="liver is no class of this run, which has organ, lesion"):
        decided(["a"], TWO[:1], "liver", {"lesion": 3.0})
