"""What goes wrong with the Hugging Face hub, each as the one sentence that a user needs.

`huggingface_hub` has exceptions of many kinds, and for a hub that is silent or away it waits long.
"""

from __future__ import annotations

import functools
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from adaptive_routing.system.disk import no_room
from adaptive_routing.system.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adaptive_routing.system.hub import Repository

_PAUSE_SECONDS = 0.5


class HubUnreachable(InputError):
    """The hub does not answer, or may not be asked, or refuses; `reason` says why in half a sentence.

    What the cache holds can still be read.
    """

    def __init__(self, sentence: str, reason: str, is_refusal: bool = False) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.is_refusal = is_refusal


@contextmanager
def asking(repository: Repository, revision: str) -> Iterator[None]:
    """Ask the hub about a repository; whatever goes wrong is an InputError of one sentence."""
    from huggingface_hub.utils import logging

    _use_own_client()
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # the library tells each attempt
    try:
        yield
    except Exception as error:
        raise as_sentence(error, repository, revision) from error
    finally:
        logging.set_verbosity(level)


def as_sentence(
    error: Exception, repository: Repository, revision: str, path: str | None = None
) -> Exception:
    """An exception as what a user needs to know of it; one that is no fault of hub or machine as it is.

    Args:
        path: of the file that was being fetched, if it was one.
    """
    from huggingface_hub import constants, errors, get_token

    if isinstance(error, InputError):
        return error
    key, what = repository.key, f"{path} of the {repository}" if path else f"the {repository}"
    hub, login = f"the hub ({constants.ENDPOINT})", "log in with `hf auth login` or set HF_TOKEN"
    status = getattr(getattr(error, "response", None), "status_code", None)

    def unreachable(reason, rest="", is_refusal=False):
        return HubUnreachable(f"{key}: {reason}{rest}", reason, is_refusal)

    if isinstance(error, errors.OfflineModeIsEnabled):
        return unreachable("HF_HUB_OFFLINE is set", f", and {what} is not in the cache")
    if isinstance(error, errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{'datasets/' * (repository.kind == 'dataset')}{repository.name}"
        return unreachable(
            f"the {repository} is gated; ask for access at {page}, and {login}", is_refusal=True
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(f"{key}: the {repository} has no revision {revision!r} on the hub")
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        reason = f"{hub} has no {repository}, or it is private; check the name, or {login}"
        return unreachable(reason, is_refusal=True)
    if isinstance(error, errors.EntryNotFoundError):
        return InputError(f"{key}: the hub has no {what} at revision {revision}")
    if status == 403:
        reason = f"the hub does not let you read {what} (status {status}); {login}"
        return unreachable(reason, is_refusal=True)
    if isinstance(error, UnicodeError) and not (get_token() or "").isascii():
        return InputError(f"{key}: the token for the hub (HF_TOKEN) holds characters that no token has")
    if isinstance(error, errors.HFValidationError | UnicodeError):
        return InputError(
            f"{key}: {repository.name!r} at revision {revision!r} is neither a local path that exists nor a "
            "name that the hub takes"
        )
    if reason := no_room(error):
        return InputError(
            f"{key}: {reason}, with {what} not whole; make room in {repository.cache.parent}, or set HF_HOME "
            "to a folder on another disk, and run again, which goes on from there"
        )
    if is_unanswered(error):
        return unreachable(
            f"{hub} {_fault(error, status)}", f", so that {what} cannot be had; run again later"
        )
    if isinstance(error, OSError) and error.errno:
        return InputError(
            f"{key}: {what} cannot be written to the cache {repository.cache.parent} "
            f"({error.strerror}); set HF_HOME to another folder"
        )
    if isinstance(error, OSError | ValueError | KeyError | TypeError):  # an answer that is none of the hub's
        return unreachable(f"{hub} gives an answer that cannot be read ({_one_line(error)})")
    return error


def is_unanswered(error: BaseException) -> bool:
    """Whether an exception is about a hub that refuses or does not answer."""
    import httpx2

    kinds = httpx2.TransportError | httpx2.StreamError | ConnectionError | TimeoutError
    return getattr(error, "response", None) is not None or isinstance(error, kinds)


def _fault(error, status):
    import httpx2

    if status:
        return f"answers with status {status}"
    if isinstance(error, httpx2.ConnectError | ConnectionRefusedError):
        return f"cannot be reached ({_one_line(error)})"
    if isinstance(error, httpx2.TimeoutException | TimeoutError):
        return f"did not answer within {_timeout():g} s"
    return f"broke off the connection ({_one_line(error)})"


def _one_line(error):
    return " ".join(str(error).split()) or type(error).__name__


def _timeout():
    """Seconds without a byte after which the hub is taken not to answer: HF_HUB_DOWNLOAD_TIMEOUT."""
    from huggingface_hub import constants

    return float(constants.HF_HUB_DOWNLOAD_TIMEOUT)


@functools.cache
def _use_own_client():
    """Have the library ask the hub by the client below.

    With its own one, some calls wait for ever, and others half a minute for a hub that is not there.
    """
    from huggingface_hub import set_client_factory

    set_client_factory(_make_client)


def _make_client():
    import httpx2
    from huggingface_hub.utils._http import hf_request_event_hook

    class Client(httpx2.Client):
        """Asks twice for an answer. What it raises then is none of what the library tries again.

        What comes as a stream is a file; there the library's own attempts are left to it.
        """

        def send(self, request, **options):
            request.extensions["timeout"] = httpx2.Timeout(_timeout()).as_dict()
            for is_last in (False, True):
                try:
                    return super().send(request, **options)
                except httpx2.TransportError as error:
                    if options.get("stream"):
                        raise
                    if isinstance(error, httpx2.TimeoutException):
                        raise TimeoutError(_one_line(error)) from error
                    if is_last:
                        is_away = isinstance(error, httpx2.ConnectError)
                        kind = ConnectionRefusedError if is_away else ConnectionError
                        raise kind(_one_line(error)) from error
                time.sleep(_PAUSE_SECONDS)

    return Client(event_hooks={"request": [hf_request_event_hook]}, follow_redirects=True)
