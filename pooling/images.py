"""decode_image() and decode_data_uri(): what clients send as a picture -> Image, in limits; no network, no files."""

import base64
import io
import warnings

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps, TiffImagePlugin, UnidentifiedImageError
from pydantic import Field

from pooling.config import Settings
from pooling.errors import (
    DamagedImage,
    EmptyImage,
    ImageTooLarge,
    MalformedDataUri,
    UnknownImageFormat,
    WrongImageType,
)
from pooling.image_parts import parts_of_image
from pooling.media import Image

# Pillow warns of more, and refuses twice as many: 256 MiB as RGB.
_PIXELS = 89_478_485
# Most PNGs have a chunk for every 8 KiB, which is 2,560 of the largest that is taken; photos have dozens of segments.
_MAX_PARTS = 10_000
# Pillow's names, and the types that clients have for each. JPEGs of some cameras hold a second picture: MPO.
_TYPES = {
    "PNG": ("image/png", "image/apng", "image/x-png"),
    "JPEG": ("image/jpeg", "image/jpg", "image/pjpeg"),
    "MPO": ("image/jpeg", "image/jpg", "image/pjpeg"),
    "WEBP": ("image/webp",),
    "GIF": ("image/gif",),
    "BMP": ("image/bmp", "image/x-bmp", "image/x-ms-bmp"),
    "TIFF": ("image/tiff", "image/tif"),
}
_READ = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
# Who says so says nothing.
_UNTYPED = ("", "application/octet-stream", "image/*")
_DATA = "data:"

# Of odd tags in the pictures of others, and of sizes that are judged here. The filters of a process are all its
# threads', so one that is set for a while in one of them would be set in the others, or for ever.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageLimits(Settings):
    """How large one picture may be: as it comes, and decoded."""

    max_image_bytes: int = Field(20_971_520, gt=0, description="of one image, as it is sent or fetched")
    max_image_pixels: int = Field(_PIXELS, gt=0, le=2 * _PIXELS, description="of one image, width times height")


def decode_image(data: bytes, limits: ImageLimits, said: str = "") -> Image:
    """The picture in PNG, JPEG, WEBP, GIF, BMP or TIFF; of several frames the first.

    It is turned as its EXIF orientation says, and what is transparent becomes
    white. said: the media type that came with it; '' for none. The size is judged
    by the header, before anything is decoded.
    Raises ImageTooLarge, or BadImage of the fitting kind.
    """
    if not data:
        raise EmptyImage("an image has no bytes", "image")
    if len(data) > limits.max_image_bytes:
        raise _too_many_bytes(limits)
    picture = _opened(data, limits)
    _check_type(said, picture.format or "")
    try:
        picture.load()
    except Exception as error:  # any failure of Pillow's decoders has one meaning for the caller
        raise DamagedImage(f"an image is cut off or damaged ({picture.format}): {_reason(error)}", "image") from None
    return _image(_upright(picture))


def is_data_uri(url: str) -> bool:
    return url[: len(_DATA)].lower() == _DATA


def decode_data_uri(uri: str, limits: ImageLimits) -> Image:
    """The picture in `data:image/png;base64,...`. Raises MalformedDataUri, and what decode_image() raises."""
    said, data = read_data_uri(uri, limits)
    return decode_image(data, limits, said)


def read_data_uri(uri: str, limits: ImageLimits) -> tuple[str, bytes]:
    """The media type of a data URI and its bytes. Raises MalformedDataUri or ImageTooLarge."""
    head, comma, payload = uri.partition(",")
    said, *options = head[len(_DATA) :].split(";")
    if not comma or not options or options[-1].strip().lower() != "base64":
        raise MalformedDataUri("a data URI must read data:TYPE;base64,DATA, as in data:image/png;base64,...", "image")
    if 3 * len(payload) // 4 > limits.max_image_bytes + 2:  # two bytes of the last three may be filling
        raise _too_many_bytes(limits)
    try:
        return said.strip().lower(), base64.b64decode(payload, validate=True)
    except ValueError as error:
        raise MalformedDataUri(f"the data of a data URI is not base64: {error}", "image") from None


def _too_many_bytes(limits: ImageLimits) -> ImageTooLarge:
    return ImageTooLarge(
        f"an image has more than {limits.max_image_bytes} bytes, which is the most allowed (max_image_bytes)", "image"
    )


def _opened(data: bytes, limits: ImageLimits) -> Pillow.Image:
    """A picture of which only the header is read."""
    if parts_of_image(data, _MAX_PARTS) > _MAX_PARTS:
        raise ImageTooLarge(
            f"an image has more than {_MAX_PARTS} segments or chunks, which is the most allowed", "image"
        )
    try:
        picture = Pillow.open(io.BytesIO(data), formats=_READ)
        pixels = max(picture.width * picture.height, _tile_pixels(picture))
    except UnidentifiedImageError:
        allowed = ", ".join(_READ)
        raise UnknownImageFormat(f"an image is of no format that is read; allowed are {allowed}", "image") from None
    except Pillow.DecompressionBombError:
        pixels = limits.max_image_pixels + 1
    except Exception as error:  # a header that no plugin of Pillow's expects
        raise DamagedImage(f"an image has a damaged header: {_reason(error)}", "image") from None
    if pixels > limits.max_image_pixels:
        raise ImageTooLarge(
            f"an image has more than {limits.max_image_pixels} pixels, which is the most allowed (max_image_pixels)",
            "image",
        )
    return picture


def _tile_pixels(picture: Pillow.Image) -> int:
    """Of a TIFF, a tile of which is decoded whole however small the picture is."""
    if not isinstance(picture, TiffImagePlugin.TiffImageFile):
        return 0
    tags = picture.tag_v2
    return int(tags.get(TiffImagePlugin.TILEWIDTH, 0)) * int(tags.get(TiffImagePlugin.TILELENGTH, 0))


def _check_type(said: str, found: str) -> None:
    if said in _UNTYPED or said in _TYPES[found]:
        return
    known = [types[0] for name, types in _TYPES.items() if name in _READ]
    if not any(said in types for types in _TYPES.values()):
        raise WrongImageType(f"an image is said to be {said[:100]!r}; allowed are {', '.join(known)}", "image")
    raise WrongImageType(f"an image is said to be {said}, but it is {_TYPES[found][0]}", "image")


def _upright(picture: Pillow.Image) -> Pillow.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # tags that cannot be read say nothing of how the picture stands
        return picture


def _image(picture: Pillow.Image) -> Image:
    if picture.mode.startswith("I;16"):
        # Pillow would cut 16 bits off at 255 and leave white; the upper eight are what 8-bit pictures have.
        return Image.of((np.asarray(picture) >> 8).astype(np.uint8))
    return Image.of(picture)


def _reason(error: Exception) -> str:
    """Pillow's own words, without the object that they may name."""
    lines = str(error).splitlines()
    return lines[0].partition(" <")[0][:200] if lines else type(error).__name__
