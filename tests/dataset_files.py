"""Files as published datasets lie on disk, small and without meaning."""

import itertools

import nibabel as nib
import numpy as np
from PIL import Image

from lightning_atlas.data.labels.vocabulary import load_vocabulary

SIDE, SPACING = 24, 3.0


def volume(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.diag([SPACING] * 3 + [1.0])), path)


def scan(path, seed=0):
    noise = np.random.default_rng(seed).normal(0, 100, (SIDE,) * 3)
    volume(path, noise.astype(np.int16))


def slabs(count):
    """Values 1 to `count`, each in a slab of its own along j."""
    edges = np.linspace(2, SIDE - 2, count + 1)
    values = np.zeros((SIDE,) * 3, np.uint8)
    for value, (low, high) in enumerate(itertools.pairwise(edges), start=1):
        values[4:20, round(low) : max(round(high), round(low) + 1), 4:20] = value
    return values


def case_folder(folder, names):
    scan(folder / "ct.nii.gz")
    values = slabs(len(names))
    for value, name in enumerate(names, start=1):
        volume(folder / "segmentations" / f"{name}.nii.gz", (values == value).astype(np.uint8))


def totalsegmentator(root, group, version="v1"):
    names = load_vocabulary(f"totalsegmentator_{version}").groups[group]
    splits = {"s0000": "train", "s0001": "train", "s0002": "val", "s0003": "test"}
    for name in splits:
        case_folder(root / name, names)
    rows = [f"{name};50;m;{split}" for name, split in splits.items()]
    (root / "meta.csv").write_text("\n".join(["image_id;age;gender;split", *rows]), encoding="utf-8")


def imagecas(root):
    for n in range(1, 8):
        scan(root / f"{n}.img.nii.gz", n)
        volume(root / f"{n}.label.nii.gz", slabs(1))


def jhh(root):
    """Three people with a venous and an arterial scan each; the third has no cyst."""
    for person in range(3):
        for phase in ("venous", "arterial"):
            folder = root / f"P{person}_{phase}"
            case_folder(folder, ["pancreas", "pdac", "cyst", "pnet"])
            if person == 2:
                volume(folder / "segmentations/cyst.nii.gz", np.zeros((SIDE,) * 3, np.uint8))


def flare(root, values=13):
    for n in range(1, 6):
        scan(root / f"images/FLARE_Tr_{n:04d}_0000.nii.gz", n)
        volume(root / f"labels/FLARE_Tr_{n:04d}.nii.gz", slabs(values))


def saros(root):
    """Planes 0, 5, 10, ... are drawn, the others hold 255."""
    rows = ["id,split"]
    for n, split in enumerate(["fold-1", "fold-2", "fold-2", "test"]):
        folder = root / f"case_{n:03d}"
        scan(folder / "image.nii.gz", n)
        for name, count in (("body-regions", 13), ("body-parts", 6)):
            values = slabs(count)
            values[:, :, np.arange(SIDE) % 5 != 0] = 255
            volume(folder / f"{name}.nii.gz", values)
        rows.append(f"{folder.name},{split}")
    (root / "Segmentation-Info.csv").write_text("\n".join(rows), encoding="utf-8")


def lidc(root):
    """Two nodules of each of five patients, one of them neither benign nor malign."""
    for n in range(10):
        rng = np.random.default_rng(n)
        arrays = {"voxel": rng.integers(0, 255, (SIDE,) * 3, dtype=np.uint8), "answer1": slabs(1).astype(bool)}
        (root / "nodule").mkdir(parents=True, exist_ok=True)
        np.savez(root / "nodule" / f"lidc{n // 2}_{n % 2}.npz", **arrays)
    rows = [f"lidc{n // 2}_{n % 2},LIDC-IDRI-{n // 2},{mode}" for n, mode in enumerate([1, 4, 2, 5, 1, 5, 1, 4, 3, 5])]
    patients = [f"LIDC-IDRI-{n},subset{n + 1}" for n in range(5)]
    (root / "info").mkdir()
    for kind, columns, lines in (("nodule", "index,uid,malignancy_mode", rows), ("patient", "uid,subset", patients)):
        file = root / "info" / f"lidc_{kind}_info_new_with_subset.csv"
        file.write_text("\n".join([columns, *lines]), encoding="utf-8")


def bcv(root):
    for n in (*range(1, 11), *range(21, 41)):
        scan(root / f"img/img{n:04d}.nii.gz", n)
        volume(root / f"label/label{n:04d}.nii.gz", slabs(13))


def lits(root):
    for n in range(131):
        scan(root / f"volume-{n}.nii", n)
        volume(root / f"segmentation-{n}.nii", slabs(2))


def deeplesion(root):
    columns = "File_name,Bounding_boxes,Possibly_noisy,Spacing_mm_px_,Train_Val_Test"
    lines = [f'{n:06d}_01_01_103.png,"11, 21, 31, 46",0,"0.8, 0.8, 2.0",{n}' for n in (1, 2, 3)]
    for n, number in itertools.product((1, 2, 3), range(101, 106)):
        folder = root / f"Images_png/{n:06d}_01_01"
        folder.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng((n, number)).integers(31768, 33768, (64, 64), dtype=np.uint16)
        Image.fromarray(values).save(folder / f"{number}.png")
    (root / "DL_info.csv").write_text("\n".join([columns, *lines]), encoding="utf-8")
