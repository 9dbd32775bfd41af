"""The model's functions in PyTorch, gradients by autograd: nothing here comes from refimpl, which it is held against.

cd examples/adapters
refimpl golden verify --adapter torch_adapter:adapter
refimpl golden verify --adapter torch_adapter:torch_modules --convention torch
refimpl golden verify --adapter torch_adapter:in_columns
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from . import attention, basic, clusters, columns, modules, optimizers, whole
from .autograd import results

FUNCTIONS = {**basic.FUNCTIONS, **attention.FUNCTIONS, **clusters.FUNCTIONS, **whole.FUNCTIONS, **optimizers.FUNCTIONS}


def adapter(function: str, settings: Mapping[str, Any], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every function, under every convention."""
    return results(FUNCTIONS[function], settings, inputs)


def torch_modules(function: str, settings: Mapping[str, Any], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What PyTorch's own modules compute, under the conventions that they have. The lesson of it stands in modules.py."""
    return results(modules.FUNCTIONS[function], settings, inputs)


def in_columns(function: str, settings: Mapping[str, Any], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All-attention in another layout and the published order of operations."""
    return results(columns.FUNCTIONS[function], settings, inputs)


# what each has: cases of other functions are left out of the run, not skipped
adapter.functions = sorted(FUNCTIONS)
torch_modules.functions = sorted(modules.FUNCTIONS)
in_columns.functions = sorted(columns.FUNCTIONS)
