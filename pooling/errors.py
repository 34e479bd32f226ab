"""Every refusal and failure that a caller of Raypool may see.

PoolingError
├── InvalidRequest          the request cannot be served as it stands
│   ├── InputTooLong        an input has more tokens or characters than the model takes
│   └── UnsupportedTask     the model does not do what was asked
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
