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
"""The audit of a running edge: how often context changes its answers, and for the better."""

from __future__ import annotations

from collections.abc import Callable

from spotvlm_msgs.msg import Answer, Fact as FactMsg

from .answered import AnsweredFrame
from .base import RELIABLE, SpotNode
from .convert import duration_msg, fact_msg, stamp_ns
from ..config.nodes import EdgeConfig
from ..edge.answer import EdgeVLM
from ..method.audit import Audit

TRUTHS = 64   # frames whose labels are kept


class ContextAudit:
    """Answers a share of the frames once more, without context, on topic audit."""

    def __init__(self, node: SpotNode[EdgeConfig]) -> None:
        """Count nothing until `start`."""
        self._node = node
        self._counts = Audit(0.0)
        self._truth: dict[int, dict[str, str]] = {}  # exact facts by stamp, where there are any

    def setup(self) -> None:
        """Create the publisher."""
        self._publisher = self._node.advertise(Answer, 'audit', RELIABLE)

    def start(self) -> None:
        """Count anew; listen to labels if they are wanted."""
        config = self._node.config
        self._counts = Audit(config.audit_share)
        if config.audit_share and config.audit_truth:
            self._node.subscribe(Answer, 'truth', RELIABLE, self._on_truth)

    def report(self) -> dict[str, float]:
        """Return rates for /diagnostics."""
        return self._counts.report()

    def check(self, answered: AnsweredFrame, model: EdgeVLM,
              should_stop: Callable[[], bool]) -> None:
        """Compare an answer with one without context, if it had any and its turn has come."""
        given, result, context = answered.message, answered.result, answered.context
        if result is None or context is None or not result.used_context or given.error_code:
            return
        if not self._counts.due():
            return
        frame, query = answered.frame, answered.query
        alone = model.answer(frame.rgb(), query, None, frame.stamp_ns, should_stop=should_stop)
        if alone.partial:
            return
        self._counts.add(result.facts, alone.facts, context.facts,
                         self._truth.get(frame.stamp_ns) if query.format == 'facts' else None)
        if not should_stop():
            self._publisher.publish(Answer(
                header=given.header, query_id=query.id, source=Answer.SOURCE_EDGE,
                text=alone.text, inference=duration_msg(alone.inference_s), model=model.name,
                facts=[fact_msg(f, frame.stamp_ns, FactMsg.ORIGIN_OWN) for f in alone.facts]))

    def _on_truth(self, message: Answer) -> None:
        self._truth[stamp_ns(message.header.stamp)] = {f.key: f.value for f in message.facts}
        while len(self._truth) > TRUTHS:
            del self._truth[min(self._truth)]
