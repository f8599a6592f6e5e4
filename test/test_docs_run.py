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
The commands that the documents print in blocks are run, or say why not.

A comment before a block, ``<!-- needs: a GPU -->``, says what a machine of CI lacks, and
``<!-- tested by: test_x.py -->`` where the same commands are run. Those of all other blocks are
run here as they are printed, in the order of the documents, by a reader who has a bag and a
camera. Of the robot's side only the cloud's server is another: it is one of this process.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
import os
from pathlib import Path
import re
import signal
import subprocess
import threading

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='needs ROS 2: make setup')

from rclpy.node import Node  # noqa: E402, I100
from sensor_msgs.msg import Image  # noqa: E402
from spotvlm_ros.cli.main import main  # noqa: E402
from spotvlm_ros.frames.frame import Frame  # noqa: E402
from spotvlm_ros.nodes.convert import image_msg  # noqa: E402
from spotvlm_ros.system.processes import PYTHON  # noqa: E402
from test_docs import DOCUMENTS, ROOT  # noqa: E402
from test_docs_commands import words  # noqa: E402
from test_process import write_bag  # noqa: E402

NEEDS = {'a GPU', 'a camera', 'a robot', 'a server', 'minutes', 'hours', 'ROS 2 with its tools',
         'Docker', 'recordings', 'a git server'}
BLOCK = re.compile(r'(?:<!-- (?P<mark>[a-z ]+): (?P<names>[^>]*) -->)?\s*'
                   r'^ *```(?P<language>\w*)\n(?P<lines>.*?)^ *```', re.MULTILINE | re.DOTALL)
SPOTVLM = re.compile(r'(?:\.venv/bin/)?spotvlm ')


@dataclass(frozen=True)
class Block:
    """Commands of a document; ``mark`` is 'needs', 'tested by' or ''."""

    where: str
    mark: str
    names: tuple[str, ...]
    lines: tuple[str, ...]


def blocks(document: Path) -> Iterator[Block]:
    """Yield the blocks of commands of a document."""
    text = document.read_text()
    for found in BLOCK.finditer(text):
        if found['language'] in ('', 'bash'):
            lines = found['lines'].replace('\\\n', ' ').splitlines()
            number = text[:found.start('lines')].count('\n') + 1
            yield Block(f'{document.name}:{number}', found['mark'] or '',
                        tuple(re.split(', ', found['names'] or '')),
                        tuple(line for line in map(str.strip, lines) if line))


BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]


def is_in(line: str, block: Block, names: tuple[str, ...]) -> bool:
    """Return whether files run a command: they take it from its document, or have its options."""
    text = ''.join((ROOT / (name if '/' in name else f'test/{name}')).read_text()
                   for name in names)
    if f"'{block.where.partition(':')[0]}'" in text:
        return True
    if not SPOTVLM.match(line):
        script = re.search(r'(\w+)\.py\b', line)
        return script[1] in text if script else line.partition('  ')[0].strip() in text
    argv = words(SPOTVLM.sub('', line, count=1))
    parts = [argv[0], *(word.partition(':=')[0].rpartition('.')[2] for word in argv[1:]
                        if re.match(r'--\w|\w+\.[\w.]+:=', word))]
    return all(re.search(rf'(?<![\w-]){re.escape(part)}(?![\w-])', text) for part in parts)


@pytest.mark.parametrize('block', [b for b in BLOCKS if b.mark], ids=lambda block: block.where)
def test_what_is_not_run_here_needs_something_or_is_tested_elsewhere(block):
    if block.mark == 'needs':
        assert set(block.names) <= NEEDS, f'{block.where}: one of {sorted(NEEDS)}'
        return
    assert block.mark == 'tested by', f'{block.where}: neither needs nor tested by'
    for line in block.lines:
        assert is_in(line, block, block.names), f'{block.where}: no {line!r} in {block.names}'


# -- the others ----------------------------------------------------------------------------------

class Camera:
    """Publishes grey images of a robot, raw, until it is closed."""

    def __init__(self, topic: str) -> None:
        self._context, self._ended = rclpy.Context(), threading.Event()
        rclpy.init(context=self._context)
        self._node = Node('camera_of_the_reader', context=self._context)
        self._made = self._node.create_publisher(Image, topic, 1)
        self._thread = threading.Thread(target=self._publish, daemon=True)
        self._thread.start()

    def _publish(self) -> None:
        image = np.full((120, 160, 3), 90, np.uint8)
        while not self._ended.wait(0.1):
            now = self._node.get_clock().now().nanoseconds
            self._made.publish(image_msg(Frame(now, 'eye', pixels=image)))

    def close(self) -> None:
        """End."""
        self._ended.set()
        self._thread.join()
        self._node.destroy_node()
        self._context.shutdown()


class Reader:
    """Enters commands in a folder; a graph that was started runs until another one is."""

    def __init__(self, url: str) -> None:
        self._cloud = ('-p', f'cloud.base_url:={url}')
        self._graph: subprocess.Popen[str] | None = None
        self._entered: set[str] = set()

    def enter(self, line: str) -> None:
        """Run a command, once; a graph until edge and cloud have answered, and longer if asked."""
        line = SPOTVLM.sub('', line, count=1).removesuffix('&').strip()
        argv = words(line)
        command = ' '.join(argv)
        if command in self._entered:
            return
        self._entered.add(command)
        if argv[0] not in ('ask', 'query'):
            self.interrupt()
        if argv[0] != 'run':
            given = self._cloud if argv[0] == 'process' else ()
            assert main([*argv, *given]) == 0
            return
        self._graph = subprocess.Popen(
            [*PYTHON, '-m', 'spotvlm_ros.cli', *argv, *self._cloud], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, 'PYTHONUNBUFFERED': '1'})
        said, wanted = [], Counter(edge=1, cloud=3 if '--record' in argv else 1)
        for text in self._graph.stdout:
            said.append(text)
            if wanted <= Counter(t.split()[0] for t in said if t.strip()):
                return
        raise AssertionError(''.join(said))

    def interrupt(self) -> None:
        """End the graph, as Ctrl-C does."""
        if self._graph is not None:
            graph, self._graph = self._graph, None
            os.killpg(graph.pid, signal.SIGINT)
            said, _ = graph.communicate(timeout=30)
            assert graph.returncode == 0 and 'Traceback' not in said, said


@pytest.fixture
def reader(server, tmp_path, monkeypatch):
    """Return who enters them, in a folder with what the documents say that a reader has."""
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    write_bag(tmp_path / 'drive')
    Path('door.yaml').write_text('rate_hz: 0.5\n')
    camera, reading = Camera('/robot1/image'), Reader(server.url)
    try:
        yield reading
        reading.interrupt()
    finally:
        camera.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.mark.timeout(240)
def test_all_other_commands_run_as_they_are_printed(reader, capsys):
    others = [block for block in BLOCKS if not block.mark]
    assert len(others) > 4
    for block in others:
        for line in block.lines:
            try:
                assert SPOTVLM.match(line), 'only spotvlm is run; what does the block need?'
                reader.enter(line)
            except (AssertionError, SystemExit) as error:
                pytest.fail(f'{block.where}: {line}\n{error}\n{capsys.readouterr()}')
