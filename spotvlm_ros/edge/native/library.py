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
"""Compiles decoder.c for the processor it runs on, and loads it."""

from __future__ import annotations

import ctypes
from functools import lru_cache
import hashlib
import os
from pathlib import Path
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile

SOURCE = Path(__file__).with_name('decoder.c')
# Sums in any order, which vectors need; not -ffast-math, which changes what the process does with
# small numbers as soon as a library that was linked with it is loaded (gcc bug 55522).
FLAGS = ('-std=gnu11', '-O3', '-march=native', '-fno-math-errno', '-fno-trapping-math',
         '-fno-signed-zeros', '-fassociative-math', '-fopenmp', '-shared', '-fPIC')
WIDE = '-mprefer-vector-width=512'   # of x86; others do not know it
TIMEOUT_S = 120.0
MAX_SAID = 200   # characters of a compiler's error


class CompilerError(RuntimeError):
    """There is no compiler here, or it failed; the text says which and what to do."""


def library() -> ctypes.CDLL:
    """
    Return the compiled library; the first call on a machine takes a second or two.

    It is kept in ``$XDG_CACHE_HOME/spotvlm`` (``~/.cache/spotvlm``). Raise CompilerError.
    """
    made = _made()
    if isinstance(made, CompilerError):
        raise made
    return made


def why_not() -> str:
    """Return why there is no library here, '' where there is."""
    made = _made()
    return str(made) if isinstance(made, CompilerError) else ''


@lru_cache(1)
def _made() -> ctypes.CDLL | CompilerError:
    """Return the library, or why there is none: it is tried once in a process."""
    try:
        return _make()
    except CompilerError as error:
        return error


def _make() -> ctypes.CDLL:
    wide = [WIDE] if platform.machine() in ('x86_64', 'AMD64') else []
    command = [*_compiler(), *FLAGS, *wide]
    folder = _folder()
    if folder is None:
        with tempfile.TemporaryDirectory(prefix='spotvlm-') as name:
            return _loaded(_compiled(command, Path(name)))
    return _loaded(_compiled(command, folder))


def _compiler() -> list[str]:
    """Return the command of the C compiler."""
    asked = os.environ.get('CC', '')
    try:
        first, *options = shlex.split(asked) or ['']
    except ValueError as error:
        raise CompilerError(f'CC is {asked!r}: {error}; name a C compiler, or unset it') from error
    for name in [first] if first else ['cc', 'gcc', 'clang']:
        found = shutil.which(name)
        if found is not None:
            return [found, *options]
    raise CompilerError(f"there is no C compiler {first or 'cc'!r}; apt install gcc")


def _folder() -> Path | None:
    """Return a folder that only this user may write to, None where there can be none."""
    base = os.environ.get('XDG_CACHE_HOME', '')
    try:
        folder = (Path(base) if os.path.isabs(base) else Path.home() / '.cache') / 'spotvlm'
        folder.mkdir(0o700, parents=True, exist_ok=True)
        state = folder.stat()
    except (OSError, RuntimeError):   # no home
        return None
    theirs = state.st_uid != os.getuid() or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return None if theirs or not os.access(folder, os.W_OK) else folder


def _compiled(command: list[str], folder: Path) -> Path:
    """Return the library in a folder, where it is made if it is not there."""
    file = folder / f'decoder-{_key(command)}.so'
    if file.is_file():
        return file
    with tempfile.TemporaryDirectory(dir=folder) as place:   # others may make it now, too
        made = Path(place) / 'decoder.so'
        try:
            done = subprocess.run([*command, str(SOURCE), '-o', str(made), '-lm'],
                                  capture_output=True, text=True, timeout=TIMEOUT_S,
                                  check=False, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CompilerError(f'{command[0]} failed: {error}') from error
        if done.returncode or not made.is_file():
            raise CompilerError(f'{command[0]} failed: {done.stderr.strip()[:MAX_SAID]}')
        os.replace(made, file)
    return file


def _loaded(file: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(file))
    except OSError as error:
        raise CompilerError(f'{file} cannot be loaded: {error}; remove it') from error


def _key(command: list[str]) -> str:
    """Return what a library was made of and for: source, compiler and processor."""
    try:
        version = subprocess.run([command[0], '--version'], capture_output=True, timeout=TIMEOUT_S,
                                 check=False, stdin=subprocess.DEVNULL).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompilerError(f'{command[0]} failed: {error}') from error
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        processor = sorted({line for line in lines
                            if line.startswith(('model name', 'flags', 'Features', 'CPU part'))})
    except OSError:
        processor = [platform.processor(), platform.machine()]
    parts = [SOURCE.read_bytes(), repr(command).encode(), version, repr(processor).encode()]
    return hashlib.sha256(b'\0'.join(parts)).hexdigest()[:24]
