"""parts_of_image(): how many segments a JPEG has before its pixels, or chunks a PNG, counted as Pillow reads them."""

from collections.abc import Iterator

from PIL import JpegImagePlugin

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_SCAN = 0xFFDA


def parts_of_image(data: bytes, most: int) -> int:
    """Counts to `most` + 1 and no further; 0 for data of another format.

    Each is a step of Pillow's, in Python: millions of empty ones take it minutes.
    """
    walk = _chunks(data) if data.startswith(_PNG) else _segments(data) if data.startswith(_JPEG) else iter(())
    return sum(1 for _ in zip(range(most + 1), walk, strict=False))


def _chunks(data: bytes) -> Iterator[int]:
    """Where each begins: its length in four bytes, its name, as many bytes, and four to check them."""
    at = len(_PNG)
    while at + 12 <= len(data):
        yield at
        at += 12 + int.from_bytes(data[at : at + 4])


def _segments(data: bytes) -> Iterator[int]:
    """Where each begins, and every byte between them, which Pillow reads one at a time.

    Source: JpegImageFile._open() of Pillow 13.
    """
    at = 2
    while at + 2 <= len(data):
        yield at
        marker = int.from_bytes(data[at : at + 2])
        if marker == _SCAN:
            return
        if data[at] != 0xFF or marker == 0xFFFF:
            at += 1
        elif marker not in JpegImagePlugin.MARKER or JpegImagePlugin.MARKER[marker][2] is None:
            at += 2
        else:
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4]))
