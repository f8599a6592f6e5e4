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
"""The bag that `spotvlm process` writes: answers, cloud answers, contexts, truth."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
import os
from pathlib import Path
import shutil
from types import TracebackType

from ament_index_python.packages import get_package_share_directory
from rclpy.serialization import serialize_message
from rosbags.interfaces import (
    Connection, Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime)
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_types_from_msg, get_typestore, Stores
from spotvlm_msgs.msg import Answer, Context as ContextMsg

from .answered import AnsweredFrame
from .convert import (
    cloud_answer_msg, context_msg, duration_msg, fact_msg, gate_of, header_msg, MAX_FACTS,
    stamp_ns)
from ..cloud.parse import CloudAnswer
from ..frames.bags import bag_messages
from ..frames.frame import Frame
from ..method.facts import Context, Fact, Query
from ..recording.process import EdgeResult

NAME = 'answers'                # of the bag's file
PART = '.part'                  # folder in which it is written
ANY = QosTime(0, 0)


@dataclass(frozen=True)
class Label:
    """What is true of a frame; ``query_id`` is '' where that is about all queries."""

    log_ns: int
    stamp_ns: int
    frame_id: str
    query_id: str
    text: str
    facts: tuple[Fact, ...]


class BagFile:
    """
    A bag in a folder that has other files, too.

    It is written apart and moved there when it is whole; metadata.yaml comes last.
    """

    def __init__(self, folder: Path, references: str) -> None:
        """Begin anew, whatever an earlier process has left."""
        self._folder, self._part = folder, folder / PART
        shutil.rmtree(self._part, ignore_errors=True)
        self._part.mkdir()
        self._types = get_typestore(Stores.ROS2_KILTED)
        share = Path(get_package_share_directory('spotvlm_msgs')) / 'msg'
        for file in sorted(share.glob('*.msg')):
            self._types.register(get_types_from_msg(file.read_text(encoding='utf-8'),
                                                    f'spotvlm_msgs/msg/{file.stem}'))
        # Version 9 is for Jazzy and later only.
        self._writer = Writer(self._part / NAME, version=8, storage_plugin=StoragePlugin.MCAP)
        self._writer.open()
        self._writer.set_custom_data('spotvlm process', references)
        self._topics = {topic: self._connection(topic, kind, latched) for topic, kind, latched in (
            ('answers', Answer, False), ('cloud/answers', Answer, False),
            ('context', ContextMsg, True), ('truth', Answer, False))}
        self.counts: Counter[str] = Counter()

    def write(self, topic: str, message: Answer | ContextMsg, log_ns: int) -> None:
        """Add a message."""
        self.counts[topic] += 1
        connection = self._topics[topic]
        # Not as rclpy writes it: what it pads with is whatever was in memory there.
        plain = self._types.deserialize_cdr(serialize_message(message), connection.msgtype)
        self._writer.write(connection, log_ns,
                           self._types.serialize_cdr(plain, connection.msgtype))

    def finish(self) -> None:
        """Move the bag to its place."""
        self._writer.close()
        written = self._part / NAME
        os.replace(written / f'{NAME}.mcap', self._folder / f'{NAME}.mcap')
        os.replace(written / 'metadata.yaml', self._folder / 'metadata.yaml')
        shutil.rmtree(self._part)

    def __enter__(self) -> BagFile:
        """Return it."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Leave nothing that is not whole."""
        self._writer.abort()
        shutil.rmtree(self._part, ignore_errors=True)

    def _connection(self, topic: str, kind: type[Answer | ContextMsg], latched: bool
                    ) -> Connection:
        durability = QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE
        qos = Qos(QosHistory.KEEP_LAST, 10, QosReliability.RELIABLE, durability, ANY, ANY,
                  QosLiveliness.AUTOMATIC, ANY, False)
        return self._writer.add_connection(f'/{topic}', f'spotvlm_msgs/msg/{kind.__name__}',
                                           typestore=self._types, offered_qos_profiles=[qos])


class AnswerBag:
    """Turns results into messages, as the nodes would publish them, and counts them."""

    def __init__(self, file: BagFile, queries: Sequence[Query], model: str,
                 truth: Sequence[Label], latency_s: float) -> None:
        """Write to a file; ``truth`` is in the order of log times."""
        self.errors: Counter[str] = Counter()
        self.used: Counter[str] = Counter()          # answers with 'context', with 'focus'
        self.right: Counter[str] = Counter()         # facts by query
        self.labelled: Counter[str] = Counter()
        self.delays_s: list[float] = []
        self._file, self._queries, self._model = file, {q.id: q for q in queries}, model
        self._truth = deque(truth)
        self._labels = {label.stamp_ns: label for label in truth}
        self._latency_s = latency_s
        self._gate = dict.fromkeys(self._queries, ContextMsg.GATE_EMPTY)
        self._frame_id, self._dropped = '', 0
        self._sequence: Counter[str] = Counter()        # of contexts, by query
        self._told: dict[tuple[str, int], int] = {}     # that of a frame's, until it is answered

    def edge(self, result: EdgeResult, log_ns: int) -> None:
        """Write an answer of the edge."""
        self.flush(log_ns)
        frame, query, answer = result.frame, result.query, result.answer
        self._frame_id = frame.frame_id
        answered = AnsweredFrame.unanswered(frame, query, self._model, frame.stamp_ns)
        if answer is not None:
            answered.complete(result.context, answer,
                              self._told.pop((query.id, frame.stamp_ns), 0))
            self.used['context'] += answer.used_context
            self.used['focus'] += answer.used_focus
            answered.fail_unread()
        else:
            answered.fail(Answer.ERROR_IMAGE if result.bad_image else Answer.ERROR_MODEL,
                          result.error)
        message = answered.message
        # What the model took on this machine would make two runs differ.
        message.preprocess, message.inference = duration_msg(0.0), duration_msg(self._latency_s)
        if message.error_code:
            self.errors[message.error_msg] += 1
        self._score(query, frame.stamp_ns, answer.facts if answer is not None else ())
        self._file.write('answers', message, log_ns)

    def cloud(self, answer: CloudAnswer, log_ns: int) -> None:
        """Write an answer of the cloud."""
        self.flush(log_ns)
        self.delays_s.append(answer.round_trip_s)
        self._gate[answer.query_id] = ContextMsg.GATE_EMPTY
        self._file.write('cloud/answers', cloud_answer_msg(answer, self._frame_id), log_ns)

    def context(self, context: Context, frame: Frame, dropped: int, log_ns: int) -> None:
        """Write the context for a frame."""
        self.flush(log_ns)
        self._frame_id, self._dropped = frame.frame_id, dropped
        self._write_context(context, log_ns)

    def restart(self, stamp_ns: int, log_ns: int) -> None:
        """Write that all contexts are void: the stream starts over."""
        self.flush(log_ns)
        self._told.clear()
        for query in self._queries.values():
            self._gate[query.id] = ContextMsg.GATE_RESTART
            self._write_context(Context(query.id, stamp_ns), log_ns)

    def begin(self, log_ns: int) -> None:
        """Leave out the truth before a moment, that of the first frame."""
        while self._truth and self._truth[0].log_ns < log_ns:
            self._truth.popleft()

    def flush(self, log_ns: int) -> None:
        """Write the truth up to a moment."""
        while self._truth and self._truth[0].log_ns <= log_ns:
            self._write_truth()

    def end(self, stamp_ns: int) -> None:
        """Write the truth of the last frame, which comes after it."""
        while self._truth and self._truth[0].stamp_ns <= stamp_ns:
            self._write_truth()

    def _write_truth(self) -> None:
        label = self._truth.popleft()
        facts = [fact_msg(f, label.stamp_ns) for f in label.facts[:MAX_FACTS]]
        self._file.write('truth', Answer(
            header=header_msg(label.stamp_ns, label.frame_id), query_id=label.query_id,
            source=Answer.SOURCE_TRUTH, text=label.text, facts=facts), label.log_ns)

    def _write_context(self, context: Context, log_ns: int) -> None:
        query = self._queries[context.query_id]
        message = context_msg(context, query, self._frame_id,
                              gate_of(context, self._gate[query.id]), self._dropped)
        self._sequence[query.id] += 1
        message.sequence = self._sequence[query.id]
        self._told[query.id, context.stamp_ns] = message.sequence
        self._file.write('context', message, log_ns)

    def _score(self, query: Query, stamp_ns: int, facts: Sequence[Fact]) -> None:
        """Compare with the label of the frame, if there is one."""
        label = self._labels.get(stamp_ns)
        if label is None or label.query_id not in ('', query.id):
            return
        said = {f.key: f.value for f in facts}
        for fact in label.facts:
            if fact.key in query.choices:
                self.labelled[query.id] += 1
                self.right[query.id] += said.get(fact.key) == fact.value


def read_truth(path: str) -> list[Label]:
    """Return the labels of a bag: what the miniature world tells on topic truth."""
    return [Label(log_ns, stamp_ns(message.header.stamp), message.header.frame_id,
                  message.query_id, message.text,
                  tuple(Fact(f.key, f.value, stamp_ns(message.header.stamp))
                        for f in message.facts))
            for message, log_ns in bag_messages(path, 'spotvlm_msgs/msg/Answer', 'truth')]
