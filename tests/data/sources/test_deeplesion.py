import json
import tracemalloc
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from PIL import Image
from torchio.transforms import Clamp, RandomFlip, RescaleIntensity, ToOrientation

from lightning_atlas.data import Patches, ScanDataModule, ScanLayout, SourceBoxes
from lightning_atlas.data.slab import Slab
from lightning_atlas.data.sources.layouts import read_layout
from lightning_atlas.data.store.reading import read_channels

COLUMNS = (
    "File_name,Patient_index,Study_index,Series_ID,Key_slice_index,Measurement_coordinates,Bounding_boxes,"
    "Lesion_diameters_Pixel_,Normalized_lesion_location,Coarse_lesion_type,Possibly_noisy,Slice_range,Spacing_mm_px_,"
    "Image_size,DICOM_windows,Patient_gender,Patient_age,Train_Val_Test"
)
SIDES = (24, 16)


def line(series="000001_01_01", number=110, box=(5, 4, 11, 9), noisy=0, interval=5.0, split=1):
    cells = [f"{series}_{number:03d}.png", "1", "1", "1", str(number), "1, 1, 2, 2, 1, 2, 2, 1"]
    cells += [", ".join(f"{side:g}" for side in box), "6, 5", "0.5, 0.5, 0.5", "-1", str(noisy), f"{number}, {number}"]
    cells += [f"0.8, 0.8, {interval}", "16, 24", "-175, 275", "F", "60", str(split)]
    return ",".join(f'"{cell}"' for cell in cells)


def plane(number):
    """Return a slice, rows first, of which each value says where it is: ten for a slice, and one for a column."""
    return (32768 + 10 * number + np.arange(SIDES[0])[None] + np.zeros((SIDES[1], 1))).astype(np.uint16)


def written(folder, lines, numbers: Iterable[int] = range(100, 121), series="000001_01_01", inner="Images_png"):
    (folder / inner / series).mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.fromarray(plane(number)).save(folder / inner / series / f"{number:03d}.png")
    (folder / "DL_info.csv").write_text("\n".join([COLUMNS, *lines]) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("interval", [0.625, 1.0, 1.25, 2.0, 2.5, 3.0, 3.75, 4.0, 5.0, 7.5])
def test_nine_planes_lie_where_they_should_at_every_interval(tmp_path, interval):
    written(tmp_path, [line(interval=interval)], range(90, 131))
    (case,) = read_layout(tmp_path).cases
    image = read_channels(case)
    assert image.shape == (1, *SIDES, 9)
    # values rise by ten a slice, so what is read says the place; a column more is one more
    wanted = 10 * (110 + np.arange(-4, 5) * 2.5 / interval)
    assert np.allclose(image.data[0, 0, 0], wanted, atol=1e-3)
    assert np.allclose(image.data[0, 7, 3], wanted + 7, atol=1e-3)
    assert np.allclose(np.diag(image.affine), [-0.8, -0.8, -2.5, 1])


def test_the_ends_of_a_volume_repeat_the_nearest_slice(tmp_path):
    written(tmp_path, [line(interval=2.0)], [107, 108, 109, 110, 111, 113])
    (case,) = read_layout(tmp_path).cases
    values = read_channels(case).data[0, 0, 0]
    assert np.allclose(values, [1070, 1070, 1075, 1087.5, 1100, 1110, 1110, 1110, 1110], atol=1e-3)
    assert case.slab is not None
    files = case.slab.files(case.channels["image"])
    assert [file.name for file in files] == [f"{number}.png" for number in range(107, 112)]


@pytest.mark.parametrize("interval", [float("nan"), 0.0, -1.0])
def test_an_unknown_interval_repeats_the_slice(tmp_path, interval):
    written(tmp_path, [line(interval=interval)])
    result = read_layout(tmp_path)
    assert read_channels(result.cases[0]).data[0, 0, 0].unique().tolist() == [1100]
    assert any("interval is not known" in note for note in result.notes)


def test_the_table_gives_split_patient_and_boxes(tmp_path):
    lines = [
        line(box=(5, 4, 11, 9)),
        line(box=(12.5, 2, 20, 6)),
        line(number=104, split=2),
        line(number=105, split=3, noisy=1),
        line("000002_01_01", 7, split=3),
    ]
    written(tmp_path, lines)
    result = read_layout(tmp_path)
    assert result.layout == "deeplesion"
    first, second, third = result.cases
    assert (first.subject, first.patient, first.split, first.modality) == ("000001_01_01_110", "000001", "train", "CT")
    # the table counts from 1
    assert first.boxes == ((4, 3, 4, 10, 8, 5, 0), (11.5, 1, 4, 19, 5, 5, 0))
    assert (second.split, third.split) == ("val", "test")
    assert any("1 lesions that the table calls possibly noisy are taken" in note for note in result.notes)
    assert any("1 of 4 slices have no picture" in note for note in result.notes)


def test_the_json_form_says_the_same(tmp_path):
    written(tmp_path, [line(split=2, interval=2.0, noisy=1)], inner="Images_png/Images_png")
    (told,) = read_layout(tmp_path).cases
    (tmp_path / "DL_info.csv").unlink()
    slices = [
        {"file_name": "000001_01_01/110.png", "height": 16, "width": 24, "id": 7, "slice_no": 110, "spacing": 0.8}
        | {"slice_intv": 2.0, "z_position": 0.6, "windows": [-175.0, 275.0]}
    ]
    boxes = [{"image_id": 7, "id": 1, "category_id": 1, "bbox": [4, 3, 6, 5], "iscrowd": 0}]
    document = {"info": {}, "images": slices, "annotations": boxes, "categories": [{"id": 1, "name": "lesion"}]}
    (tmp_path / "annotation").mkdir()
    (tmp_path / "annotation" / "deeplesion_val.json").write_text(json.dumps(document), encoding="utf-8")
    (case,) = read_layout(tmp_path).cases  # and it is not taken for COCO
    assert case == told


def test_marked_slices_alone_are_repeated(tmp_path):
    (tmp_path / "Key_slices").mkdir()
    Image.fromarray(plane(110)).save(tmp_path / "Key_slices" / "000001_01_01_110.png")
    (tmp_path / "DL_info.csv").write_text("\n".join([COLUMNS, line()]), encoding="utf-8")
    result = read_layout(tmp_path)
    assert read_channels(result.cases[0]).data[0, 3, 0].unique().tolist() == [1103]
    assert any("of 1 slices no neighbour is here: their planes are nine times" in note for note in result.notes)


@pytest.mark.parametrize("neighbour", [109, 111])
def test_a_slice_with_a_neighbour_is_not_said_to_be_alone(tmp_path, neighbour):
    result = read_layout(written(tmp_path, [line()], [110, neighbour]))
    assert len(read_channels(result.cases[0]).data[0, 0, 0].unique()) > 1
    assert not any("neighbour" in note for note in result.notes)


def test_training_sees_boxes_over_all_planes_where_the_lesion_is(tmp_path):
    lines = [line(number=104), line("000002_01_01", box=(1, 1, 9, 9), split=2)]
    for series in ("000001_01_01", "000002_01_01"):
        written(tmp_path, lines, series=series)
    for series, number in (("000001_01_01", 104), ("000002_01_01", 110)):  # a dark lesion where the box is
        dark = plane(number)
        dark[slice(3, 8) if number == 104 else slice(0, 8), slice(4, 10) if number == 104 else slice(0, 8)] -= 900
        Image.fromarray(dark).save(tmp_path / "Images_png" / series / f"{number}.png")
    data = ScanDataModule(
        ScanLayout(tmp_path),
        boxes=SourceBoxes(["lesion"], planar=True),
        preprocess=[ToOrientation("LPS"), Clamp(-1024, 1050), RescaleIntensity((0, 255), in_min_max=(-1024, 1050))],
        augment=[RandomFlip((0,)), RandomFlip((2,))],
        patches=Patches((*SIDES, 9), per_epoch=8),
        batch_size=1,
    )
    contract = data.contract
    assert (contract.orientation, contract.classes, contract.predicts) == ("LPS", ("lesion",), "boxes")
    assert contract.mirrored_axes == ("i", "k")
    data.prepare_data()
    data.setup("fit")
    seen = set()
    for batch in data.train_dataloader():
        (boxes,) = batch["boxes"]
        assert batch["image"].shape == (1, 1, *SIDES, 9)
        i0, j0, k0, i1, j1, k1 = map(int, boxes.corners[0])
        assert (k0, k1) == (0, 9)
        inside = torch.zeros(SIDES, dtype=torch.bool)
        inside[i0:i1, j0:j1] = True
        marked = batch["image"][0, 0, :, :, 4]
        assert marked[inside].max() < marked[~inside].min()
        seen.add(i0)
    assert seen == {4, 14}


def test_another_slice_beside_it_makes_another_store(tmp_path):
    from lightning_atlas.data.store.keys import store_key

    written(tmp_path, [line()])
    (case,) = read_layout(tmp_path).cases
    before = store_key(case, [])
    Image.fromarray(plane(3)).save(tmp_path / "Images_png" / "000001_01_01" / "111.png")
    assert store_key(case, []) != before
    assert store_key(case, []) != store_key(case.__class__(**{**vars(case), "slab": Slab((0.8, 0.8, 4.0))}), [])


def test_memory_grows_with_the_slices_not_with_their_square(tmp_path):
    def peak(count):
        lines = [line(number=number, split=1 + number % 3) for number in range(count)]
        folder = tmp_path / str(count)
        written(folder, lines, range(1))
        for number in range(count):
            (folder / "Images_png" / "000001_01_01" / f"{number:03d}.png").touch()
        tracemalloc.start()
        assert len(read_layout(folder, "deeplesion").cases) == count
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    few, many = peak(40), peak(160)
    assert many < 5 * few


def test_faults_are_told(tmp_path):
    folder = written(tmp_path, [line(box=(9, 4, 5, 9)), line(box=(1, 2, 3, 4))])
    assert "1 boxes without an extent are left out" in read_layout(folder).notes
    written(tmp_path, [line(split=4)])
    with pytest.raises(ValueError, match=r"DL_info\.csv, line 2, is not as the release has it: '4'"):
        read_layout(folder)
    written(tmp_path, [line("000009_01_01")])
    with pytest.raises(ValueError, match=r"no picture Images_png/000009_01_01/110\.png; unzip"):
        read_layout(folder)
    Image.fromarray(plane(111)[:, :7]).save(folder / "Images_png" / "000001_01_01" / "111.png")
    written(tmp_path, [line(interval=2.5)], [110])
    (case,) = read_layout(folder).cases
    with pytest.raises(ValueError, match="unlike sizes"):
        read_channels(case)
    with pytest.raises(ValueError, match="odd number of planes"):
        Slab((1.0, 1.0, 1.0), planes=4)
