"""The one exception for mistakes of the user's."""


class UserError(ValueError):
    """Something the user gave is not what was expected.

    The message is one line: what was expected, what came, what to try. The command line
    prints it on stderr and ends with exit status 2.
    """
