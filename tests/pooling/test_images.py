"""What is sent as a picture is decoded as it should stand, or refused in one sentence before it costs anything."""

import random
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from PIL import Image as Pillow

from pooling.errors import (
    BadImage,
    DamagedImage,
    EmptyImage,
    ImageTooLarge,
    InvalidRequest,
    MalformedDataUri,
    UnknownImageFormat,
    WrongImageType,
)
from pooling.images import ImageLimits, decode_data_uri, decode_image
from pooling.media import Image
from tests.encoded import bomb, data_uri, drawn, encoded, jpeg_of, png_of_chunks, tiled_tiff

LIMITS = ImageLimits()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG"])
def test_every_format_is_read(kind: str) -> None:
    picture = drawn()
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    image = decode_image(encoded(picture, kind, **options), LIMITS)
    difference = np.abs(image.pixels.astype(int) - np.asarray(picture).astype(int))
    assert difference.mean() < (0 if kind in ("PNG", "WEBP", "BMP", "TIFF") else 6) + 1e-9
    assert decode_data_uri(data_uri(encoded(picture, kind, **options), f"image/{kind.lower()}"), LIMITS) == image


def test_a_picture_stands_as_its_camera_says() -> None:
    picture = drawn(width=40, height=30)
    exif = Pillow.Exif()
    exif[0x0112] = 6  # the camera was turned a quarter
    turned = decode_image(encoded(picture, "PNG", exif=exif), LIMITS)
    assert turned == Image.of(picture.transpose(Pillow.Transpose.ROTATE_270))
    assert (turned.width, turned.height) == (30, 40)


def test_exif_that_cannot_be_read_costs_no_picture() -> None:
    picture = drawn()
    data = encoded(picture, "PNG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff\xff")
    assert decode_image(data, LIMITS) == Image.of(picture)


def test_of_several_frames_the_first_is_read() -> None:
    frames = [Pillow.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data, LIMITS).pixels[0, 0].tolist() == [255, 0, 0]


def test_what_is_transparent_is_white_and_sixteen_bits_are_not() -> None:
    clear = Pillow.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert decode_image(encoded(clear), LIMITS).pixels.min() == 255
    grey = Pillow.fromarray(np.full((4, 4), 0x8000, np.uint16))
    assert np.unique(decode_image(encoded(grey), LIMITS).pixels).tolist() == [0x80]


def test_one_pixel_is_a_picture() -> None:
    image = decode_image(encoded(Pillow.new("RGB", (1, 1), "red")), LIMITS)
    assert image.pixels.tolist() == [[[255, 0, 0]]]


def test_a_picture_in_a_tile_is_read() -> None:
    assert decode_image(tiled_tiff(16), LIMITS).pixels.shape == (4, 4, 3)


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        (b"", EmptyImage, "an image has no bytes"),
        (b"\x00" * 100, UnknownImageFormat, "no format that is read; allowed are PNG, JPEG, WEBP, GIF, BMP, TIFF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", UnknownImageFormat, "no format that is read"),
        (encoded(drawn())[:300], DamagedImage, "an image is cut off or damaged (PNG)"),
        (encoded(drawn(width=200), "JPEG")[:-200], DamagedImage, "an image is cut off or damaged (JPEG)"),
        (encoded(drawn(), "WEBP")[:60], BadImage, "an image"),
        (encoded(drawn(), "TIFF")[:200], BadImage, "an image"),
        (bomb(), ImageTooLarge, "more than 89478485 pixels, which is the most allowed (max_image_pixels)"),
        (bomb(10_000, 10_000), ImageTooLarge, "more than 89478485 pixels"),
        (tiled_tiff(16_000), ImageTooLarge, "more than 89478485 pixels"),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes, error: type[InvalidRequest], said: str) -> None:
    with pytest.raises(error) as refusal:
        decode_image(data, LIMITS)
    assert said in refusal.value.detail
    assert not any(mark in refusal.value.detail for mark in ("0x", "BytesIO", "/"))


_SEGMENT, _EMPTY, _FILL, _RESTART = b"\xff\xfe\x00\x02", b"\xff\xfe\x00\x00", b"\xff", b"\xff\xd0"


@pytest.mark.parametrize(
    "data",
    [
        png_of_chunks(10_000),
        jpeg_of(_SEGMENT * 10_000),
        jpeg_of(_EMPTY * 10_000),
        jpeg_of(_FILL * 10_000),
        jpeg_of(_RESTART * 10_000),
        jpeg_of(_SEGMENT + b"a" * 10_000),
        jpeg_of((b"\xff\xf0\xff\xff" + _RESTART) * 5_000),
    ],
    ids=["chunks", "segments", "empty", "fill", "restarts", "junk", "reserved"],
)
def test_a_picture_of_too_many_parts_is_refused_before_pillow_reads_it(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pillow, "open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(ImageTooLarge, match="more than 10000 segments or chunks"):
        decode_image(data, LIMITS)


def test_a_picture_of_many_parts_is_read() -> None:
    for data in (png_of_chunks(9_900), jpeg_of(_SEGMENT * 9_900), jpeg_of(_RESTART * 9 + _FILL * 9)):
        assert decode_image(data, LIMITS).width == 40


def test_the_size_is_judged_before_a_pixel_is_decoded() -> None:
    large = encoded(Pillow.new("RGB", (2_000, 2_000)))
    limits = ImageLimits(max_image_pixels=1_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(ImageTooLarge):
            decode_image(large, limits)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert decode_image(large, ImageLimits(max_image_pixels=4_000_000)).width == 2_000


def test_the_bytes_are_counted_before_they_are_read() -> None:
    data = encoded(drawn())
    assert decode_data_uri(data_uri(data), ImageLimits(max_image_bytes=len(data))).width == 40
    for limits in (ImageLimits(max_image_bytes=len(data) - 1), ImageLimits(max_image_bytes=100)):
        for decode in (lambda given: decode_image(data, given), lambda given: decode_data_uri(data_uri(data), given)):
            with pytest.raises(ImageTooLarge, match="which is the most allowed"):
                decode(limits)


@pytest.mark.parametrize(
    ("uri", "error", "said"),
    [
        ("data:image/png;base64", MalformedDataUri, "must read data:TYPE;base64,DATA"),
        ("data:image/png,abc", MalformedDataUri, "must read data:TYPE;base64,DATA"),
        ("data:image/png;base64,a*b=", MalformedDataUri, "is not base64"),
        ("data:image/png;base64,é", MalformedDataUri, "is not base64"),
        ("data:image/png;base64,", EmptyImage, "no bytes"),
        (data_uri(encoded(drawn(), "JPEG")), WrongImageType, "is said to be image/png, but it is image/jpeg"),
        (data_uri(encoded(drawn()), "text/html"), WrongImageType, "said to be 'text/html'; allowed are image/png, ima"),
        (data_uri(encoded(drawn()), "image/svg+xml"), WrongImageType, "said to be 'image/svg+xml'"),
    ],
)
def test_a_data_uri_must_be_what_it_says(uri: str, error: type[InvalidRequest], said: str) -> None:
    with pytest.raises(error) as refusal:
        decode_data_uri(uri, LIMITS)
    assert said in refusal.value.detail


@pytest.mark.parametrize("said", ["", "application/octet-stream", "IMAGE/PNG", "image/*"])
def test_types_may_be_written_in_many_ways(said: str) -> None:
    assert decode_data_uri(data_uri(encoded(drawn()), said), LIMITS) == Image.of(drawn())


def test_a_thousand_broken_pictures_raise_nothing_else() -> None:
    draw = random.Random(7)
    good = [encoded(drawn(width=9, height=7), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")]
    refused = 0
    for _ in range(1_000):
        data = bytearray(draw.choice(good))
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            decode_image(bytes(data), ImageLimits(max_image_pixels=100_000))
        except (BadImage, ImageTooLarge):
            refused += 1
    assert refused > 100


def test_no_warning_of_pillow_escapes() -> None:
    """In a process that makes errors of warnings, as it starts: the filters of this one are pytest's."""
    program = (
        "from pooling.images import ImageLimits, decode_image\n"
        "from tests.encoded import encoded, drawn\n"
        "import PIL.Image\n"
        "PIL.Image.MAX_IMAGE_PIXELS = 700\n"  # so that 1,200 are ones to warn of
        "print(decode_image(encoded(drawn()), ImageLimits()).width)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("40\n", "")
