"""The exceptions whose message is all that a user needs: one sentence, printed without a traceback."""


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
