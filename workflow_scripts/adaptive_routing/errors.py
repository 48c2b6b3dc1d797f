"""The one exception for input that a user can put right."""


class InputError(ValueError):
    """Bad input: a setting, a file or a model that cannot be used.

    The message is one sentence that names the file or key, what was found and what is allowed.
    Scripts print it without a traceback and exit with status 1.
    """
