"""ProcessedBytes: what the images of one request take when they are processed, in a bound."""

from collections.abc import Iterable

from pooling.errors import ImageTooLarge
from pooling.media import ProcessedImage


class ProcessedBytes:
    """Adds up images as they are processed; one that several inputs share is one."""

    def __init__(self, most: int | None) -> None:
        """most: allowed in all; None: any number."""
        self._most, self._bytes = most, 0
        self._images: dict[int, ProcessedImage] = {}

    def take(self, images: Iterable[ProcessedImage]) -> None:
        """Raises ImageTooLarge for the image with which they are too many."""
        for image in images:
            if id(image) not in self._images:
                self._images[id(image)] = image  # held, so that no other gets its id
                self._bytes += image.pixels.nbytes
        if self._most is not None and self._bytes > self._most:
            raise ImageTooLarge(
                f"the first {len(self._images)} images of a request take {self._bytes} bytes when they are processed; "
                f"allowed are at most {self._most} for all of them. Please send them in several requests",
                "image",
            )
