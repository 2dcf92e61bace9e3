"""The one exception that a user is meant to see."""


class UserError(Exception):
    """A mistake in what the user gave, told in one line.

    The message names the file, option or key at fault and the remedy. Every entry point in
    :mod:`s3prl_kd.bin` prints it without a traceback and exits with status 1.
    """
