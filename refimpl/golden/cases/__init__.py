"""Every golden case, defined: what is called, with which exact numbers, and what for."""

from refimpl.golden.cases import attention, basic, whole
from refimpl.golden.cases.form import ANY, Case

__all__ = ["ANY", "Case", "all_cases"]


def all_cases() -> list[Case]:
    """In the order of the vectors; ids are unique."""
    return [*basic.cases(), *attention.cases(), *whole.cases()]
