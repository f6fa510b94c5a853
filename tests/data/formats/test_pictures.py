import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngInfo

from lightning_atlas.data.formats import read_header, read_image, read_labels
from lightning_atlas.data.formats.pictures import picture_size, read_colours


def test_a_picture_equals_pillows_columns_and_rows(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.PNG", format="PNG")
    read = read_image(tmp_path / "a.PNG")
    assert read_header(tmp_path / "a.PNG").shape == (7, 5, 1)
    np.testing.assert_array_equal(read.data[..., 0].permute(2, 1, 0), pixels)
    assert "".join(read.orientation[:2]) == "LP"
    assert read.data[0, 6, 0, 0] == pixels[0, 6, 0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_colour_becomes_three_channels(mode, tmp_path):
    ending = "jpg" if mode == "CMYK" else "png"
    picture = Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7) * 7).convert("RGB").convert(mode)
    picture.save(tmp_path / f"a.{ending}")
    with Image.open(tmp_path / f"a.{ending}") as saved:
        assert saved.mode == mode
        expected = np.asarray(saved.convert("RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{ending}").data[..., 0].permute(2, 1, 0), expected)


def test_deep_grey_keeps_one_channel_and_labels_their_indices(tmp_path):
    deep = np.arange(35, dtype=np.uint16).reshape(5, 7) * 1000
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png").data[..., 0], deep.T[None])
    palette = Image.fromarray((deep // 1000 % 4).astype(np.uint8), mode="P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    palette.save(tmp_path / "label.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "label.png").data[0, ..., 0], (deep // 1000 % 4).T)
    Image.new("RGB", (3, 3)).save(tmp_path / "colours.png")
    with pytest.raises(ValueError, match=r"colours\.png holds colours"):
        read_labels(tmp_path / "colours.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_upright(orientation, tmp_path):
    tags = Image.Exif()
    tags[0x0112] = orientation
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8, :8] = 255
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=tags, quality=95)
    read = read_image(tmp_path / "a.jpg")
    turns = {1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1]}
    turns |= {5: pixels.swapaxes(0, 1), 6: np.rot90(pixels, -1), 7: np.rot90(pixels, 2).swapaxes(0, 1)}
    expected = (turns | {8: np.rot90(pixels, 1)})[orientation]
    assert read.spatial_shape[:2] == expected.shape[1::-1] == read_header(tmp_path / "a.jpg").shape[:2]
    assert np.abs(read.data[..., 0].permute(2, 1, 0).numpy() - expected).max() < 10


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_colours_are_read_upright_whatever_the_file_has(mode, tmp_path):
    ending = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    picture = Image.fromarray(np.arange(105, dtype=np.uint8).reshape(5, 7, 3) * 2).convert(mode)
    tags = Image.Exif()
    tags[0x0112] = 6
    picture.save(tmp_path / f"a.{ending}", exif=tags)
    with Image.open(tmp_path / f"a.{ending}") as saved:
        expected = np.rot90(np.asarray(saved.convert("RGB")), -1)
    read = read_colours(tmp_path / f"a.{ending}")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, expected)
    assert picture_size(tmp_path / f"a.{ending}") == (5, 7)


def text(key, told):
    info = PngInfo()
    info.add_itxt(key, told)
    return {"pnginfo": info}


def tags_of(kind, value):
    """Return what an EXIF of one entry, the orientation, is in bytes."""
    return b"II*\0" + struct.pack("<IHHHI4sI", 8, 1, 0x0112, kind, len(value.rstrip(b"\0")), value, 0)


XMP = '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
SIDEWAYS = tags_of(3, b"\6\0\0\0")
PLACES = {
    "xmp.jpg": {"xmp": XMP.encode()},
    "xmp.png": text("XML:com.adobe.xmp", XMP),
    "text.png": text("Raw profile type exif", f"\nexif\n{len(SIDEWAYS):8}\n{SIDEWAYS.hex()}\n"),
}


@pytest.mark.parametrize("name", PLACES)
def test_the_orientation_is_found_wherever_pillow_finds_it(name, tmp_path, monkeypatch):
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8, :8] = 255
    file = tmp_path / name
    Image.fromarray(pixels).save(file, **PLACES[name])
    with Image.open(file) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture))
    assert expected.shape == (24, 16, 3)
    np.testing.assert_array_equal(read_colours(file), expected)
    np.testing.assert_array_equal(read_image(file).data[..., 0].permute(2, 1, 0), expected)
    monkeypatch.delattr(ImageFile, "load")  # a header is read without the pixels
    assert picture_size(file) == read_header(file).shape[:2] == (16, 24)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("words.jpg", {"exif": b"Exif\0\0" + tags_of(2, b"6\0\0\0")}),
        ("beyond.jpg", {"exif": b"Exif\0\0" + tags_of(3, b"\x09\0\0\0")}),
        ("garbled.png", {"exif": b"Exif\0\0no tags at all"}),
        ("garbled_text.png", text("Raw profile type exif", "\nexif\n 4\nzzzz\n")),
    ],
)
def test_an_orientation_that_is_none_turns_nothing(name, told, tmp_path):
    pixels = np.zeros((5, 7, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / name, **told)
    np.testing.assert_array_equal(read_colours(tmp_path / name), pixels)
    assert picture_size(tmp_path / name) == (7, 5)


@pytest.mark.parametrize("harm", ["cut", "garbled"])
def test_a_damaged_picture_is_refused_by_name(harm, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2] if harm == "cut" else b"no picture" + content[10:])
    with pytest.raises(ValueError, match=r"a\.png is damaged or no PNG or JPEG"):
        read_colours(tmp_path / "a.png")


def fetched(folder, package):
    """Return what a package holds, by pip; nothing of it is run."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder)]
    done = subprocess.run([*command, package], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{package} cannot be fetched: {done.stderr.strip().splitlines()[-1]}")
    return zipfile.ZipFile(next(folder.glob("*.whl")))


@pytest.mark.slow
def test_photographs_of_the_world_are_read_as_pillow_has_them(tmp_path):
    """Foolbox brings 20 pictures each of ImageNet, CIFAR and MNIST: colours and grey, JPEG and PNG."""
    package = fetched(tmp_path, "foolbox==3.3.4")
    package.extractall(tmp_path, [name for name in package.namelist() if name.endswith((".jpg", ".png"))])
    files = sorted(each for each in tmp_path.rglob("*") if each.suffix in (".jpg", ".png"))
    assert len(files) >= 80
    modes = set()
    for file in files:
        with Image.open(file) as picture:
            modes.add(picture.mode)
            expected = np.asarray(picture.convert("RGB"))
        np.testing.assert_array_equal(read_colours(file), expected)
        np.testing.assert_array_equal(read_image(file).data[..., 0].permute(2, 1, 0), expected)
        assert picture_size(file) == expected.shape[1::-1]
    assert {"RGB", "L"} <= modes
