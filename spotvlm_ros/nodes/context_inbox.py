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
"""The contexts that node edge may use: the newest of each query, checked."""

from __future__ import annotations

from spotvlm_msgs.msg import Context as ContextMsg

from .base import SpotNode
from .convert import context_from_msg
from ..config.nodes import EdgeConfig
from ..method.facts import Context, Query
from ..method.history import unexpired
from ..method.trust import trusted_context


class ContextInbox:
    """
    Holds the newest context of each query.

    `put` and `forget` are for the executor's thread, `get` for that of the model. A context is
    read and checked when it is first used: more come than are needed.
    """

    def __init__(self, node: SpotNode[EdgeConfig]) -> None:
        """Start empty; what is wrong with contexts is counted in the node's diagnostics."""
        self._node = node
        self._messages: dict[str, ContextMsg] = {}
        self._checked: dict[str, tuple[ContextMsg, Context | None]] = {}

    def put(self, message: ContextMsg) -> None:
        """Leave a context in the place of the last one of its query."""
        self._messages[message.query_id] = message

    def forget(self, query_id: str) -> None:
        """Forget the context of a query."""
        self._messages.pop(query_id, None)

    def get(self, query: Query, stamp_ns: int) -> tuple[Context | None, int]:
        """
        Return what may be used for a frame of this stamp, and its number.

        None where no context came, or one that is not to be believed.
        """
        message = self._messages.get(query.id)
        if message is None:
            return None, 0
        last = self._checked.get(query.id)
        if last is None or last[0] is not message:
            last = message, self._check(message, query, max(stamp_ns, self._node.now_ns()))
            self._checked[query.id] = last
        context = last[1]
        return (None if context is None else unexpired(context, query, stamp_ns),
                int(message.sequence))

    def _check(self, message: ContextMsg, query: Query, now_ns: int) -> Context | None:
        try:
            context, rejected = trusted_context(context_from_msg(message), query, now_ns)
        except Exception as error:
            self._node.count_error('context_errors', error)
            return None
        for why in rejected:
            self._node.count_problem('context_rejected', f'context: {why}')
        return context
