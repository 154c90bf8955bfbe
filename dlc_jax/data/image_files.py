"""Reads image files as input for a network."""

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
# Larger JPEGs are decoded at reduced size, to save memory.
_MAX_JPEG_SIDE = 2000


class Picture(NamedTuple):
    """A picture and the network's input made from it.

    Attributes:
      original: The picture, scaled down to at most 200 pixels per side.
      pixels: The network's input.
      inverted: Whether dark and bright were swapped.
    """

    original: UInt8[np.ndarray, "rows columns colors"]
    pixels: UInt8[np.ndarray, "height width channels"]
    inverted: bool


def read_image(
    path: str | os.PathLike[str],
    image_shape: tuple[int, int, int],
    *,
    dark_background: bool = False,
    invert: bool | None = None,
) -> tuple[UInt8[np.ndarray, "height width channels"], bool]:
    """Reads an image file and scales it to the given shape.

    The aspect ratio is kept; the rest is padded with the color of the border. The EXIF
    orientation is applied. Of an animation, the first frame is read. Transparent pictures get a
    white background, or a black one if the drawing is bright.

    Args:
      path: A PNG, JPEG, WebP, GIF or BMP file.
      image_shape: Height, width and channels (1 or 3) of the result.
      dark_background: Whether the network was trained on bright objects on a dark background.
      invert: Whether to swap dark and bright; by default if `dark_background` is true and the
        picture's border is bright.

    Returns:
      The pixels, and whether they were inverted.

    Raises:
      InputError: The file is missing, of another format, damaged or too large.

    Example:
      >>> import tempfile
      >>> from PIL import Image
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     Image.new("RGB", (56, 28), "red").save(f"{folder}/red.png")
      ...     pixels, inverted = read_image(f"{folder}/red.png", (14, 14, 3))
      >>> pixels.shape, pixels[7, 7].tolist(), inverted
      ((14, 14, 3), [255, 0, 0], False)
    """
    return _scale(_decode(path), image_shape, dark_background, invert)


def read_picture(
    path: str | os.PathLike[str],
    image_shape: tuple[int, int, int],
    *,
    digit: bool = False,
    dark_background: bool = False,
    invert: bool | None = None,
) -> Picture:
    """Reads an image file as `read_image` does, and also returns the original.

    Args:
      path: A PNG, JPEG, WebP, GIF or BMP file.
      image_shape: Height, width and channels (1 or 3) of the network's input.
      digit: Whether to convert the picture, of a handwritten digit, to MNIST's format.
      dark_background: See `read_image`.
      invert: See `read_image`.

    Raises:
      InputError: The file can't be read, or `digit` is true and there is no ink.
    """
    picture = _decode(path)
    if digit:
        found = handwriting.to_mnist_format(np.asarray(picture), invert=invert)
        if found is None:
            raise InputError(
                f"no ink was found in {str(path)!r}; give a picture of one digit, or only scale "
                "pictures with digit=False (--as-is)"
            )
        pixels, inverted = found[0].reshape(image_shape), found[1]
    else:
        pixels, inverted = _scale(picture, image_shape, dark_background, invert)
    picture.thumbnail((200, 200))
    return Picture(np.asarray(picture), pixels, inverted)


def _scale(
    picture: Any, image_shape: tuple[int, int, int], dark_background: bool, invert: bool | None
) -> tuple[np.ndarray, bool]:
    from PIL import Image

    height, width, channels = image_shape
    picture = picture.convert("L" if channels == 1 else "RGB")
    border = _border_color(np.asarray(picture))
    if invert is None:
        invert = dark_background and float(np.mean(border)) > 127
    ratio = min(width / picture.width, height / picture.height)
    size = max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio))
    canvas = Image.new(picture.mode, (width, height), border)
    small = picture.resize(size, Image.Resampling.BICUBIC)
    canvas.paste(small, ((width - size[0]) // 2, (height - size[1]) // 2))
    pixels = np.asarray(canvas).reshape(image_shape)
    return (255 - pixels if invert else pixels), invert


def _decode(path: str | os.PathLike[str]) -> Any:
    """Decodes an image file as a Pillow image in RGB."""
    from PIL import Image, UnidentifiedImageError

    try:
        mode = os.stat(path).st_mode
        # Opening a pipe would block.
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise InputError(f"{str(path)!r} is {kind}; give an image file")
        # Pillow warns of damaged metadata and large sizes.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return _read(path)
            except OSError as error:
                if "truncated" not in str(error):
                    raise
                return _read_without_end_marker(path, error)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(
            f"{str(path)!r} is not a PNG, JPEG, WebP, GIF or BMP image, or is damaged; convert it "
            "to one of these"
        ) from error
    except (Image.DecompressionBombError, MemoryError) as error:
        raise InputError(f"the image {str(path)!r} is too large; scale it down first") from error
    # Pillow also raises SyntaxError, ValueError and others for damaged files.
    except Exception as error:
        reason = getattr(error, "strerror", None) or f"damaged: {one_line(error)}"
        raise InputError(f"can't read the image {str(path)!r} ({reason})") from error


def _read(source: Any) -> Any:
    """The image of a file or path, in RGB."""
    from PIL import Image

    with Image.open(source, formats=FORMATS) as file:
        if file.format in ("JPEG", "MPO"):
            file.draft(None, (_MAX_JPEG_SIDE, _MAX_JPEG_SIDE))
        if file.width * file.height > (Image.MAX_IMAGE_PIXELS or 2**27):
            raise Image.DecompressionBombError
        raw = file.tile[0][3] if file.tile else None
        file.load()
        return _apply_orientation(_remove_alpha(_to_8_bits(file, raw)), _orientation(file))


def _read_without_end_marker(path: str | os.PathLike[str], error: OSError) -> Any:
    """Reads a JPEG that lacks only its end marker.

    Raises:
      OSError: The given error, for any other truncated file.
    """
    content = Path(path).read_bytes().removesuffix(b"\xff")
    if not content.startswith(b"\xff\xd8"):
        raise error
    image, padded = (_read(BytesIO(content + more + b"\xff\xd9")) for more in (b"", b"\x55" * 64))
    # The images differ if the decoder used the additional bytes.
    if image != padded:
        raise error
    return image


def _orientation(picture: Any) -> int:
    """EXIF orientation, from 1 to 8; 1 if it is missing or damaged."""
    try:
        orientation = picture.getexif().get(0x0112)
    except Exception:  # Pillow raises various errors for damaged EXIF.
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _apply_orientation(picture: Any, orientation: int) -> Any:
    from PIL.Image import Transpose

    transposes = [
        Transpose.FLIP_LEFT_RIGHT,
        Transpose.ROTATE_180,
        Transpose.FLIP_TOP_BOTTOM,
        Transpose.TRANSPOSE,
        Transpose.ROTATE_270,
        Transpose.TRANSVERSE,
        Transpose.ROTATE_90,
    ]
    return picture if orientation == 1 else picture.transpose(transposes[orientation - 2])


def _to_8_bits(picture: Any, raw: Any) -> Any:
    """Converts to RGB or RGBA with 8 bits per channel.

    Args:
      picture: Pillow image of any mode.
      raw: Pillow's raw mode of the file.
    """
    from PIL import Image

    key = picture.info.get("transparency")
    if picture.mode in ("P", "PA"):
        return picture.convert("RGBA")
    if picture.mode.startswith(("I", "F")):
        # Pillow would clip 16 bits to 8.
        samples = np.asarray(picture)
        gray = Image.fromarray((samples.clip(0, 65535) / 257).round().astype(np.uint8))
        transparent = samples == key if isinstance(key, int) else None
    else:
        if isinstance(key, bytes) or key is None:
            return picture.convert("RGBA" if picture.has_transparency_data else "RGB")
        gray = picture if picture.mode == "RGB" else picture.convert("L")
        # The transparent color has the file's bit depth.
        factor = {"1": 255, "L;2": 85, "L;4": 17}.get(raw, 1) if isinstance(raw, str) else 1
        color = np.array(key) // (256 if raw == "RGB;16B" else 1) * factor
        transparent = np.asarray(gray) == color
        transparent = transparent.all(-1) if transparent.ndim == 3 else transparent
    gray.info.pop("transparency", None)
    result = gray.convert("RGB")
    if transparent is not None:
        result.putalpha(Image.fromarray(np.where(transparent, 0, 255).astype(np.uint8)))
    return result


def _remove_alpha(picture: Any) -> Any:
    """Converts to RGB, on a background with contrast to the drawing."""
    from PIL import Image

    if picture.mode == "RGB":
        return picture
    alpha = np.asarray(picture.getchannel("A"), np.float32) / 255
    background = "white"
    if alpha.min() < 1 and alpha.any():
        gray = np.asarray(picture.convert("RGB").convert("L"), np.float32)
        mean = float(np.average(gray, weights=alpha))
        variance = float(np.average((gray - mean) ** 2, weights=alpha))
        # A bright drawing, not bright paper with transparent corners.
        if mean > 127 and (variance < 20**2 or alpha.mean() < 0.5):
            background = "black"
    return Image.alpha_composite(Image.new("RGBA", picture.size, background), picture).convert(
        "RGB"
    )


def _border_color(pixels: np.ndarray) -> Any:
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    color = np.median(border, axis=0).astype(int)
    return int(color) if color.ndim == 0 else tuple(color.tolist())
