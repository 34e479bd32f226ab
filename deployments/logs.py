"""Where our log lines go in a Serve replica: to stderr, which Ray keeps in a file and shows at the driver."""

import logging
import sys

_FORMAT = "%(levelname)s %(asctime)s raypool: %(message)s"


def show_log() -> None:
    """Shows what Raypool logs from INFO on. Calling it again changes nothing."""
    log = logging.getLogger("raypool")
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(_FORMAT))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False  # Serve's own handlers would print each line again
