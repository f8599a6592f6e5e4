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
What models said while a bag was processed, so that nothing is asked twice (`spotvlm process`).

`journal.jsonl` has, after a line that says which run it is of, one line for each answer of the
edge model and each exchange with the cloud, in the order in which they came. A run that was killed
is gone through again from its beginning, with what the journal has in the place of the models.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import IO

from pydantic import JsonValue

from .judged import Passes
from .recorder import from_plain, plain
from ..cloud.offline import Exchange
from ..edge.answer import EdgeAnswer
from ..system.append_file import open_alone

JOURNAL = 'journal.jsonl'
SAMPLE = 1 << 20   # hashed of both ends of a file [bytes]
Header = dict[str, JsonValue]


class JournalError(ValueError):
    """A journal, or the folder of one, cannot be used; the message names it and the remedy."""


class Kept:
    """What a journal file holds."""

    def __init__(self, path: Path) -> None:
        """Read it up to the end, or to where a crash has cut it off; raise JournalError."""
        self.header: Header = {}
        self.answers: dict[tuple[int, str], tuple[str, EdgeAnswer | str, Passes | None]] = {}
        self.exchanges: dict[int, Exchange] = {}
        self.size = 0     # of the part that is whole [bytes]
        try:
            with open(path, 'rb') as file:
                for data in file:
                    if not data.endswith(b'\n') or not self._take(data):
                        break
                    self.size += len(data)
        except OSError as error:
            raise JournalError(f'{path}: {error.strerror}; name the {JOURNAL} in the --out folder '
                               'of spotvlm process') from error
        if not self.header:
            raise JournalError(f'{path} is no journal; name the {JOURNAL} in the --out folder of '
                               'spotvlm process')

    def _take(self, data: bytes) -> bool:
        """Take a line; return False for what was cut off or mangled: all after it is redone."""
        try:
            line = json.loads(data)
            match line['event']:
                case 'process' if not self.size:
                    self.header = dict(line['run'])
                case 'edge':
                    self.answers[int(line['frame']), str(line['query_id'])] = (
                        str(line['context']),
                        str(line['error']) or from_plain(EdgeAnswer, line['answer']),
                        from_plain(Passes, line['passes']) if line.get('passes') else None)
                case 'cloud':
                    self.exchanges[int(line['number'])] = from_plain(Exchange, line['exchange'])
        except (ValueError, TypeError, LookupError, RecursionError):
            return False
        return True


class Journal:
    """
    The journal of a run that goes on; one process at a time can.

    ``earlier`` is that of another run, whose exchanges with the cloud hold here, too.
    """

    def __init__(self, folder: Path, header: Header, earlier: Kept | None = None) -> None:
        """
        Go on with the run of a folder, or begin in a new one.

        Raise JournalError where the folder holds something else, or a run that is finished.
        """
        self._file = _opened(folder)
        try:
            self._kept = self._begun(folder, header)
        except BaseException:
            self._file.close()
            raise
        self._exchanges = (earlier.exchanges if earlier is not None else {}) | self._kept.exchanges
        self._answers = self._kept.answers
        self.resumed = len(self._answers) + len(self._kept.exchanges)

    def _begun(self, folder: Path, header: Header) -> Kept:
        path = folder / JOURNAL
        if path.read_bytes().count(b'\n') < 2:   # it had not got to an answer
            self._file.truncate(0)
            self._write({'event': 'process', 'run': header})
        kept = Kept(path)
        differ = [name for name in header | kept.header
                  if kept.header.get(name) != header.get(name)]
        if differ:
            raise JournalError(f'{folder} holds another run of spotvlm process ('
                               f'{", ".join(differ)} differ); name another --out, or remove it')
        if (folder / 'metadata.yaml').exists():
            raise JournalError(f'{folder} holds this run, and it is finished; name another --out, '
                               'or remove it')
        self._file.truncate(kept.size)
        return kept

    def close(self) -> None:
        """Let others go on."""
        self._file.close()

    # The cloud

    def exchange(self, number: int, query_id: str, stamp_ns: int) -> Exchange | None:
        """Return what came of the request of a number, None where it is still to be sent."""
        kept = self._exchanges.get(number)
        same = kept is not None and (kept.query_id, kept.stamp_ns) == (query_id, stamp_ns)
        return kept if same else None

    def keep(self, number: int, exchange: Exchange) -> None:
        """Keep an exchange."""
        self._write({'event': 'cloud', 'number': number, 'exchange': plain(exchange)})

    # The edge

    def answer(self, frame: int, query_id: str, given: str
               ) -> tuple[EdgeAnswer | str, Passes | None] | None:
        """
        Return what the edge said about a frame when it was ``given`` this, or its error.

        Beside it, what its judge was given, if there was one.
        """
        digest, answer, passes = self._answers.get((frame, query_id), ('', '', None))
        return (answer, passes) if digest == given else None

    def keep_answer(self, frame: int, query_id: str, given: str, answer: EdgeAnswer | str,
                    passes: Passes | None) -> None:
        """Keep an answer of the edge, or its error, and what its judge was given."""
        said: dict[str, JsonValue] = {'error': answer} if isinstance(answer, str) else {
            'error': '', 'answer': plain(answer)}
        self._write({'event': 'edge', 'frame': frame, 'query_id': query_id, 'context': given,
                     'passes': plain(passes) if passes is not None else None, **said})

    def _write(self, line: dict[str, JsonValue]) -> None:
        self._file.write(json.dumps(line).encode() + b'\n')


def _opened(folder: Path) -> IO[bytes]:
    """Open the journal of a folder for this process alone."""
    path = folder / JOURNAL
    try:
        if not path.is_file() and folder.is_dir() and any(folder.iterdir()):
            raise JournalError(f'{folder} is not empty, and holds no interrupted run of spotvlm '
                               'process; name another --out')
        folder.mkdir(parents=True, exist_ok=True)
        file = open_alone(path)
    except OSError as error:
        raise JournalError(f'{folder}: {error.strerror}; name an --out that can be '
                           'written') from error
    if file is None:
        raise JournalError(f'{folder} is being written by another spotvlm process; wait for it, '
                           'or name another --out')
    return file


def fingerprint(path: Path) -> JsonValue:
    """Return what tells a file, or the files of a folder, from others: sizes and samples."""
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    return [{'name': file.name, 'bytes': file.stat().st_size, 'sha256_of_ends': _ends(file)}
            for file in files]


def _ends(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        digest.update(file.read(SAMPLE))
        file.seek(max(SAMPLE, os.fstat(file.fileno()).st_size - SAMPLE))
        digest.update(file.read(SAMPLE))
    return digest.hexdigest()
