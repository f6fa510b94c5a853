from jsonargparse import ArgumentParser

from lightning_atlas.data import EmbeddedScan, Mixture, Patches, ScanDataModule, SimulatedCohort, Source
from lightning_atlas.data.cases import Case

RECIPE = """
source:
  class_path: Mixture
  init_args:
    datasets:
      ct: {class_path: SimulatedCohort, init_args: {scan: spine_ct, train: 1, val: 1, test: 0}}
      mr: {class_path: SimulatedCohort, init_args: {scan: spine_mr, train: 2, val: 0, test: 0}}
"""


class Two(Source):
    """Two scans whose names another source has too."""

    def cases(self):
        return [Case(name, "train", self.folder / name) for name in ("a", "B")]

    def __init__(self, folder):
        self.folder = folder

    @property
    def description(self):
        return "two"


def test_subjects_that_are_called_alike_get_the_datasets_name(tmp_path):
    cases = Mixture({"one": Two(tmp_path), "other": Two(tmp_path)}).cases()
    assert [case.subject for case in cases] == ["one-a", "one-B", "other-a", "other-B"]
    assert [case.dataset for case in cases] == ["one", "one", "other", "other"]
    assert [case.patient for case in cases] == ["a", "B", "a", "B"]


def test_a_recipe_mixes_datasets_and_says_so():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Source, "source")
    source = parser.instantiate_classes(parser.parse_string(RECIPE))["source"]
    assert [case.dataset for case in source.cases()] == ["ct", "ct", "mr", "mr"]
    assert "spine_ct" in source.description
    assert "spine_mr" in source.description


def test_each_dataset_keeps_what_it_drew():
    """What only the MR has drawn is unknown in the CT, and no background there."""
    names = {scan: EmbeddedScan(scan).case.names for scan in ("spine_ct", "spine_mr")}
    only_ct = next(name for name in names["spine_ct"] if name not in names["spine_mr"])
    only_mr = next(name for name in names["spine_mr"] if name not in names["spine_ct"])
    datasets = {
        "ct": SimulatedCohort("spine_ct", 1, 0, 0, drawn=[only_ct]),
        "mr": SimulatedCohort("spine_mr", 1, 0, 0, drawn=[only_mr]),
    }
    patches = Patches((16, 16, 16), per_epoch=20, shares={"ct": 1.0, "mr": 3.0})
    data = ScanDataModule(Mixture(datasets), {"ours": [only_ct], "theirs": [only_mr]}, [], patches=patches)
    data.setup("fit")
    first, second = data.opened["train"]
    assert first.table.drawn.any(axis=0).tolist() == [True, False]
    assert second.table.drawn.any(axis=0).tolist() == [False, True]
    assert (first.table.background != 1).all()
    subjects = [subject for batch in data.train_dataloader() for subject in batch["subject"]]
    assert sum(subject.startswith("simulated-spine_mr") for subject in subjects) == 15
