"""From photographs to weights by commands alone, and what is said where photographs are not scans."""

from PIL import Image

from lightning_atlas.cli import main

NO_SCORES = "{class_path: DrawnPictures, init_args: {train: 2, val: 0, test: 0, size: [32, 32]}}"


def test_a_fit_without_cases_to_score_ends_with_its_files_and_its_export_does_not_predict(tmp_path, capsys):
    small = ["--model.network.features=4", f"--data.source={NO_SCORES}", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", "pretrain/vdt_cifar10", "machine/smoke_pictures", *small]) == 0
    run = next(tmp_path.rglob("recipe.yaml")).parent
    out = capsys.readouterr().out
    assert "nothing was scored: no case stands in val or test" in out
    assert "checkpoints/last.ckpt" in out
    assert main(["export", str(run), "--output", str(tmp_path / "weights")]) == 0
    out = capsys.readouterr().out
    assert "start from it:" in out
    assert "predict with it:" not in out
    words = ["--weights", str(tmp_path / "weights"), "--input", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main(["predict", *words]) == 2
    assert "trained on photographs, which weights alone do not read" in capsys.readouterr().err


def test_photographs_are_not_prepared_by_a_recipe(tmp_path, capsys):
    for kind in ("cat", "dog"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / kind / "0.png")
    assert main(["prepare", str(tmp_path / "photos"), "--recipe", str(tmp_path / "my.yaml")]) == 2
    assert "holds photographs (imagefolder), which are read as they are" in capsys.readouterr().err
