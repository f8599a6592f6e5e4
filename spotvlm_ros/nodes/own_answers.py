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
"""Topic answers/alone: what the edge said of a frame before it was told the context."""

from __future__ import annotations

from spotvlm_msgs.msg import Answer, Fact

from .answered import AnsweredFrame
from .base import RELIABLE, SpotNode
from .convert import fact_msg, MAX_FACTS
from ..config.nodes import EdgeConfig

TOPIC = 'answers/alone'


class OwnAnswers:
    """
    Publishes while somebody subscribes.

    It is the pass that an answer makes anyway; where it makes none, there is nothing.
    """

    def __init__(self, node: SpotNode[EdgeConfig]) -> None:
        """Publish nothing until `setup`."""
        self._node = node

    def setup(self) -> None:
        """Create the publisher."""
        self._publisher = self._node.advertise(Answer, TOPIC, RELIABLE)

    def publish(self, answered: AnsweredFrame) -> None:
        """Publish the pass without context of an answer; before the answer."""
        if not answered.own or not self._publisher.get_subscription_count():
            return
        of, stamp_ns = answered.message, answered.frame.stamp_ns
        self._publisher.publish(Answer(
            header=of.header, query_id=of.query_id, source=of.source, model=of.model,
            facts=[fact_msg(f, stamp_ns, Fact.ORIGIN_OWN)
                   for f in answered.own[:MAX_FACTS]]))
