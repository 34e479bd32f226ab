"""refuse_taken_ports(): a port in use is said before anything is started."""

import errno
import os
import socket

from pooling.errors import ConfigError, StartupError

# Serve's defaults; it reads the same variables.
_HAPROXY_PORTS = {"RAY_SERVE_HAPROXY_STATS_PORT": 8404, "RAY_SERVE_HAPROXY_METRICS_PORT": 9101}


def refuse_taken_ports(host: str, port: int) -> None:
    """Raises StartupError for a port that is in use, ConfigError for a host that is not this machine's.

    Looks at the port that clients are to use and at the two that HAProxy keeps
    for its own statistics.
    """
    if not _is_free(host, port):
        raise StartupError(f"port {port} on {host} is in use; stop what uses it or choose another with --port")
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
        return
    for name, default in _HAPROXY_PORTS.items():
        number = int(os.environ.get(name, default))
        if not _is_free("0.0.0.0", number):
            raise StartupError(
                f"port {number}, which HAProxy needs for its statistics, is in use; is Ray Serve running already? "
                f"If not, choose another with {name}"
            )


def _is_free(host: str, port: int) -> bool:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As servers do: connections that are closing do not count, listeners do.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot listen on host {host!r}, port {port}: {reason}") from None
    return True
