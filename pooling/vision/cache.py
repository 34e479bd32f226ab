"""ImageCache: processed images by their content, the last used ones within a bound of memory."""

import threading
from collections import OrderedDict

from pooling.media import ProcessedImage

# Some 800 images of 224x224, or 20 of 1024x1024 in Qwen's patches.
_MAX_BYTES = 512 * 2**20


class ImageCache:
    """Safe to call from several threads."""

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._images: OrderedDict[bytes, ProcessedImage] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> ProcessedImage | None:
        with self._lock:
            image = self._images.get(key)
            if image is not None:
                self._images.move_to_end(key)
            return image

    def add(self, image: ProcessedImage) -> None:
        """Drops those that were not used for longest; one that is larger than the bound is not kept."""
        size = image.pixels.nbytes
        with self._lock:
            if image.key in self._images or size > self._max_bytes:
                return
            self._images[image.key] = image
            self._bytes += size
            while self._bytes > self._max_bytes:
                _, dropped = self._images.popitem(last=False)
                self._bytes -= dropped.pixels.nbytes
