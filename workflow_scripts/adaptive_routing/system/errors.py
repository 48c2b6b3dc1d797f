"""The exceptions whose message is all that a user needs: one sentence, printed without a traceback."""

import errno

_NO_MEMORY = (
    "annot allocate memory",
    "can't allocate memory",
    "can't start new thread",
    "failed to map segment from shared object",
    "std::bad_alloc",
)


class InputError(ValueError):
    """Bad input: a setting, a file or a model that cannot be used.

    The message is one sentence that names the file or key, what was found and what is allowed.
    Scripts print it without a traceback and exit with status 1.
    """


class OutputError(RuntimeError):
    """An output cannot be written; the message is one sentence that names the file and says why."""


class HostError(RuntimeError):
    """A process that a job relies on (the model host, a log worker) cannot be reached or has ended.

    The message is one sentence that says which and why.
    """


def lack_of_memory(error: BaseException) -> str | None:
    """A sentence where the system gave this process no more memory or threads; None for other faults."""
    said = " ".join(str(error).split()) or type(error).__name__
    is_told = getattr(error, "errno", None) == errno.ENOMEM or any(one in said for one in _NO_MEMORY)
    if not (isinstance(error, MemoryError) or is_told):
        return None
    return (
        f"the system gives this process no more memory or threads ({said}); end other programs, or raise the "
        "limit: `ulimit -v`, `ulimit -u`, or the memory that the batch system gives the job"
    )
