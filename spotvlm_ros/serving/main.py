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
"""The server in one process, without Ray, on a socket that was inherited."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import gc
import os
from pathlib import Path
import socket

from ..cloud.errors import KEY_ENV
from ..system.lean import check_without_sympy, import_transformers


def main(argv: Sequence[str] | None = None) -> None:
    """Serve a checkpoint folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('model', type=Path)
    parser.add_argument('socket', type=int, help='its number')
    parser.add_argument('--keys', type=Path, help='file with a robot a line')
    parser.add_argument('--max-batch', type=int, default=8)
    parser.add_argument('--device', default='cpu')
    arguments = parser.parse_args(argv)
    key = os.environ.pop(KEY_ENV, '')
    gc.disable()  # nothing of what is imported and loaded becomes garbage
    import_transformers()  # a killed server is back two seconds earlier
    check_without_sympy()
    import uvicorn

    from .checkpoint import Checkpoint
    from .keys import Keys, read_keys, Robot
    from .service import App, Limits, Service
    robots = read_keys(arguments.keys) if arguments.keys else []
    robots += [(key, Robot('owner'))] if key else []
    model = Checkpoint(arguments.model, arguments.device)
    service = Service(model, Keys(robots), Limits(
        (str(arguments.model), arguments.model.name), model.at_once(arguments.max_batch)))
    config = uvicorn.Config(App(service), lifespan='off', log_level='warning', access_log=False)
    gc.freeze()
    gc.enable()
    uvicorn.Server(config).run([socket.socket(fileno=arguments.socket)])


if __name__ == '__main__':
    main()
