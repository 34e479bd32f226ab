"""Every refusal and failure that a caller of Raypool may see.

PoolingError
├── InvalidRequest          the request cannot be served as it stands
│   ├── InputTooLong        an input has more tokens or characters than the model takes
│   ├── UnsupportedTask     the model does not do what was asked
│   ├── MalformedDataUri    a data URI is not one
│   ├── ImageTooLarge       an image has more bytes or pixels than are allowed
│   ├── BadImage            what is meant as an image cannot be read as one
│   │   ├── EmptyImage          it has no bytes
│   │   ├── UnknownImageFormat  it is of no format that is read
│   │   ├── WrongImageType      it is not what it calls itself
│   │   └── DamagedImage        it begins as an image, but is cut off or broken
│   ├── FetchRefused        a URL must not be fetched
│   └── FetchFailed         a URL may be fetched, but there is no image to be had
├── UnknownModel            no model of that name is served
├── Overloaded              too many tokens wait already; try again later
├── Unavailable             no engine can answer now
│   └── EngineDead          this engine has failed and answers no more; another may
├── DeadlineExceeded        the time the caller allowed has passed
├── EngineFailure           the forward pass failed
│   └── NonFiniteResult     the model answered NaN or infinity
└── StartupError            the service refuses to start
    ├── ConfigError         a setting is unknown, impossible or contradicts another
    ├── SourceError         the model's files are not where the configuration says
    └── CheckpointError     the model's files are damaged or of a kind we cannot serve

The HTTP status of each is in one table, deployments/http/errors.py.
"""


class PoolingError(Exception):
    """Base of every refusal or failure a caller may see.

    `detail` is a sentence that is safe to show a client: no path, address or
    traceback. `param` names the offending field of the request, where there is
    one. Subclasses add no arguments: Ray rebuilds errors from `args`.
    """

    def __init__(self, detail: str, param: str | None = None) -> None:
        super().__init__(detail, param)
        self.detail = detail
        self.param = param

    def __str__(self) -> str:
        return self.detail


class InvalidRequest(PoolingError):
    """The request cannot be served as it stands; sending it again will not help."""


class InputTooLong(InvalidRequest):
    """An input has more tokens or characters than the model takes."""


class UnsupportedTask(InvalidRequest):
    """The model does not do what was asked."""


class MalformedDataUri(InvalidRequest):
    """A data URI is not one, or not base64."""


class ImageTooLarge(InvalidRequest):
    """An image, or the images of a request together, have more bytes or pixels than are allowed."""


class BadImage(InvalidRequest):
    """What is meant as an image cannot be read as one."""


class EmptyImage(BadImage):
    """An image has no bytes."""


class UnknownImageFormat(BadImage):
    """An image is of no format that is read."""


class WrongImageType(BadImage):
    """An image is not of the type that it is said to be."""


class DamagedImage(BadImage):
    """An image is cut off or broken."""


class FetchRefused(InvalidRequest):
    """The service must not fetch a URL."""


class FetchFailed(InvalidRequest):
    """The service may fetch a URL, but gets no image there."""


class UnknownModel(PoolingError):
    """No model of that name is served."""


class Overloaded(PoolingError):
    """Too many tokens wait already; the same request may pass later."""


class Unavailable(PoolingError):
    """No engine can answer now."""


class EngineDead(Unavailable):
    """This engine has failed and answers no more; another replica may."""


class DeadlineExceeded(PoolingError):
    """The time the caller allowed has passed."""


class EngineFailure(PoolingError):
    """The forward pass failed."""


class NonFiniteResult(EngineFailure):
    """The model answered NaN or infinity for an input."""


class StartupError(PoolingError):
    """The service refuses to start."""


class ConfigError(StartupError):
    """A setting is unknown, impossible or contradicts another."""


class SourceError(StartupError):
    """The model's files are not where the configuration says."""


class CheckpointError(StartupError):
    """The model's files are damaged or of a kind we cannot serve."""
