"""The exceptions whose message is all that a user needs: one sentence, printed without a traceback."""


class InputError(ValueError):
    """Bad input: a setting, a file or a model that cannot be used.

    The message is one sentence that names the file or key, what was found and what is allowed.
    Scripts print it without a traceback and exit with status 1.
    """


class HostError(RuntimeError):
    """The model host cannot be reached or has ended; the message is one sentence that says why."""
