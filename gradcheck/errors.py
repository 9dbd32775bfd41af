"""The one error of this package."""


class GradcheckError(ValueError):
    """What was given to a check is not what it must be: the message says what was expected and what came."""
