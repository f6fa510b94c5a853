import logging
from collections import Counter
from dataclasses import replace

import lightning
import pytest
import torch
import torchio as tio
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint
from torchio.transforms import RandomGamma, ToCanonical

from lightning_atlas.data import (
    Classes,
    EmbeddedScan,
    Mixture,
    Patches,
    ScanDataModule,
    ScanFolder,
    SimulatedCohort,
    Targets,
)
from lightning_atlas.data.augmentation.augment import BatchAugmentation
from lightning_atlas.data.cases import Case, Source
from lightning_atlas.data.embedded import HERE
from lightning_atlas.data.sources.splits import Splits

RECIPE = """
class_path: ScanDataModule
init_args:
  source: {class_path: SimulatedCohort, init_args: {scan: spine_mr, train: 1, val: 1, test: 0, drawn_planes: [6, 13]}}
  classes: {cord: [spinal_cord], articular: ["*_articular_*"]}
  preprocess:
    - {class_path: torchio.ToCanonical}
    - {class_path: torchio.Resample, init_args: {target: 1.5}}
    - {class_path: torchio.RescaleIntensity, init_args: {out_min_max: [-1, 1], percentiles: [0.5, 99.5]}}
  augment:
    - {class_path: RandomGamma}
  patches: {class_path: Patches, init_args: {size: [8, 8, 8], per_epoch: 4, foreground: 0.67}}
"""


class Recorder(lightning.LightningModule):
    """Remembers the patches it is shown."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, batch_index):
        self.seen.append((self.current_epoch, batch_index, float(batch["image"].double().sum())))
        return (self.weight * batch["image"].mean()).sum()

    def validation_step(self, batch, batch_index):
        pass

    def predict_step(self, batch, batch_index):
        return batch["subject"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "level", logging.ERROR)

    def build(**settings):
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        return lightning.Trainer(accelerator="cpu", default_root_dir=tmp_path, **quiet, **settings)

    return build


def parsed(text):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(lightning.LightningDataModule, "data")
    config = parser.parse_object({"data": yaml.safe_load(text)})
    return parser, config


def test_a_recipe_builds_it_and_prints_what_builds_it_again():
    parser, config = parsed(RECIPE)
    data = parser.instantiate(config).data
    printed = parser.dump(config)
    again = parser.instantiate(parser.parse_object(yaml.safe_load(printed))).data
    assert data.contract == again.contract
    assert data.contract.classes == ("cord", "articular")
    assert data.contract.spacing_mm == (1.5, 1.5, 1.5)
    assert data.patches == again.patches == Patches((8, 8, 8), 4, 0.67)
    assert isinstance(again.augment[0], RandomGamma)
    data.setup("fit")
    assert next(iter(data.train_dataloader()))["image"].shape == (2, 1, 8, 8, 8)


def test_training_batches_have_what_the_types_say(spine):
    data = spine()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 1, 16, 16, 16)
    assert batch["label"].shape == (2, 16, 16, 16)
    assert batch["states"].shape == batch["drawn"].shape == (2, 15, 3)
    assert batch["states"].dtype == torch.int8
    assert torch.allclose(batch["spacing_mm"], torch.tensor(1.5))
    assert len(list(data.train_dataloader())) == data.batches_per_epoch == 6
    assert batch["label"].max() < 15


def test_whole_scans_come_one_by_one_and_are_told_apart(spine):
    data = spine(SimulatedCohort("spine_mr", 1, 2, 1))
    data.setup("fit")
    batches = list(data.val_dataloader())
    assert [batch["index"].tolist() for batch in batches] == [[0], [1]]
    assert [batch["subject"] for batch in batches] == [["simulated-spine_mr-8000"], ["simulated-spine_mr-8001"]]
    assert torch.equal(batches[1]["label"], data.whole("val", 1)["label"])


@pytest.mark.parametrize("limit", [1.0, 3])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_sees_what_the_uninterrupted_one_saw(spine, trainer, tmp_path, limit, workers):
    def fit(resume=None, **settings):
        module = Recorder()
        run = trainer(max_epochs=2, limit_train_batches=limit, num_sanity_val_steps=1, **settings)
        run.fit(module, spine(num_workers=workers), ckpt_path=resume, weights_only=False)
        return module.seen

    whole = fit(enable_checkpointing=False)
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1, enable_version_counter=False)
    assert fit(callbacks=[every]) == whole
    for step in range(1, len(whole)) if workers == 0 else (2, len(whole) // 2):
        assert fit(tmp_path / f"step={step}.ckpt", enable_checkpointing=False) == whole[step:]


def test_a_resume_is_not_warned_of(spine, trainer, tmp_path, recwarn):
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1, enable_version_counter=False)
    trainer(max_epochs=1, callbacks=[every]).fit(Recorder(), spine())
    trainer(max_epochs=1, callbacks=[every]).fit(
        Recorder(), spine(), ckpt_path=tmp_path / "step=2.ckpt", weights_only=False
    )
    assert not [warning for warning in recwarn if "not resumable" in str(warning.message)]


def test_overfitting_on_some_batches_repeats_them(spine, trainer):
    module = Recorder()
    trainer(max_epochs=2, overfit_batches=2, enable_checkpointing=False).fit(module, spine())
    assert [each[2] for each in module.seen[:2]] == [each[2] for each in module.seen[2:]]


def test_a_source_without_validation_trains(spine, trainer):
    module = Recorder()
    trainer(max_epochs=1, enable_checkpointing=False).fit(module, spine(SimulatedCohort("spine_mr", 1, 0, 0)))
    assert len(module.seen) == 6


def test_scans_without_labels_are_predicted_with_the_classes_of_the_recipe(spine, trainer, tmp_path):
    folder = tmp_path / "nouveaux scans é"
    folder.mkdir()
    for name in ("spine_mr.nii.gz", "chest_ct.nrrd"):
        (folder / name).write_bytes((HERE / name).read_bytes())
    data = spine(ScanFolder(folder))
    assert data.contract.classes == ("cord", "articular", "disc")
    assert trainer().predict(Recorder(), data) == [["chest_ct"], ["spine_mr"]]
    batch = data.whole("predict", 0)
    assert batch["states"].shape == (1, 1, 3)
    assert (batch["states"][0, 0] == -1).all()
    shape = tio.ScalarImage(folder / "chest_ct.nrrd").spatial_shape
    assert data.restore(batch["label"][0], "chest_ct").spatial_shape == shape


def test_without_scans_to_predict_the_test_scans_are_taken(spine, trainer):
    assert trainer().predict(Recorder(), spine()) == [["simulated-spine_mr-9000"]]


class Doubled(Source):
    """The same subject in two splits."""

    @property
    def description(self):
        return "a mistake"

    def cases(self):
        return [EmbeddedScan("spine_mr", split).case for split in ("train", "test")]


def answered(spine, kind, told):
    """Three scans to train on and one to validate on; what is told of each."""
    patches = Patches((4, 4, 4), per_epoch=12, foreground=0.0)
    source = SimulatedCohort("spine_mr", 3, 1, 0)
    data = spine(source, targets=Targets(kind, ["a", "b"]), classes=None, augment=[], patches=patches, batch_size=4)
    data.cases = [replace(case, target=target) for case, target in zip(data.cases, told, strict=True)]
    data.setup("fit")
    return data


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("class", [1, -1, 0, -1]),
        ("labels", [{"a": 0}, {}, {"b": 1}, {}]),
        ("values", [{"a": 2.5, "b": -1}, {}, {"b": -1}, {}]),
    ],
)
def test_scans_of_which_nothing_is_known_are_not_trained_on(spine, capsys, kind, told):
    data = answered(spine, kind, told)
    capsys.readouterr()
    data.prepare_data()
    assert "note: 1 of 3 training scans are left out: their target is not known\n" in capsys.readouterr().out
    batches = list(data.train_dataloader())
    assert len(batches) == data.batches_per_epoch == 3
    subjects = Counter(subject for batch in batches for subject in batch["subject"])
    first, _, third = data.subjects("train")
    assert subjects == {first: 6, third: 6}
    assert [batch["subject"] for batch in data.val_dataloader()] == [data.subjects("val")]


def test_a_training_of_which_no_target_is_known_is_refused(spine):
    with pytest.raises(ValueError, match="the target of no training scan is known"):
        answered(spine, "class", [-1, -1, -1, 0]).train_dataloader()


def test_a_subject_in_two_splits_is_refused(spine):
    with pytest.raises(ValueError, match="subject spine_mr stands in train and again in test"):
        spine(Doubled()).prepare_data()


def test_a_split_without_subjects_is_told(spine):
    with pytest.raises(
        ValueError, match=r"one real scan \(spine_mr\): no subject stands in train; there are subjects in test"
    ):
        spine(EmbeddedScan("spine_mr")).train_dataloader()


def test_preparing_is_told_once_in_one_line(spine, capsys):
    spine().prepare_data()
    spine().prepare_data()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("scans: 5 prepared in ")
    assert first.isprintable()
    assert "scans: 0 prepared" in second
    assert "5 prepared before" in second


def test_a_report_says_what_the_numbers_are_from(spine):
    text = spine().describe()
    assert "simulated cohort (smooth warps of one scan, spine_mr), 3 + 1 + 1 subjects; 3 classes; RAS" in text
    assert "patches 16x16x16, 2 a step, 12 an epoch" in text


def test_sparse_and_partly_drawn_training_cases_have_fully_drawn_validation(spine):
    data = spine(SimulatedCohort("spine_mr", 1, 1, 0, drawn_planes=[10], drawn=["spinal_cord"]))
    data.setup("fit")
    train, val = data.whole("train", 0), data.whole("val", 0)
    assert train["label"].flatten(0, 2).any(dim=0).nonzero().flatten().tolist() == [10]
    assert train["drawn"].any(dim=1).tolist() == [[True, False, False]]
    assert val["drawn"].any(dim=1).tolist() == [[True, True, True]]
    assert set(train["states"][0, 1].tolist()) == {0, -1}


def test_classes_may_be_null():
    data = ScanDataModule(EmbeddedScan("chest_ct"), None, [ToCanonical()])
    assert data.contract.classes == EmbeddedScan("chest_ct").case.names


def test_batches_are_augmented_on_the_device_in_training_only(spine, trainer):
    data = spine(augment=BatchAugmentation(), classes={"disc": ["vertebra_disc"]})
    module = Recorder()
    trainer(max_epochs=1, enable_checkpointing=False).fit(module, data)
    assert data.contract.mirrored_axes == ("i", "j", "k")
    again = Recorder()
    trainer(max_epochs=1, enable_checkpointing=False).fit(
        again, spine(augment=BatchAugmentation(), classes={"disc": ["vertebra_disc"]}, num_workers=2)
    )
    plain = Recorder()
    trainer(max_epochs=1, enable_checkpointing=False).fit(plain, spine(augment=[], classes={"disc": ["vertebra_disc"]}))
    assert module.seen == again.seen
    assert not set(module.seen) & set(plain.seen)


def test_a_class_that_no_scan_tells_is_refused(spine):
    with pytest.raises(ValueError, match="no scan tells where liver is: nobody drew it"):
        _ = spine(classes={"liver": ["liver"]}).contract


def test_subjects_say_of_which_dataset_they_are(spine):
    sources = {name: SimulatedCohort("spine_mr", 1, count, 1, seed=count) for name, count in (("a", 1), ("b", 2))}
    data = spine(Mixture(sources))
    assert data.datasets("val") == ["a", "b", "b"]
    assert data.datasets("predict") == data.datasets("test") == ["a", "b"]
    assert [len(data.subjects(split)) for split in ("val", "predict")] == [3, 2]
    assert spine().datasets("test") == ["unnamed"]


@pytest.mark.parametrize("exclusive", [True, False])
def test_the_contract_says_whether_classes_overlap_also_of_scans_without_labels(spine, exclusive, tmp_path):
    (tmp_path / "scan.nii.gz").write_bytes((HERE / "spine_mr.nii.gz").read_bytes())
    classes = Classes({"cord": ["spinal_cord"]}, exclusive=exclusive)
    for source in (None, ScanFolder(tmp_path)):
        assert spine(source, classes=classes).contract.overlapping is not exclusive
    assert not spine(classes={"cord": ["spinal_cord"]}).contract.overlapping


def test_classes_that_overlap_share_voxels_of_a_label(spine):
    nested = {"canal": ["spinal_canal", "spinal_cord"], "cord": ["spinal_cord"]}
    data = spine(classes=Classes(nested, exclusive=False))
    case = data.whole("test", 0)
    canal, cord = (case["states"][0] == 1)[case["label"][0].long()].unbind(-1)
    assert (cord & canal).sum() == cord.sum() > 0
    assert canal.sum() > cord.sum()
    with pytest.raises(ValueError, match="spinal_cord would belong to canal and to cord"):
        _ = spine(classes=nested).contract


def test_folds_differ_in_one_key(spine):
    source = SimulatedCohort("spine_mr", 6, 0, 0)
    parts = [spine(source, splits=Splits(test_share=0.0, folds=3), fold=fold) for fold in range(3)]
    held = [set(data.subjects("val")) for data in parts]
    assert sorted(name for each in held for name in each) == sorted(
        parts[0].subjects("val") + parts[0].subjects("train")
    )


def test_channels_are_the_contracts_and_must_be_the_same_everywhere(tmp_path):
    (tmp_path / "scan.nii.gz").write_bytes((HERE / "spine_mr.nii.gz").read_bytes())

    class Listed(Source):
        def __init__(self, *channels):
            self.channels = channels

        def cases(self):
            scan = tmp_path / "scan.nii.gz"
            files = [dict(zip(names, [scan] * len(names), strict=True)) for names in self.channels]
            return [Case(str(n), "predict", each) for n, each in enumerate(files)]

        @property
        def description(self):
            return "listed"

    assert ScanDataModule(Listed(("T1", "T2"), ("T1", "T2"))).contract.channels == ("T1", "T2")
    assert ScanDataModule(Listed(("CT",))).contract.channels == ("image",)
    with pytest.raises(ValueError, match="1 has the channels T1, but 0 has T1, T2"):
        _ = ScanDataModule(Listed(("T1", "T2"), ("T1",))).contract
