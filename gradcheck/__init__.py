"""Numerical derivatives of any callable, to hold hand-written gradients against. Imports nothing from the implementation.

`check_vjp` checks a vector-Jacobian product, `check_jvp_vjp` two products against each other, `derivative` differentiates,
`replay` runs a saved failure again. `complex_step.gradient` differentiates a real-analytic function to the last digits;
`complex_step.norm_wise_error` compares.
"""

from refimpl.gradcheck.adjoint import check_jvp_vjp
from refimpl.gradcheck.check import check_vjp, replay
from refimpl.gradcheck.derivatives import Derivative, derivative
from refimpl.gradcheck.errors import GradcheckError
from refimpl.gradcheck.report import ArgumentReport, KinkReport, Report

__all__ = ["ArgumentReport", "Derivative", "GradcheckError", "KinkReport", "Report", "check_jvp_vjp", "check_vjp",
           "derivative", "replay"]
