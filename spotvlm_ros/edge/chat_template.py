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
Tries the chat template of a checkpoint in a process of its own, before it is run in a node's.

The sandbox of Jinja keeps a template from files and code, not from time and memory: loops within
loops, powers, texts that double. This file is the program of that process, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
import json
import resource
import subprocess
import sys
from typing import NoReturn

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS = 2            # of CPU time; templates in use take milliseconds
MEMORY = 1 << 30       # address space of the process [bytes]
LENGTH = 1_000_000     # of a prompt [characters]
WAIT_S = 60.0          # longest wait, on a machine that is busy with other things
TOO_LARGE = 3          # exit code

Chat = list[dict[str, object]]


@lru_cache(64)
def template_fault(template: str, chats: str, tokens: str) -> str:
    """
    Return '' or what a template does that a node cannot afford.

    ``chats`` and ``tokens``, the names and texts of special tokens, are JSON.
    """
    from ..system.processes import PYTHON  # not where this file is the program
    given = json.dumps([template, json.loads(chats), json.loads(tokens)])
    try:
        code = subprocess.run([*PYTHON, __file__], input=given, text=True,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              timeout=WAIT_S, check=False).returncode
    except subprocess.TimeoutExpired:
        return f'does not end within {WAIT_S:g} s'
    if code == 0:
        return ''
    if code == TOO_LARGE:
        return f'takes more than {MEMORY >> 20} MB, or writes more than {LENGTH} characters'
    return f'does not end within {SECONDS} s of CPU time, or ends the process (code {code})'


class _Generation(Extension):
    """The tag that transformers adds, which marks what the assistant says."""

    tags = {'generation'}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return what is between the tags."""
        next(parser.stream)
        return parser.parse_statements(('name:endgeneration',), drop_needle=True)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _render(template: str, chats: list[Chat], tokens: Mapping[str, str]) -> int:
    """Write the prompts of all chats as transformers would; return the exit code."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters['tojson'] = lambda x, *args, **options: json.dumps(
        x, **{'ensure_ascii': False} | {k: v for k, v in options.items() if k != 'self'})
    environment.globals |= {'raise_exception': _raise, 'strftime_now': lambda form: form}
    compiled = environment.from_string(template)
    for chat in chats:
        for prompt in (True, False):
            length = 0
            try:
                for piece in compiled.generate(messages=chat, tools=None, documents=None,
                                               add_generation_prompt=prompt, **tokens):
                    length += len(piece)
                    if length > LENGTH:
                        return TOO_LARGE
            except (MemoryError, OverflowError):
                return TOO_LARGE
            except Exception:
                continue  # as it will be, and be said, where the model is loaded
    return 0


def _main() -> int:
    """Try what stdin gives."""
    given = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        return _render(*given)
    except (MemoryError, OverflowError):
        return TOO_LARGE
    except Exception:
        return 0  # no template at all: as above


if __name__ == '__main__':
    sys.exit(_main())
