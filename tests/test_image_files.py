"""Image files of all formats, orientations and modes."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlc_jax.data.image_files import read_image
from dlc_jax.errors import InputError


def _grey(path: Path, shape: tuple[int, int, int] = (28, 28, 1)) -> np.ndarray:
    return read_image(path, shape)[0][..., 0].astype(int)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("block", [b"Exif\0\0\0\x08junk", b"Exif\0\0II*\0\x08\0\0\0\x14\0\x12\x01"])
def test_damaged_exif_is_ignored(format: str, block: bytes, tmp_path: Path) -> None:
    picture = Image.fromarray(np.repeat(np.arange(0, 252, 9, dtype=np.uint8)[None], 28, 0))
    picture.save(tmp_path / "a", format=format, exif=block)
    np.testing.assert_allclose(_grey(tmp_path / "a"), np.asarray(picture), atol=12)


def test_the_transparent_colour_has_the_bit_depth_of_the_file(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    # 2 bits a pixel: 0 1 2 3 in each row; 1 is transparent, so becomes white.
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 2, 0, 0, 0, 0))
    file += chunk(b"tRNS", b"\0\1") + chunk(b"IDAT", zlib.compress(b"\0\x1b" * 4))
    (tmp_path / "a.png").write_bytes(file + chunk(b"IEND", b""))
    assert _grey(tmp_path / "a.png", (4, 4, 1))[0].tolist() in ([0, 255, 170, 255],)


def test_a_drawing_on_transparency_gets_a_background_with_contrast(tmp_path: Path) -> None:
    for ink in (0, 255):
        pixels = np.zeros((28, 28, 4), np.uint8)
        pixels[8:20, 8:20] = [ink, ink, ink, 255]
        Image.fromarray(pixels).save(tmp_path / "a.png")
        read = _grey(tmp_path / "a.png")
        assert (read[14, 14], read[0, 0]) == (ink, 255 - ink)


def test_a_pipe_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        read_image(tmp_path / "pipe", (28, 28, 1))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_the_exif_orientation_is_applied(format: str, tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (4, 6, 1)).astype(np.uint8)
    pixels = np.repeat(np.kron(colours, np.ones((8, 8, 1), np.uint8)), 3, 2)
    # Orientations 1 to 8 of the EXIF standard.
    oriented = [
        pixels,
        pixels[:, ::-1],
        pixels[::-1, ::-1],
        pixels[::-1],
        pixels.transpose(1, 0, 2),
        pixels.transpose(1, 0, 2)[:, ::-1],
        pixels[::-1, ::-1].transpose(1, 0, 2),
        pixels.transpose(1, 0, 2)[::-1],
    ]
    for number, expected in enumerate(oriented, 1):
        exif = Image.Exif()
        exif[0x0112] = number
        Image.fromarray(pixels).save(tmp_path / "a", format=format, exif=exif, quality=95)
        read = _grey(tmp_path / "a", (*expected.shape[:2], 1))
        np.testing.assert_allclose(read, expected[..., 0], atol=15)


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    first = np.repeat(np.arange(0, 252, 9, dtype=np.uint8)[None], 28, 0)
    frames = [Image.fromarray(first), Image.fromarray(255 - first)]
    for format in ("GIF", "PNG", "WEBP"):
        frames[0].save(tmp_path / "a", format=format, save_all=True, append_images=frames[1:])
        np.testing.assert_allclose(_grey(tmp_path / "a"), first, atol=12)


def test_cmyk_is_read(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (7, 7, 3)).astype(np.uint8)
    picture = Image.fromarray(np.kron(colours, np.ones((4, 4, 1), np.uint8)))
    picture.convert("CMYK").save(tmp_path / "a", format="JPEG", quality=95)
    read = read_image(tmp_path / "a", (28, 28, 3))[0].astype(int)
    np.testing.assert_allclose(read[2::4, 2::4], colours, atol=15)


def test_a_jpeg_that_lacks_only_its_end_marker_is_read(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (28, 28)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "a", format="JPEG")
    content, expected = (tmp_path / "a").read_bytes(), _grey(tmp_path / "a")
    for cut in (1, 2):
        (tmp_path / "a").write_bytes(content[:-cut])
        np.testing.assert_array_equal(_grey(tmp_path / "a"), expected)
    for cut in (12, 100):
        (tmp_path / "a").write_bytes(content[:-cut])
        with pytest.raises(InputError, match="truncated"):
            _grey(tmp_path / "a")
