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
"""`spotvlm completion`: what makes a shell complete the command line of spotvlm."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
import os
import sys

HELP = 'print what makes a shell complete this command'
EXAMPLE = 'source <(spotvlm completion bash)'
SHELLS = {'bash': 'source <(spotvlm completion bash)', 'zsh': 'source <(spotvlm completion zsh)',
          'fish': 'spotvlm completion fish | source'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument('shell', choices=list(SHELLS), help='what goes into ~/.bashrc, ~/.zshrc '
                        f'or config.fish: {"; ".join(SHELLS.values())}')


def execute(arguments: argparse.Namespace) -> int:
    """Print the lines; return 1 where argcomplete is not there."""
    try:
        import argcomplete
    except ImportError:
        print('error: completion needs argcomplete; pip install argcomplete', file=sys.stderr)
        return 1
    print(argcomplete.shellcode(['spotvlm'], shell=arguments.shell))
    return 0


def complete(command_parser: Callable[[Sequence[str]], argparse.ArgumentParser]) -> None:
    """Tell the shell what could follow in COMP_LINE, and end the process."""
    import argcomplete
    argcomplete.autocomplete(command_parser(os.environ.get('COMP_LINE', '').split()[1:2]))
