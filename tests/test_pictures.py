"""Pictures are read as a viewer shows them."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlc_jax.data.images import read_image
from dlc_jax.errors import InputError


def _grey(path: Path, shape: tuple[int, int, int] = (28, 28, 1)) -> np.ndarray:
    return read_image(path, shape)[0][..., 0].astype(int)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("block", [b"Exif\0\0\0\x08junk", b"Exif\0\0II*\0\x08\0\0\0\x14\0\x12\x01"])
def test_damaged_exif_leaves_the_picture_as_it_is(
    format: str, block: bytes, tmp_path: Path
) -> None:
    picture = Image.fromarray(np.repeat(np.arange(0, 252, 9, dtype=np.uint8)[None], 28, 0))
    picture.save(tmp_path / "a", format=format, exif=block)
    np.testing.assert_allclose(_grey(tmp_path / "a"), np.asarray(picture), atol=12)


def test_a_transparent_colour_is_told_in_the_files_own_samples(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    # 2 bits a pixel: 0 1 2 3 in each row; 1 is transparent, so is laid on white.
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 2, 0, 0, 0, 0))
    file += chunk(b"tRNS", b"\0\1") + chunk(b"IDAT", zlib.compress(b"\0\x1b" * 4))
    (tmp_path / "a.png").write_bytes(file + chunk(b"IEND", b""))
    assert _grey(tmp_path / "a.png", (4, 4, 1))[0].tolist() in ([0, 255, 170, 255],)


def test_ink_on_nothing_shows(tmp_path: Path) -> None:
    for ink in (0, 255):
        pixels = np.zeros((28, 28, 4), np.uint8)
        pixels[8:20, 8:20] = [ink, ink, ink, 255]
        Image.fromarray(pixels).save(tmp_path / "a.png")
        read = _grey(tmp_path / "a.png")
        assert (read[14, 14], read[0, 0]) == (ink, 255 - ink)


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        read_image(tmp_path / "pipe", (28, 28, 1))
