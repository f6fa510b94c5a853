import numpy as np
import pytest
from PIL import Image

from lightning_atlas.data.formats import read_header, read_image, read_labels


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
