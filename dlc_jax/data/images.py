"""A person's own picture as a network wants it."""

import os
import stat
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from dlc_jax.data import handwriting
from dlc_jax.errors import InputError, one_line

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# A larger JPEG is decoded at a fraction of its size, which takes a fraction of the memory.
_LARGE = 2000


class Picture(NamedTuple):
    """A picture as it was, and as a network gets it."""

    original: UInt8[np.ndarray, "rows columns colours"]
    """As a viewer shows it, scaled down to at most 200 pixels a side."""
    pixels: UInt8[np.ndarray, "height width channels"]
    """What the network gets."""
    inverted: bool
    """Whether dark was turned into bright."""


def read_image(
    path: str | os.PathLike[str],
    image_shape: tuple[int, int, int],
    *,
    dark_background: bool = False,
    invert: bool | None = None,
) -> tuple[UInt8[np.ndarray, "height width channels"], bool]:
    """Reads a picture of any size, and scales it.

    It is read as a viewer shows it: turned as its camera says, the first frame of several.
    Where it is transparent, it is laid on white, or on black if what is drawn is bright. What
    its shape then leaves free is filled with the colour of its border.

    Args:
      path: a PNG, JPEG, WebP, GIF or BMP file.
      image_shape: height, width and channels (1 or 3) to return.
      dark_background: whether the network learned bright things on a dark ground.
      invert: whether to turn dark into bright; by default only where `dark_background`
        and the picture's border is bright, as ink on paper is.

    Returns:
      The pixels, and whether they were inverted.

    Raises:
      InputError: the file is missing, of another format, damaged or too large.
    """
    return _scaled(_decode(path), image_shape, dark_background, invert)


def read_picture(
    path: str | os.PathLike[str],
    image_shape: tuple[int, int, int],
    *,
    digit: bool = False,
    dark_background: bool = False,
    invert: bool | None = None,
) -> Picture:
    """Reads a picture of any size as `read_image` does, and keeps the original.

    Args:
      path: a PNG, JPEG, WebP, GIF or BMP file.
      image_shape: height, width and channels (1 or 3) of what the network gets.
      digit: whether it is a handwritten digit, to be brought into MNIST's form.
      dark_background: as for `read_image`.
      invert: as for `read_image`.

    Raises:
      InputError: the file can't be read, or a digit is asked for and there is no ink.
    """
    picture = _decode(path)
    if digit:
        found = handwriting.prepare(np.asarray(picture), invert=invert)
        if found is None:
            raise InputError(
                f"there is no ink to be found in {str(path)!r}; give a picture of one digit "
                "(--as-is takes pictures as they are)"
            )
        pixels, inverted = found[0].reshape(image_shape), found[1]
    else:
        pixels, inverted = _scaled(picture, image_shape, dark_background, invert)
    picture.thumbnail((200, 200))
    return Picture(np.asarray(picture), pixels, inverted)


def _scaled(
    picture: Any, image_shape: tuple[int, int, int], dark_background: bool, invert: bool | None
) -> tuple[np.ndarray, bool]:
    from PIL import Image

    height, width, channels = image_shape
    picture = picture.convert("L" if channels == 1 else "RGB")
    border = _border_colour(np.asarray(picture))
    if invert is None:
        invert = dark_background and float(np.mean(border)) > 127
    ratio = min(width / picture.width, height / picture.height)
    size = max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio))
    ground = Image.new(picture.mode, (width, height), border)
    small = picture.resize(size, Image.Resampling.BICUBIC)
    ground.paste(small, ((width - size[0]) // 2, (height - size[1]) // 2))
    pixels = np.asarray(ground).reshape(image_shape)
    return (255 - pixels if invert else pixels), invert


def _decode(path: str | os.PathLike[str]) -> Any:
    """The picture as a viewer shows it, in RGB."""
    from PIL import Image, UnidentifiedImageError

    try:
        mode = os.stat(path).st_mode
        # Opening a pipe would wait for a writer.
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise InputError(f"{str(path)!r} is {kind}; give an image file")
        # What Pillow warns of are damaged notes beside the picture, and its size.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return _read(path)
            except OSError as error:
                if "truncated" not in str(error):
                    raise
                return _read_without_end(path, error)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(
            f"{str(path)!r} is not a PNG, JPEG, WebP, GIF or BMP image, or is damaged; convert it "
            "to one of these"
        ) from error
    except (Image.DecompressionBombError, MemoryError) as error:
        raise InputError(f"{str(path)!r} is too large an image; scale it down first") from error
    # Pillow's decoders raise SyntaxError, ValueError and others, too, for damaged files.
    except Exception as error:
        reason = getattr(error, "strerror", None) or f"damaged: {one_line(error)}"
        raise InputError(f"can't read the image {str(path)!r} ({reason})") from error


def _read(source: Any) -> Any:
    """The picture of a file, or of its path, in RGB."""
    from PIL import Image

    with Image.open(source, formats=FORMATS) as file:
        if file.format in ("JPEG", "MPO"):
            file.draft(None, (_LARGE, _LARGE))
        if file.width * file.height > (Image.MAX_IMAGE_PIXELS or 2**27):
            raise Image.DecompressionBombError
        raw = file.tile[0][3] if file.tile else None
        file.load()
        return _upright(_flat(_eight_bits(file, raw)), _orientation(file))


def _read_without_end(path: str | os.PathLike[str], error: OSError) -> Any:
    """A JPEG of which only the mark of its end is missing, as by an interrupted copy.

    Raises:
      OSError: the given one, for any other file that is cut short.
    """
    content = Path(path).read_bytes().removesuffix(b"\xff")
    if not content.startswith(b"\xff\xd8"):
        raise error
    ended, longer = (_read(BytesIO(content + more + b"\xff\xd9")) for more in (b"", b"\x55" * 64))
    # If any of the picture were missing, the bytes added would have been taken for it.
    if ended != longer:
        raise error
    return ended


def _orientation(picture: Any) -> int:
    """How the camera was held, from 1 to 8; 1 where that is not told, or in damaged EXIF."""
    try:
        told = picture.getexif().get(0x0112)
    except Exception:  # Whatever is wrong with EXIF, a viewer shows the picture.
        return 1
    return told if isinstance(told, int) and 1 <= told <= 8 else 1


def _upright(picture: Any, orientation: int) -> Any:
    from PIL.Image import Transpose

    turns = [
        Transpose.FLIP_LEFT_RIGHT,
        Transpose.ROTATE_180,
        Transpose.FLIP_TOP_BOTTOM,
        Transpose.TRANSPOSE,
        Transpose.ROTATE_270,
        Transpose.TRANSVERSE,
        Transpose.ROTATE_90,
    ]
    return picture if orientation == 1 else picture.transpose(turns[orientation - 2])


def _eight_bits(picture: Any, raw: Any) -> Any:
    """RGB or RGBA of 8 bits.

    Args:
      picture: of any mode.
      raw: how its file stores samples, in Pillow's terms.
    """
    from PIL import Image

    key = picture.info.get("transparency")
    if picture.mode in ("P", "PA"):
        return picture.convert("RGBA")
    if picture.mode.startswith(("I", "F")):
        # 16 bits a pixel, which Pillow would clip instead of scale.
        samples = np.asarray(picture)
        grey = Image.fromarray((samples.clip(0, 65535) / 257).round().astype(np.uint8))
        here = samples == key if isinstance(key, int) else None
    else:
        if isinstance(key, bytes) or key is None:
            return picture.convert("RGBA" if picture.has_transparency_data else "RGB")
        grey = picture if picture.mode == "RGB" else picture.convert("L")
        # The transparent colour is told in the file's own samples, the pixels are in 8 bits.
        factor = {"1": 255, "L;2": 85, "L;4": 17}.get(raw, 1) if isinstance(raw, str) else 1
        colour = np.array(key) // (256 if raw == "RGB;16B" else 1) * factor
        here = np.asarray(grey) == colour
        here = here.all(-1) if here.ndim == 3 else here
    grey.info.pop("transparency", None)
    result = grey.convert("RGB")
    if here is not None:
        result.putalpha(Image.fromarray(np.where(here, 0, 255).astype(np.uint8)))
    return result


def _flat(picture: Any) -> Any:
    """RGB, laid on a ground on which it shows."""
    from PIL import Image

    if picture.mode == "RGB":
        return picture
    alpha = np.asarray(picture.getchannel("A"), np.float32) / 255
    ground = "white"
    if alpha.min() < 1 and alpha.any():
        grey = np.asarray(picture.convert("RGB").convert("L"), np.float32)
        mean = float(np.average(grey, weights=alpha))
        spread = float(np.average((grey - mean) ** 2, weights=alpha)) ** 0.5
        # Bright ink on nothing, not bright paper with a dark digit and transparent corners.
        if mean > 127 and (spread < 20 or alpha.mean() < 0.5):
            ground = "black"
    return Image.alpha_composite(Image.new("RGBA", picture.size, ground), picture).convert("RGB")


def _border_colour(pixels: np.ndarray) -> Any:
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour = np.median(border, axis=0).astype(int)
    return int(colour) if colour.ndim == 0 else tuple(colour.tolist())
