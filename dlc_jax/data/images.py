"""A person's own picture as a network wants it."""

import os
import warnings
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dlc_jax.errors import InputError


def read_image(
    path: str | os.PathLike[str],
    image_shape: tuple[int, int, int],
    *,
    dark_background: bool = False,
    invert: bool | None = None,
) -> tuple[UInt8[np.ndarray, "height width channels"], bool]:
    """Reads a PNG or JPEG file of any size.

    The picture is turned as its camera says, laid on white where it is transparent, made
    grey or coloured, and scaled to fit; what it then leaves free is filled with the colour
    of its border.

    Args:
      path: the file.
      image_shape: height, width and channels (1 or 3) to return.
      dark_background: whether the network learned bright things on a dark ground.
      invert: whether to turn dark into bright; by default only where `dark_background`
        and the picture's border is bright, as ink on paper is.

    Returns:
      The pixels, and whether they were inverted.

    Raises:
      InputError: the file is missing, no PNG or JPEG, or damaged.
    """
    from PIL import ImageOps

    height, width, channels = image_shape
    picture = _decode(path, "L" if channels == 1 else "RGB")
    border = _border_colour(np.asarray(picture))
    if invert is None:
        invert = dark_background and float(np.mean(border)) > 127
    picture = ImageOps.pad(picture, (width, height), color=border)
    pixels = np.asarray(picture).reshape(image_shape)
    return (255 - pixels if invert else pixels), invert


def _decode(path: str | os.PathLike[str], mode: str) -> Any:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings(), Image.open(path, formats=["PNG", "JPEG"]) as file:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = ImageOps.exif_transpose(file)
    except UnidentifiedImageError as error:
        raise InputError(f"{str(path)!r} is neither a PNG nor a JPEG image") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{str(path)!r} is too large an image; scale it down first") from error
    # Pillow's decoders raise SyntaxError, ValueError and others, too, for damaged files.
    except Exception as error:
        reason = getattr(error, "strerror", None) or f"damaged: {error}"
        raise InputError(f"can't read the image {str(path)!r} ({reason})") from error
    if picture.mode.startswith("I"):
        # 16 bits a pixel, which Pillow would clip instead of scale.
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert(mode)


def _border_colour(pixels: np.ndarray) -> Any:
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour = np.median(border, axis=0).astype(int)
    return int(colour) if colour.ndim == 0 else tuple(colour.tolist())
