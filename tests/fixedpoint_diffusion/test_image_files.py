"""Image files: every mode a picture has, files of tensors, and what is said of those that cannot be used."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fixedpoint_diffusion.command.files import Entry, find, read
from fixedpoint_diffusion.command.image_format import ImageFormat, RefusedError
from fixedpoint_diffusion.command.pictures import as_png, drawn, sheet
from fixedpoint_diffusion.fashion_mnist.images import held_out_images

GREY = ImageFormat((1, 8, 6))
RGB = ImageFormat((3, 8, 6))
LEVELS = np.arange(48, dtype=np.uint8).reshape(8, 6) * 5
COLOURS = np.stack([LEVELS, LEVELS[::-1], 255 - LEVELS], axis=-1)


def saved(picture: Image.Image, path: Path, **options: object) -> Path:
    picture.save(path, **options)
    return path


def values(levels: np.ndarray) -> torch.Tensor:
    """What a model sees of grey levels or colours."""
    pixels = torch.from_numpy(levels.astype(np.float64)) / 127.5 - 1
    return (pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)).float()


def test_the_bundled_images_come_back_from_png_bit_for_bit(tmp_path: Path) -> None:
    image = held_out_images()[0][3]
    (tmp_path / "3.png").write_bytes(as_png(drawn(image)))
    found = read(Entry(tmp_path / "3.png"), ImageFormat((1, 32, 32)))
    torch.testing.assert_close(found.pixels, image, rtol=0, atol=1e-7)
    assert found.pixels.dtype == torch.float32
    assert found.notices == ()


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "webp"])
def test_formats_without_loss(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(Image.fromarray(LEVELS), tmp_path / f"a.{suffix}", **options)
    torch.testing.assert_close(read(Entry(path), GREY).pixels, values(LEVELS), rtol=0, atol=1e-6)
    assert read(Entry(path), GREY).notices == ()


def test_colours(tmp_path: Path) -> None:
    path = saved(Image.fromarray(COLOURS), tmp_path / "colours.png")
    exact = read(Entry(path), RGB)
    assert (torch.equal(exact.pixels, values(COLOURS)), exact.notices) == (True, ())
    grey = read(Entry(path), GREY)
    luma = COLOURS @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    torch.testing.assert_close(grey.pixels, values(luma), rtol=0, atol=1.1 / 127.5)
    assert grey.notices == ("colours are taken as grey",)


def test_grey_where_colours_are_wanted(tmp_path: Path) -> None:
    found = read(Entry(saved(Image.fromarray(LEVELS), tmp_path / "grey.png")), RGB)
    assert torch.equal(found.pixels, values(LEVELS).expand(3, -1, -1))
    assert found.notices == ("grey is taken as RGB",)
    alike = saved(Image.fromarray(LEVELS).convert("RGB"), tmp_path / "alike.png")
    assert read(Entry(alike), GREY).notices == ()


@pytest.mark.parametrize(("background", "behind"), [("black", 0), ("white", 255)])
def test_transparent_parts_are_laid_over_the_background(tmp_path: Path, background: str, behind: int) -> None:
    alpha = np.full((8, 6), 255, dtype=np.uint8)
    alpha[:2] = 0
    picture = Image.fromarray(np.dstack([LEVELS, alpha]), mode=None)
    path = saved(picture, tmp_path / "alpha.png")
    found = read(Entry(path), ImageFormat((1, 8, 6), background=background))
    expected = LEVELS.copy()
    expected[:2] = behind
    torch.testing.assert_close(found.pixels, values(expected), rtol=0, atol=1e-6)
    assert found.notices == (f"its transparent parts are laid over {background} (--background)",)


def test_alpha_that_hides_nothing_is_not_mentioned(tmp_path: Path) -> None:
    opaque = np.dstack([COLOURS, np.full((8, 6), 255, dtype=np.uint8)])
    found = read(Entry(saved(Image.fromarray(opaque), tmp_path / "opaque.png")), RGB)
    assert (torch.equal(found.pixels, values(COLOURS)), found.notices) == (True, ())


def test_a_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    picture = Image.fromarray((LEVELS > 100).astype(np.uint8), mode=None).convert("P")
    picture.putpalette([255, 255, 255, 200, 200, 200])
    found = read(Entry(saved(picture, tmp_path / "palette.png", transparency=0)), GREY)
    torch.testing.assert_close(found.pixels, values(np.where(LEVELS > 100, 200, 0)), rtol=0, atol=1e-6)
    assert "laid over black" in found.notices[0]


def test_sixteen_bits_are_not_cut_to_eight(tmp_path: Path) -> None:
    fine = LEVELS.astype(np.uint16) * 257 + 100
    found = read(Entry(saved(Image.fromarray(fine), tmp_path / "fine.png")), GREY)
    torch.testing.assert_close(found.pixels, values(fine / 257), rtol=0, atol=1e-6)


def test_the_first_frame_and_the_right_way_up(tmp_path: Path) -> None:
    frames = [Image.fromarray(LEVELS + shift) for shift in (0, 3, 6)]
    found = read(Entry(saved(frames[0], tmp_path / "moving.gif", save_all=True, append_images=frames[1:])), GREY)
    torch.testing.assert_close(found.pixels, values(LEVELS), rtol=0, atol=1e-6)
    assert found.notices == ("the first of its 3 frames is taken",)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    turned = saved(Image.fromarray(np.rot90(LEVELS)), tmp_path / "turned.png", exif=exif)
    torch.testing.assert_close(read(Entry(turned), GREY).pixels, values(LEVELS), rtol=0, atol=1e-6)


def test_inks_are_taken_as_rgb(tmp_path: Path) -> None:
    path = saved(Image.fromarray(COLOURS).convert("CMYK"), tmp_path / "inks.jpg", quality=100)
    found = read(Entry(path), RGB)
    assert found.notices == ("CMYK is taken as RGB",)
    assert float((found.pixels - values(COLOURS)).abs().mean()) < 0.1


def test_another_size_is_refused_resized_or_padded(tmp_path: Path) -> None:
    large = saved(Image.fromarray(np.kron(LEVELS, np.ones((3, 3), dtype=np.uint8))), tmp_path / "large.png")
    small = saved(Image.fromarray(LEVELS[:5, :4]), tmp_path / "small.png")
    with pytest.raises(RefusedError, match=r"^has 18 x 24 pixels, the model's images 6 x 8; --resize resizes it$"):
        read(Entry(large), GREY)
    with pytest.raises(RefusedError, match=r"--resize resizes it, --pad sets it on the background$"):
        read(Entry(small), GREY)
    resized = read(Entry(large), ImageFormat((1, 8, 6), resize=True, pad=True))
    with Image.open(large) as picture:
        expected = np.asarray(picture.resize((6, 8), Image.Resampling.LANCZOS))
    torch.testing.assert_close(resized.pixels, values(expected), rtol=0, atol=1.1 / 127.5)
    assert resized.notices == ("18 x 24 pixels, resized to 6 x 8",)
    assert "stretched" in read(Entry(small), ImageFormat((3, 8, 6), resize=True)).notices[-1]
    padded = read(Entry(small), ImageFormat((1, 8, 6), pad=True, background="white"))
    surrounded = np.full((8, 6), 255)
    surrounded[1:6, 1:5] = LEVELS[:5, :4]
    torch.testing.assert_close(padded.pixels, values(surrounded), rtol=0, atol=1e-6)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 6), dtype=np.uint8)
    whole = saved(Image.fromarray(noise), tmp_path / "whole.png").read_bytes()
    for name, content, said in (
        ("cut.png", whole[:70], "^cannot be read: "),
        ("empty.png", b"", "^is damaged, or no picture of a kind that is read$"),
        ("text.jpg", b"not a picture at all", "^is damaged, or no picture"),
        ("noise.gif", b"GIF89a" + bytes(range(64)), "^(cannot be read: |is damaged)"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RefusedError, match=said):
            read(Entry(tmp_path / name), GREY)


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(Image.fromarray(LEVELS), tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    with pytest.raises(RefusedError, match=r"^has too many pixels to be read safely$"):
        read(Entry(path), GREY)


def test_models_of_something_else_than_pictures_want_tensors(tmp_path: Path) -> None:
    path = saved(Image.fromarray(LEVELS), tmp_path / "a.png")
    with pytest.raises(RefusedError, match=r"the model's images have shape \(4, 8, 6\); give tensors"):
        read(Entry(path), ImageFormat((4, 8, 6)))
    np.save(tmp_path / "latents.npy", 5 * np.ones((4, 8, 6), dtype=np.float32))
    assert read(Entry(tmp_path / "latents.npy", 0), ImageFormat((4, 8, 6))).pixels.mean() == 5


IMAGES = torch.linspace(-1, 1, 3 * 48, dtype=torch.float64).view(3, 1, 8, 6)


def test_tensors_are_read_row_by_row(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", IMAGES.numpy().astype(">f8"))
    save_file({"images": IMAGES.half(), "labels": torch.arange(3)}, tmp_path / "b.safetensors")
    save_file({"anything": IMAGES[0].float()}, tmp_path / "c.safetensors")
    entries, passed = find([tmp_path])
    assert [entry.name.removeprefix(f"{tmp_path}/") for entry in entries] == [
        *(f"a.npy[{row}]" for row in range(3)),
        *(f"b.safetensors[{row}]" for row in range(3)),
        "c.safetensors[0]",
    ]
    assert passed == []
    for entry, image in zip(entries, [*IMAGES, *IMAGES, IMAGES[0]], strict=True):
        found = read(entry, GREY)
        assert found.pixels.dtype == torch.float32
        torch.testing.assert_close(found.pixels.double(), image, rtol=1e-3, atol=1e-3)


def test_tensors_that_are_no_images_are_refused(tmp_path: Path) -> None:
    def refusal(**arrays: np.ndarray) -> str:
        ((name, array),) = arrays.items()
        np.save(tmp_path / f"{name}.npy", array)
        (entry, *_), _ = find([tmp_path / f"{name}.npy"])
        with pytest.raises(RefusedError) as caught:
            read(entry, GREY)
        return str(caught.value)

    images = IMAGES.numpy()
    assert refusal(flat=images.ravel()) == "must hold images of shape (N, C, H, W) or (C, H, W), got (144,)"
    assert refusal(none=images[:0]).endswith("got (0, 1, 8, 6)")
    assert refusal(other=images[..., :5]) == "has images of shape (1, 8, 5), the model's have (1, 8, 6)"
    assert refusal(levels=LEVELS[None]) == "must hold floating-point values from -1 to 1, got uint8"
    assert refusal(large=127.5 * images) == "has values from -128 to -43.7, wanted -1 to 1"
    assert refusal(nan=np.where(images < -0.9, np.nan, images)) == "has values that are not finite"
    assert refusal(words=np.array([["a"]])) == "must be an array of numbers, as numpy.save writes it"
    (tmp_path / "pickle.npy").write_bytes(b"\x80\x04")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08")
    save_file({"a": IMAGES, "b": IMAGES + 0}, tmp_path / "two.safetensors")
    entries, _ = find([tmp_path / name for name in ("pickle.npy", "cut.safetensors", "two.safetensors")])
    assert [entry.refused.split(":")[0] for entry in entries] == [
        "cannot be read as an array of numpy's",
        "cannot be read as safetensors",
        'must hold one tensor, or one called "images", got a, b',
    ]


@pytest.mark.parametrize(
    "header",
    [
        *("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 1, 8, 8)}", "(" * 110, "{'descr': [[]]}", "1 +"),
        *(
            "{'descr': '<f8', 'fortran_order': False, 'shape': (4611686018427387904, 1, 8, 8)}",
            "{[]: 1}",
            "-" * 5000 + "1",
        ),
    ],
)
def test_headers_of_arrays_that_make_no_sense_are_refused(tmp_path: Path, header: str) -> None:
    """Numpy parses them as Python: negative sizes overflow, brackets without end are an error of the tokenizer."""
    content = header.encode() + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content + bytes(512))
    (entry,), _ = find([tmp_path / "a.npy"])
    assert entry.refused.startswith("cannot be read as an array of numpy's: ")


def test_folders_and_files_that_are_none(tmp_path: Path) -> None:
    folder, empty = tmp_path / "photos", tmp_path / "empty"
    (folder / "below").mkdir(parents=True)
    empty.mkdir()
    for name in ("b.PNG", "a.png"):
        saved(Image.fromarray(LEVELS), folder / name)
    (folder / "notes.txt").write_text("")
    (tmp_path / "scan.tiff").write_text("")
    entries, passed = find([tmp_path / "scan.tiff", folder, tmp_path / "gone.png", empty])
    assert [(entry.path.name, entry.refused.split(" (")[0]) for entry in entries] == [
        ("scan.tiff", "is of no kind that is read"),
        ("a.png", ""),
        ("b.PNG", ""),
        ("gone.png", "no such file or folder"),
        ("empty", "holds no images"),
    ]
    assert passed == [f"{folder}: 1 file of other kinds passed over"]
    with pytest.raises(RefusedError, match="no such file or folder"):
        read(entries[3], GREY)


def test_a_sheet_shows_every_picture_where_it_belongs() -> None:
    pictures = [np.full((16, 16), level, dtype=np.uint8) for level in (10, 20, 30, 40)]
    made = sheet([[pictures[:2], pictures[2:]], [pictures[:1]]])
    with Image.open(io.BytesIO(as_png(made))) as opened:
        assert opened.size == (2 + 2 * 66, 2 + 3 * 66 + 12)
    assert [int(made[y, x]) for y, x in ((30, 30), (30, 100), (100, 30), (100, 100), (180, 30), (180, 100))] == [
        *(10, 20, 30, 40, 10),
        255,
    ]
    coloured = sheet([[[np.zeros((80, 40, 3), dtype=np.uint8)]]])
    assert coloured.shape == (84, 44, 3)


def test_values_beyond_the_range_and_nan_are_drawn() -> None:
    image = torch.tensor([[[-2.0, -1.0, 0.0, 1.0, 7.0, float("nan")]]])
    assert drawn(image).tolist() == [[0, 0, 128, 255, 255, 0]]
    assert drawn(torch.zeros(3, 2, 5)).shape == (2, 5, 3)
