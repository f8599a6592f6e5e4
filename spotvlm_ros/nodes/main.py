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
Entry points of the node processes, one function for each.

Light on purpose: signals are handled before ROS and torch are imported, so that Ctrl-C during
the seconds that takes is as clean as later.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
import importlib
import os
import sys

from ..system.middleware import report_middleware_problem
from ..system.signals import StopSignal

NODES = ('camera', 'edge', 'cloud', 'context', 'composed')


def run_node(name: str, argv: Sequence[str] | None = None, exit_on_failure: bool = False) -> int:
    """Run a node until a signal; ``exit_on_failure``: end with 1 when it cannot start."""
    if report_middleware_problem(os.environ):
        return 1
    stop = StopSignal()
    from ..config.arguments import check_ros_arguments
    from ..config.spec import ParameterError
    from ..method.prompt import printable
    try:
        argv = check_ros_arguments(sys.argv[1:] if argv is None else argv,
                                   NODES[:-1] if name == 'composed' else (name,))
    except ParameterError as error:
        print(printable(f'error: {error}'), file=sys.stderr)
        return 1
    module = importlib.import_module(f'spotvlm_ros.nodes.{name}')
    run = importlib.import_module('spotvlm_ros.nodes.executor')
    if stop():
        stop.ignore()
        return 0
    return int(run.run_nodes(module.make_nodes, argv, stop, exit_on_failure))


camera, edge, cloud, context, composed = (partial(run_node, name) for name in NODES)
