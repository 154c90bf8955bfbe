"""What images a network's first layers are made for."""

from dlc_jax.errors import InputError


def check_stem(network: str, stem: str, image_shape: tuple[int, int, int]) -> None:
    """Raises an InputError where there is no such stem, or it makes too little of the images."""
    if stem not in ("imagenet", "small"):
        raise InputError(f"{network} has no stem {stem!r}; choose from imagenet, small")
    height, width, _ = image_shape
    if stem == "imagenet" and min(height, width) < 32:
        raise InputError(
            f"{network}'s stem for ImageNet needs images of at least 32x32, not "
            f'{height}x{width}; take stem="small"'
        )
