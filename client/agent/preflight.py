"""Before joining: is the coordinator there, is it the right one, does its clock agree with ours?

Flower closes the connection without a reason when a site's clock is off, so this is found out first.
"""

import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx

from fedpath.core.errors import ConfigError, ConnectionFailedError, StoppedError

# Flower takes a signature made 5 s in its future to 305 s in its past; the Date header is whole seconds.
_AHEAD_S, _BEHIND_S = 4.0, 300.0
_TIMEOUT_S = 10.0
_OUT_OF_TIME = frozenset({9, 10})  # OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and _HAS_EXPIRED
_RETRY_S = 0.5


class UnreachableError(ConnectionFailedError):
    """Nobody answers at the coordinator's address; trying later may help."""


def wait_for_coordinator(
    address: str, authority: Path, *, wait_s: float, stop: threading.Event, waiting: Callable[[str], None]
) -> None:
    """Check the coordinator, again and again while nobody answers, up to ``wait_s``.

    Args:
        address: host:port.
        authority: PEM certificate of the only authority trusted.
        wait_s: seconds after which a coordinator that cannot be reached is an error.
        stop: set it to give up.
        waiting: called once with the reason when the first try fails.

    Raises:
        ConnectionFailedError: as `check_coordinator`.
        StoppedError: ``stop`` was set.
    """
    deadline, told = time.monotonic() + wait_s, False
    while True:
        try:
            return check_coordinator(address, authority)
        except UnreachableError as error:
            if time.monotonic() >= deadline:
                raise
            if not told:
                waiting(error.message)
                told = True
            if stop.wait(_RETRY_S):
                raise StoppedError from None


def authority_context(authority: Path) -> ssl.SSLContext:
    """Return a TLS context that trusts the kit's authority and no other.

    Raises:
        ConfigError: the kit's certificate cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(authority)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"{authority}: no readable certificate: {error}", remedy="take ca.crt from the kit again"
        ) from None
    return context


def check_coordinator(address: str, authority: Path, clock: Callable[[], float] = time.time) -> None:
    """Ask the coordinator for its health and the time.

    Args:
        address: host:port.
        authority: PEM certificate of the only authority trusted.
        clock: this machine's time in seconds since the epoch.

    Raises:
        ConnectionFailedError: it cannot be reached, shows another certificate, is no coordinator, or the clocks differ.
    """
    context = authority_context(authority)
    try:
        with httpx.Client(verify=context, timeout=_TIMEOUT_S) as client:
            sent = clock()
            response = client.get(f"https://{address}/health")
            received = clock()
    except httpx.TransportError as error:
        raise explain_transport_error(address, error) from None
    if response.status_code != httpx.codes.OK:
        raise ConnectionFailedError(
            f"{address} answers, but not as a fedpath coordinator (HTTP {response.status_code})",
            remedy="check the address in kit.toml, and any proxy in between",
        )
    check_clock(address, response.headers.get("date", ""), (sent + received) / 2)


def check_clock(address: str, date_header: str, local: float) -> None:
    """Compare this machine's time with the coordinator's.

    Raises:
        ConnectionFailedError: they differ by more than the coordinator accepts.
    """
    try:
        date = parsedate_to_datetime(date_header)
    except ValueError:
        return  # a proxy removed the header; the coordinator itself will judge the signatures
    # "-0000" gives no zone, and would be taken for this machine's own; HTTP's dates are UTC.
    theirs = (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp() + 0.5
    ahead = local - theirs
    if -_BEHIND_S <= ahead <= _AHEAD_S:
        return
    direction = "ahead of" if ahead > 0 else "behind"
    raise ConnectionFailedError(
        f"this machine's clock is {abs(ahead):.0f} s {direction} the coordinator's at {address}",
        remedy="set the clock by NTP (timedatectl set-ntp true), then join again",
    )


def explain_transport_error(address: str, error: Exception) -> ConnectionFailedError:
    """Say which of the usual reasons kept us from talking to ``address``."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError) and cause.verify_code in _OUT_OF_TIME:
            now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
            return ConnectionFailedError(
                f"the certificate of {address} is not valid at this machine's time, {now}: {cause.verify_message}",
                remedy="is that time right? set the clock by NTP; if it is, the operator must renew the certificate "
                "(`fedpath provision`)",
            )
        if isinstance(cause, ssl.SSLCertVerificationError):
            return ConnectionFailedError(
                f"the certificate of {address} is not this federation's: {cause.verify_message}",
                remedy="check address and ca.crt of the kit with the coordinator's operator; "
                "a proxy that opens TLS cannot be used",
            )
        # One that ends in the middle was TLS, and is broken.
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
            return ConnectionFailedError(
                f"{address} does not speak TLS as expected: {cause.reason or cause}",
                remedy="check the address and port in kit.toml, and any proxy in between",
            )
        cause = cause.__cause__ or cause.__context__
    return UnreachableError(
        f"the coordinator at {address} cannot be reached: {str(error) or type(error).__name__}",
        remedy="is it running (`fedpath server start`), and may this machine connect to that port?",
    )
