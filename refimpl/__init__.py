"""All-attention transformers, forward and backward by hand, in NumPy or CuPy: the reference that others check against.

In a wheel, `refimpl.gradcheck`, `refimpl.datasets` and `refimpl.cli` lie inside this package. In a checkout they stand
beside it, so the checkout's root joins the package's search path.
"""

from pathlib import Path

__version__ = "0.1.0"

_root = Path(__file__).resolve().parent.parent
if (_root / "cli.py").is_file() and (_root / "gradcheck").is_dir():
    __path__.append(str(_root))
