"""Numerical derivatives of any callable, to hold hand-written gradients against. Imports nothing from the implementation.

`complex_step.gradient` differentiates a real-analytic function to the last digits; `norm_wise_error` compares.
"""
