"""The errors that a caller is expected to meet: each message is one line that says what was expected and what came."""


class InputError(ValueError):
    """An argument, a file or a setting is not what it must be. The command line exits with 2."""


class NonFiniteError(ArithmeticError):
    """A loss or gradient is NaN or infinite; the message names the first such tensor. The command line exits with 1."""


class OutsideError(Exception):
    """Something that is not ours failed, a disk or a network: the same call may go through later. Exits with 3."""


class RanksError(Exception):
    """Processes of one run that must be alike are not; raised on all of them. The command line exits with 3."""


class CalledFailedError(Exception):
    """A function that is not ours, called to be checked, raised an error of its own."""
