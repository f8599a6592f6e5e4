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
"""What `spotvlm process` wrote, gone through again to learn from (`spotvlm calibrate`)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
import json
from pathlib import Path
import sys
import tempfile
from typing import cast


from .process import bag_frames, load_edge, ProcessConfig
from ..cloud.client import cloud_server
from ..cloud.offline import Delays, OfflineCloud
from ..cloud.parse import CloudAnswer
from ..config.profiles import Profile, Section
from ..config.strict_yaml import read_yaml
from ..edge.answer import EdgeAnswer, EdgeVLM
from ..frames.bags import bag_extent
from ..frames.frame import Frame
from ..method.calibration import FrameJudge
from ..method.facts import Context, Query
from ..recording.calibrate import Learner
from ..recording.journal import fingerprint, Header, JOURNAL, Journal, JournalError, Kept
from ..recording.process import Due, EdgeResult, KeptEdge, Process, Rules
from ..recording.recorder import from_plain
from ..system.progress import tracked

NOBODY = 'http://localhost:9'   # is asked nothing: all replies are in the journal
AGAIN = 'run the same spotvlm process into another --out, and give that'


class _Answers(KeptEdge):
    """The answers of a journal, to learn from."""

    def __init__(self, kept: Kept, queries: Sequence[Query], journal: Journal,
                 learner: Learner) -> None:
        super().__init__(_none_loaded, queries, journal)
        self._kept, self._learner = kept, learner

    def answer(self, index: int, due: Due, judge: FrameJudge | None = None) -> EdgeAnswer | str:
        """Return what the edge said then."""
        found = self._kept.answers.get((index, due.query.id))
        if found is None:
            raise JournalError(f'{JOURNAL} lacks an answer about frame {index}; {AGAIN}')
        _, answer, passes = found
        if not isinstance(answer, str) and self._learner.wants(due.query):
            self._learner.answer(due, passes)
        return answer


class _Truths:
    """Tells a learner what the cloud said; the bag of answers is there already."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    def edge(self, result: EdgeResult, log_ns: int) -> None:
        """Leave an answer of the edge."""

    def cloud(self, answer: CloudAnswer, log_ns: int) -> None:
        """Take an answer of the cloud."""
        self._learner.late(answer.query_id, answer.round_trip_s)
        self._learner.truth(answer.turn)

    def context(self, context: Context, frame: Frame, dropped: int, log_ns: int) -> None:
        """Leave a context."""

    def restart(self, stamp_ns: int, log_ns: int) -> None:
        """Take that the stream starts over."""
        self._learner.forget()


def learn_from_process(folder: Path, every: int) -> Learner:
    """Learn from the folder of a run of `spotvlm process` and the bag that it was about."""
    kept = Kept(folder / JOURNAL)
    header = kept.header
    config = ProcessConfig(_bag_of(folder, header), folder, str(header['topic']),
                           from_plain(float, header['from_s']), from_plain(float, header['to_s']),
                           from_plain(float, header['edge_latency_s']))
    profile = Profile(cast(dict[str, Section], header['parameters'])).overlaid(
        'cloud', {'base_url': NOBODY})
    queries = profile.queries()
    learner = Learner(lambda: load_edge(profile.edge), queries, profile.edge.guard_odds, every,
                      profile.edge.calibrate_share)
    with ExitStack() as stack:
        journal = Journal(Path(stack.enter_context(tempfile.TemporaryDirectory())), header, kept)
        stack.callback(journal.close)
        cloud = OfflineCloud(cloud_server(profile.cloud), queries, profile.cloud,
                             from_plain(Delays, header['delays']), journal)
        stack.callback(cloud.close)
        cloud.ready = _none_asked
        rules = Rules(profile.edge, profile.cloud, profile.context, config.edge_latency_s)
        run = Process(queries, rules, _Answers(kept, queries, journal, learner), cloud,
                      _Truths(learner))
        extent = bag_extent(str(config.bag), config.topic)
        for index, frame in tracked(bag_frames(config, extent), 'frames', extent.images,
                                    sys.stderr):
            run.take(index, frame)
        run.finish()
    return learner


def _bag_of(folder: Path, header: Header) -> Path:
    """Return the bag that was processed."""
    metadata = folder / 'metadata.yaml'
    if not metadata.is_file():
        raise JournalError(f'{folder} is a run of spotvlm process that is not finished; go on '
                           'with the same command')
    about = cast(dict[str, dict[str, dict[str, str]]], read_yaml(metadata))
    bag = Path(json.loads(about['rosbag2_bagfile_information']['custom_data']['spotvlm process']
                          )['path'])
    if not bag.exists() or fingerprint(bag) != header['bag']:
        raise JournalError(f'{bag}, which was processed, is not there, or another now; {AGAIN}')
    return bag


def _none_loaded() -> EdgeVLM:
    raise JournalError(f'{JOURNAL} lacks answers; {AGAIN}')


def _none_asked() -> None:
    raise JournalError(f'{JOURNAL} lacks answers of the cloud; {AGAIN}')
