"""MediaConfig: what the service takes of images, and from where it fetches them; SentImage: one that a client sends."""

import re
from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator

from pooling.images import ImageLimits

# A host's name, or *. and one; a port where it is not that of the scheme. The last label begins with a letter, so that
# no address is a name.
_DOMAIN = re.compile(r"(\*\.)?([a-z0-9_]([a-z0-9_-]*[a-z0-9_])?\.)+[a-z][a-z0-9-]*(:[0-9]{1,5})?")


class MediaConfig(ImageLimits):
    """Images in requests. They are fetched by URL only from domains that are named here.

    allowed_domains: `images.example.com` for that host, `*.example.com` for every
    host below it, with `:8443` behind it for a port that is not the scheme's own.
    """

    allowed_domains: list[str] = Field([], description="hosts that images may be fetched from; none: no fetching")
    fetch_timeout_s: float = Field(5.0, gt=0, description="for one image, redirects included")
    max_redirects: int = Field(3, ge=0)
    max_fetches: int = Field(16, gt=0, description="fetched at once by one router")
    # Processed, images take as much for a token as texts for a thousand: 1,700 of 224x224.
    max_queued_bytes: int = Field(1 << 30, gt=0, description="of processed images that wait or run, of one router")
    # Three images as large as one may be; 5,000 of 224x224.
    max_request_pixels: int = Field(268_435_456, gt=0, description="of all images of a request together")

    @model_validator(mode="after")
    def _are_domains(self) -> Self:
        for domain in self.allowed_domains:
            if not _DOMAIN.fullmatch(domain):
                raise ValueError(
                    f"allowed_domains has {domain!r}; allowed are names in lower case such as images.example.com, "
                    "*.example.com or images.example.com:8443, without a scheme or a path"
                )
        return self


@dataclass(frozen=True, slots=True)
class SentImage:
    """An image as a client sends it: by URL, or embedded already.

    Until ServedModel reads a request, it stands where the image will: a queue of
    requests would otherwise hold pictures that take a hundred times as much.
    url: http, https or data; '' for base64 of `rows`, and of their `grid` where
    they have one, as read_embeds() takes them.
    """

    url: str
    rows: str = ""
    grid: str | None = None
