# Copyright 2026 spotvlm maintainers
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
#
# SPDX-License-Identifier: Apache-2.0
"""
Transformers without the compiler of torch and without sympy: 70 MB and 2 s that nobody here needs.

Transformers imports both to mark functions that are not to be compiled, for tensors shared among
machines, and where it lays a model out on device meta. Here a stand-in has the marks for as long
as the import takes, torch seems to be built for one machine, and what needs sympy is not done on
device meta. Who asks for the compiler later gets the real one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
import sys
from types import ModuleType

import torch
from torch.overrides import TorchFunctionMode

COMPILER = 'torch._dynamo'
IMPORTERS = (  # of the compiler, in one version of transformers or another
    'transformers.modeling_utils', 'transformers.masking_utils', 'transformers.processing_utils',
    'transformers.generation', 'transformers.integrations.flex_attention')


def import_transformers() -> None:
    """Import what models are made of; an error is left to who needs what it is about."""
    if COMPILER in sys.modules:
        return
    with _without_compiler():
        for name in IMPORTERS:
            with suppress(Exception):
                import_module(name)


def check_without_sympy() -> None:
    """Have torch look at a condition before it imports sympy for it."""
    check: Callable[..., None] | None = getattr(torch, '_check_with', None)
    if check is not None:
        torch._check_with = lambda error, condition, message: \
            None if condition is True else check(error, condition, message)


class Layout(TorchFunctionMode):
    """Makes ranges on the CPU instead of device meta, and draws no weights on that."""

    def __torch_function__(self, function: Callable[..., object], types: Sequence[type],
                           args: Sequence[object] = (),
                           kwargs: Mapping[str, object] | None = None) -> object:
        """Call a function of torch, or do what it would do where it matters."""
        options = dict(kwargs or {})
        weights = options.get('tensor')
        if function is torch.nn.init.normal_ and getattr(weights, 'is_meta', False):
            return weights
        if function is torch.arange:
            options['device'] = 'cpu'
        return function(*args, **options)


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Have a stand-in for the compiler found, and torch say that it is built for one machine."""
    finder, is_available = _Finder(), torch.distributed.is_available
    sys.meta_path.insert(0, finder)
    torch.distributed.is_available = lambda: False
    try:
        yield
    finally:
        torch.distributed.is_available = is_available
        sys.meta_path.remove(finder)
        for name in [k for k, v in sys.modules.items() if isinstance(v, _StandIn)]:
            del sys.modules[name]
        vars(torch).pop('_dynamo', None)


class _Finder(MetaPathFinder, Loader):
    """Finds a stand-in for the compiler and for each of its modules."""

    def find_spec(self, name: str, path: Sequence[str] | None = None,
                  target: ModuleType | None = None) -> ModuleSpec | None:
        ours = f'{name}.'.startswith(f'{COMPILER}.')
        return ModuleSpec(name, self, is_package=True) if ours else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _StandIn(ModuleType):
    """Has marks of all names, which leave functions as they are; later they are the real ones."""

    def __getattr__(self, name: str) -> Callable[..., object]:
        if name.startswith('__'):
            raise AttributeError(name)

        def mark(*args: object, **options: object) -> object:
            if sys.modules.get(self.__name__) is not self:
                return getattr(import_module(self.__name__), name)(*args, **options)
            return args[0] if args and args[0] is not None else lambda function: function
        return mark
