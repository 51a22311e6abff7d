"""Whatever users hand in as an image: pixel for pixel what it shows, or an error that says what to do."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lvlm_probe.errors import ImageError
from lvlm_probe.images import load_image, load_images

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = PIXELS[..., 0]


def pixels(image: Any) -> np.ndarray:
    picture = load_image(image)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def grey(values: np.ndarray) -> np.ndarray:
    return np.stack([values] * 3, axis=-1)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "PNG"])
@pytest.mark.parametrize("kind", [str, Path])
def test_paths(tmp_path: Path, suffix: str, kind: Callable[[Path], Any]) -> None:
    path = tmp_path / f"a picture.{suffix}"
    Image.fromarray(PIXELS).save(path, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(pixels(kind(path)), PIXELS)
    path.unlink()  # nothing holds the file open or reads it later


def test_jpeg_is_nearly_what_was_saved(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(40) * 3, np.arange(30) * 4).astype(np.uint8)
    Image.fromarray(grey(smooth)).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(pixels(tmp_path / "a.jpg").astype(int) - grey(smooth)).max() < 10


def test_picture_modes() -> None:
    picture = Image.fromarray(PIXELS)
    opaque = picture.copy()
    opaque.putalpha(255)
    assert np.array_equal(pixels(picture), PIXELS)
    assert np.array_equal(pixels(opaque), PIXELS)
    assert np.array_equal(pixels(Image.fromarray(GREY)), grey(GREY))
    assert np.array_equal(pixels(Image.fromarray(GREY > 99)), grey((GREY > 99) * 255))
    assert np.array_equal(pixels(Image.fromarray(255 - PIXELS).convert("CMYK")), 255 - PIXELS)
    few = picture.quantize(64)  # as many colours as a picture of 35 pixels can want
    assert few.mode == "P"
    assert np.array_equal(pixels(few), PIXELS)
    for mode in ("LA", "YCbCr", "HSV", "LAB", "PA", "RGBX", "RGBa"):
        assert pixels(Image.new(mode, (3, 2))).shape == (2, 3, 3)


def test_the_callers_picture_is_left_alone() -> None:
    picture = Image.fromarray(PIXELS)
    load_image(picture).putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(np.asarray(picture), PIXELS)


@pytest.mark.parametrize("kind", ["array", "png", "tiff", "big-endian"])
def test_sixteen_bits_are_brought_to_eight(tmp_path: Path, kind: str) -> None:
    """Scans and depth maps; Pillow's own conversion makes all but the darkest 1/256 of them white."""
    values = np.array([[0, 257, 300, 32768], [60000, 128 * 257, 65535, 256]], np.uint16)
    image: Any = Image.fromarray(values)
    if kind == "big-endian":
        image = Image.frombytes("I;16B", (4, 2), values.astype(">u2").tobytes())
    elif kind != "array":
        image.save(tmp_path / f"a.{kind}")
        image = tmp_path / f"a.{kind}"
    wanted = grey(values / 65535 * 255)
    assert np.abs(pixels(image) - wanted).max() <= 1
    assert pixels(image)[1, 2, 0] == 255


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_wide_pictures_hold_bytes_or_are_refused(dtype: type) -> None:
    assert np.array_equal(pixels(Image.fromarray(GREY.astype(dtype))), grey(GREY))
    for wrong in (256, 40000, -1):
        with pytest.raises(
            ImageError, match=r"mode [IF] .* range from .* give bytes from 0 to 255"
        ):
            load_image(Image.fromarray(np.array([[0, wrong, 9]], dtype)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.int16, np.uint32, ">i4"])
def test_arrays_of_bytes(dtype: Any) -> None:
    assert np.array_equal(pixels(PIXELS.astype(dtype)), PIXELS)
    assert np.array_equal(pixels(GREY.astype(dtype)), grey(GREY))
    assert np.array_equal(pixels(GREY.astype(dtype)[..., None]), grey(GREY))
    alpha = np.concatenate([PIXELS, np.full((5, 7, 1), 255, np.uint8)], axis=-1)
    assert np.array_equal(pixels(alpha.astype(dtype)), PIXELS)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_of_fractions(dtype: type) -> None:
    assert np.array_equal(pixels((PIXELS / 255).astype(dtype)), PIXELS)
    assert np.array_equal(pixels((GREY / 255).astype(dtype)), grey(GREY))
    assert pixels(np.array([[0.0, 0.2, 1.0]], dtype))[0, :, 0].tolist() == [0, 51, 255]


def test_arrays_of_booleans() -> None:
    assert np.array_equal(pixels(GREY > 99), grey(np.where(GREY > 99, 255, 0)))


def test_arrays_need_not_be_contiguous() -> None:
    assert np.array_equal(pixels(PIXELS[::-1, ::2]), PIXELS[::-1, ::2])
    assert np.array_equal(pixels(PIXELS.transpose(1, 0, 2)), PIXELS.transpose(1, 0, 2))
    read_only = PIXELS.copy()
    read_only.flags.writeable = False
    assert np.array_equal(pixels(read_only), PIXELS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grad", [False, True])
def test_tensors(dtype: torch.dtype, grad: bool) -> None:
    assert np.array_equal(pixels(torch.from_numpy(PIXELS)), PIXELS)
    fractions = torch.tensor([[0, 0.25, 1.0]], dtype=dtype, requires_grad=grad)
    assert pixels(fractions)[0, :, 0].tolist() == [0, 64, 255]


UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("opened", [False, True])
def test_photographs_are_turned_upright(tmp_path: Path, orientation: int, opened: bool) -> None:
    """The tag says where row 0 and column 0 of the stored pixels belong (EXIF 2.3, tag 274)."""
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path, exif=exif)
    if opened:
        with Image.open(path) as picture:
            found = pixels(picture)
    else:
        found = pixels(path)
    assert np.array_equal(found, UPRIGHT[orientation](PIXELS))


def test_one_or_many(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    many = load_images([path, str(path), PIXELS, torch.from_numpy(PIXELS), Image.fromarray(PIXELS)])
    assert len(many) == 5
    assert all(np.array_equal(np.asarray(picture), PIXELS) for picture in many)
    assert isinstance(many, tuple)
    for one in (path, str(path), PIXELS, torch.from_numpy(PIXELS), Image.fromarray(PIXELS)):
        assert len(load_images(one)) == 1
    assert len(load_images((PIXELS, PIXELS))) == 2


# Errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [[], ()])
def test_no_image(empty: Any) -> None:
    with pytest.raises(ImageError, match="no image was given: pass a picture, a path or an array"):
        load_images(empty)


@pytest.mark.parametrize("wrong", [5, None, 2.5, b"png", {"image": 1}, [PIXELS]])
def test_not_an_image(wrong: Any) -> None:
    with pytest.raises(ImageError, match=rf"{type(wrong).__name__} is not an image: pass a PIL"):
        load_image(wrong)
    with pytest.raises(ImageError, match="is not an image"):
        load_images([PIXELS, wrong])


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"there is no file '.*nowhere\.png': check the path"):
        load_image(tmp_path / "nowhere.png")


def test_text_under_an_images_name(tmp_path: Path) -> None:
    path = tmp_path / "text.png"
    for content, size in (("I am no picture", 15), ("", 0)):
        path.write_text(content)
        with pytest.raises(ImageError, match=rf"text\.png' is not an image .*\({size} bytes\)"):
            load_image(str(path))


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be read as an image"):
        load_image(tmp_path)


@pytest.mark.filterwarnings(
    "ignore:Corrupt EXIF data", "ignore:Truncated File"
)  # Pillow's, before it gives up
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif", "bmp", "tiff"])
def test_files_cut_short(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    noise = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for length in (10, 60, len(whole) // 2, len(whole) - 200):
        path.write_bytes(whole[:length])
        with pytest.raises(ImageError, match=rf"a\.{kind}' (is not an image|cannot be read as an)"):
            load_image(path)


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    refused = 0
    for kind in ("png", "jpeg", "tiff", "gif"):
        path = tmp_path / f"a.{kind}"
        Image.fromarray(PIXELS).save(path)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            damaged[generator.integers(len(whole), size=3)] = generator.integers(256, size=3)
            path.write_bytes(damaged.tobytes())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, on what it could make sense of
                try:
                    assert load_image(path).mode == "RGB"
                except ImageError:
                    refused += 1
    assert refused > 50


def test_a_tiff_whose_strips_start_at_a_text(tmp_path: Path) -> None:
    """Tag 273 with type 2 for 4: Pillow fails with a TypeError of its own."""
    path = tmp_path / "a.tiff"
    Image.fromarray(PIXELS).save(path)
    whole = path.read_bytes()
    entry = struct.pack("<HH", 273, 4)
    assert whole.count(entry) == 1
    path.write_bytes(whole.replace(entry, struct.pack("<HH", 273, 2)))
    with pytest.raises(ImageError, match=r"a\.tiff' cannot be read as an image .*: save it anew"):
        load_image(path)


def test_a_picture_whose_file_is_cut_short(tmp_path: Path) -> None:
    """Pillow opens it, and fails only when the pixels are wanted."""
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with (
        Image.open(path) as picture,
        pytest.raises(ImageError, match="mode RGB cannot be read as RGB"),
    ):
        load_image(picture)


def test_a_mode_without_a_way_to_rgb() -> None:
    with pytest.raises(ImageError, match=r"mode La cannot be read as RGB .*: save or convert it"):
        load_image(Image.new("La", (2, 2)))


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_a_picture_without_pixels(size: tuple[int, int]) -> None:
    message = rf"empty \({size[1]} rows × {size[0]} columns\): it needs at least one pixel"
    with pytest.raises(ImageError, match=message):
        load_image(Image.new("RGB", size))


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0), (0, 0, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_an_array_without_pixels(shape: tuple[int, ...], dtype: type) -> None:
    with pytest.raises(ImageError, match=r"the image is empty \(shape .*: it needs at least one"):
        load_image(np.zeros(shape, dtype))


@pytest.mark.parametrize("shape", [(3, 20, 30), (20, 30, 2), (20, 30, 5), (1, 20, 30, 3), (9,), ()])
def test_an_array_of_another_shape(shape: tuple[int, ...]) -> None:
    for array in (np.zeros(shape, np.uint8), torch.zeros(shape)):
        with pytest.raises(ImageError, match=r"of shape \(.*channels last") as error:
            load_image(array)
        assert str(shape) in str(error.value)


@pytest.mark.parametrize("value", [1.001, -0.01, 255.0, np.nan, np.inf, -np.inf])
def test_fractions_out_of_range(value: float) -> None:
    array = np.full((4, 4, 3), 0.5)
    array[1, 2, 0] = value
    for wrong in (array, array.astype(np.float16), torch.from_numpy(array)):
        with pytest.raises(
            ImageError, match=r"of type float\d\d range from .* fractions from 0 to"
        ):
            load_image(wrong)


@pytest.mark.parametrize("value", [-1, 256, 70000])
def test_bytes_out_of_range(value: int) -> None:
    array = np.full((4, 4), 7)
    array[3, 3] = value
    low, high = min(7, value), max(7, value)
    with pytest.raises(ImageError, match=rf"int64 range from {low} to {high}: give bytes from 0"):
        load_image(array)


@pytest.mark.parametrize("dtype", [np.complex64, "<U1", "M8[s]", object])
def test_arrays_of_other_things(dtype: Any) -> None:
    with pytest.raises(ImageError, match=r"an array of type .* is not an image: give bytes"):
        load_image(np.zeros((4, 4), dtype))
