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
"""One answer of the edge, with what it was made of."""

from __future__ import annotations

from dataclasses import dataclass

from spotvlm_msgs.msg import Answer, Fact as FactMsg

from .convert import duration_msg, fact_msg, header_msg, MAX_FACTS
from ..edge.answer import EdgeAnswer
from ..frames.frame import Frame
from ..method.facts import Context, Fact, NS, Query
from ..recording.judged import NotingJudge


@dataclass
class AnsweredFrame:
    """
    A query answered about a frame: the message, what the model was given, and what it said.

    ``result`` and ``context`` are None where the model did not come to an answer; it is
    ``interrupted`` where it shall go on after others.
    """

    frame: Frame
    query: Query
    message: Answer
    context: Context | None = None
    result: EdgeAnswer | None = None
    interrupted: bool = False
    judge: NotingJudge | None = None   # of the facts, where that is not the guard

    @property
    def own(self) -> tuple[Fact, ...]:
        """Return what the pass without context said, where there was one to compare with."""
        passes = self.judge.passes if self.judge is not None else None
        return passes.first if passes is not None else ()

    @classmethod
    def unanswered(cls, frame: Frame, query: Query, model: str, now_ns: int) -> AnsweredFrame:
        """Return the beginning of an answer; work on it begins at ``now_ns`` (ROS time)."""
        return cls(frame, query, Answer(
            header=header_msg(frame.stamp_ns, frame.frame_id), query_id=query.id,
            source=Answer.SOURCE_EDGE, model=model,
            wait=duration_msg(max(0, now_ns - frame.stamp_ns) / NS)))

    def complete(self, context: Context | None, result: EdgeAnswer, sequence: int = 0) -> None:
        """Take what the model said when it was given ``context``, the ``sequence``-th."""
        self.context, self.result = context, result
        stamp_ns, message = self.frame.stamp_ns, self.message
        message.text = result.text
        message.facts = [fact_msg(f, stamp_ns, _origin(f.key, result))
                         for f in result.facts[:MAX_FACTS]]
        message.used_context, message.used_focus = result.used_context, result.used_focus
        message.context_tokens = result.context_tokens
        message.context_sequence = sequence * (result.used_context or result.used_focus)
        if result.used_context and context is not None:
            message.context_age = duration_msg((stamp_ns - context.newest_ns) / NS)
        message.preprocess = duration_msg(result.preprocess_s)
        message.inference = duration_msg(result.inference_s)

    def fail(self, code: int, text: str) -> None:
        """Put an error into the message."""
        self.message.error_code, self.message.error_msg = code, text

    def fail_unread(self) -> bool:
        """Put an error into the message where nothing could be read; return whether it was so."""
        result = self.result
        if result is None or result.facts or not result.rejected:
            return False
        self.fail(Answer.ERROR_PARSE, '; '.join(result.rejected[:4]))
        return True


def _origin(key: str, result: EdgeAnswer) -> int:
    """Return where the value of a key comes from."""
    if key in result.held_keys:
        return int(FactMsg.ORIGIN_HELD)
    return int(FactMsg.ORIGIN_CONTEXT if key in result.told_keys else FactMsg.ORIGIN_OWN)
