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
Standing queries that change while a node runs.

Node edge is the door: it checks a change, tries the query once, takes it up and tells the other
nodes on topic `queries`, which is latched. What it says there is laid by each node over its own
parameters, so that all of them agree, and a node that starts later does, too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
import os
from pathlib import Path
import time
from typing import cast

import numpy as np
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.task import Future
from spotvlm_msgs.msg import Queries
from spotvlm_msgs.srv import RemoveQuery, SetQuery

from .base import latched, SpotNode
from ..config.nodes import EdgeConfig, QueriesConfig
from ..config.query_changes import definition, QueryChanges, read_definition
from ..config.spec import ParameterError, Value
from ..edge.answer import EdgeVLM
from ..method.facts import Query
from ..method.prompt import printable
from ..system.text_file import read_text_file

MAX_FILE = 1 << 20  # bytes of a file of changes
MAX_TRIALS = 4      # definitions that may wait for their trial
PATIENCE_S = 0.5    # of a trial while standing answers wait
TRIAL_S = 0.15      # of the model's time for one, at most, but for a pass under way
MAX_REASON = 1000   # characters of why a change is refused
SHARE = 0.08        # of the model's time for all trials, at most
HEAD = '# Standing queries as they were changed; written by node edge (spotvlm query --persist).\n'
Take = Callable[[tuple[Query, ...]], None]
NODE = 'edge'  # all nodes with queries have the same parameters for them
NONE = QueryChanges()


class StandingQueries:
    """The queries of a node: what its parameters say, with the changes of node edge over it."""

    def __init__(self, node: SpotNode[QueriesConfig], take: Take) -> None:
        """Call ``take`` with all queries when they have changed."""
        self._node, self._take = node, take
        self._own: dict[str, Value] | None = None  # parameters about queries, without changes
        self.changes = NONE
        self.queries: tuple[Query, ...] = ()

    def setup(self) -> tuple[Query, ...]:
        """Return the queries at configure; raise ParameterError."""
        self.changes, self._own = NONE, None
        self.queries = self._node.queries(self._node.config)
        self._own = self._node.query_parameters()
        return self.queries

    def start(self) -> None:
        """Follow node edge until the node is deactivated."""
        self._node.subscribe(Queries, 'queries', latched(1), self._on_queries)

    def release(self) -> None:
        """Have the parameters that there were before."""
        if self._own is not None:
            self._node.replace_parameters(self._own)
            self._own = None

    @property
    def own(self) -> dict[str, Value]:
        """Return the parameters about queries, without changes."""
        return self._own or {}

    def adopt(self, changes: QueryChanges) -> None:
        """Have other changes; raise ParameterError, and have those that there were."""
        section = changes.checked(self.own, NODE)[0]
        known = {q.id: q for q in self.queries}
        self._node.replace_parameters(cast(dict[str, Value], section))  # checked
        self.changes, queries = changes, self._node.queries(self._node.config)
        self.queries = tuple(known[q.id] if known.get(q.id) == q else q for q in queries)

    def _on_queries(self, message: Queries) -> None:
        try:
            changes = QueryChanges.parse(message.changes)
            if changes != self.changes:
                self.adopt(changes)
                self._take(self.queries)
        except ParameterError as error:
            self._node.count_problem('queries_refused', f'queries: {error}; this node keeps those '
                                     'it has, and node edge has others')


class QueryDoor(StandingQueries):
    """Services set_query and remove_query, and topic queries, of node edge."""

    def __init__(self, node: SpotNode[EdgeConfig], take: Take,
                 cameras: Callable[[], Collection[str]], wake: Callable[[], None]) -> None:
        """``cameras`` are those with frames here; ``wake`` the inference thread for a trial."""
        super().__init__(node, take)
        self._edge, self._cameras, self._wake = node, cameras, wake
        self._kept = NONE  # what the file holds
        self._trials: list[tuple[Query, Future[str], float]] = []  # and since when
        self._next_trial = 0.0  # steady clock [s]

    def setup(self) -> tuple[Query, ...]:
        """Return the queries at configure, with what was kept; raise ParameterError."""
        super().setup()
        self._publisher = self._node.advertise(Queries, 'queries', latched(1))
        self._kept = NONE
        path = self._edge.config.queries_file
        if path and Path(path).expanduser().exists():
            try:
                self._kept = QueryChanges.parse(read_text_file(Path(path).expanduser(), MAX_FILE))
                self.adopt(self._kept)
            except ValueError as error:
                raise ParameterError(f'queries_file {path}: {error}; mend it, or remove it to '
                                     'have the queries of the parameters') from error
        return self.queries

    def start(self) -> None:
        """Offer the services until the node is deactivated, and say what the queries are."""
        # A group of their own: that of the frames would wait while a trial is waited for.
        group = ReentrantCallbackGroup()
        for kind, name, callback in ((SetQuery, 'set_query', self._on_set),
                                     (RemoveQuery, 'remove_query', self._on_remove)):
            service = self._node.create_service(kind, name, callback, callback_group=group)
            self._node.call_at_stop(partial(self._node.destroy_service, service))
        self._publish()

    def stop(self) -> None:
        """Refuse what waits."""
        while self._trials:
            self._trials.pop()[1].set_result('node edge is being deactivated; try again later')

    def run_trial(self, model: EdgeVLM, standing_wait: Callable[[], bool]) -> None:
        """Try the query that has waited longest; called by the inference thread."""
        now = time.monotonic()
        if not self._trials or standing_wait() and (
                now < self._next_trial or now - self._trials[0][2] < PATIENCE_S):
            return
        query, done, _ = self._trials.pop(0)
        began = time.monotonic()
        try:
            model.answer(np.full((480, 640, 3), 127, np.uint8), query, None, 0,
                         should_stop=lambda: time.monotonic() > began + TRIAL_S)
            why = ''
        except Exception as error:
            why = f'{query.id}: the model cannot answer it: {type(error).__name__}: {error}'
        now = time.monotonic()
        self._next_trial = now + (now - began) * (1.0 - SHARE) / SHARE
        done.set_result(why)
        if self._node.executor is not None:
            self._node.executor.wake()

    async def _on_set(self, request: SetQuery.Request,
                      response: SetQuery.Response) -> SetQuery.Response:
        query_id = request.query_id

        def changed() -> QueryChanges:
            """Return the changes with this one, checked, over those that there are by now."""
            changes = self.changes.with_query(
                query_id, read_definition(query_id, request.definition), self.own)
            self._query_in(changes, query_id)
            return changes
        try:
            query = self._query_in(changed(), query_id)
            if query not in self.queries:
                why = await self._tried(query)
                if why:
                    raise ParameterError(why)
            self._change(changed(), query_id, request.persist)
            response.success, response.message = True, definition(
                query_id, self._node.query_parameters())
        except Exception as error:
            response.message = self._refused(error)
        return response

    def _on_remove(self, request: RemoveQuery.Request,
                   response: RemoveQuery.Response) -> RemoveQuery.Response:
        query_id = request.query_id
        try:
            self._change(self.changes.without(query_id, self.own), query_id, request.persist)
            response.success, response.message = True, f'{query_id} is removed'
        except Exception as error:
            response.message = self._refused(error)
        return response

    def _query_in(self, changes: QueryChanges, query_id: str) -> Query:
        """Return a query of changes, which are checked; raise ParameterError."""
        queries = changes.checked(self.own, NODE)[1]
        query = next(q for q in queries if q.id == query_id)
        if query.camera not in self._cameras():
            known = ', '.join(filter(None, self._cameras())) or 'one without a name'
            raise ParameterError(
                f'{query_id}.camera is {query.camera!r}, and there is {known}; other cameras '
                'have to be named in parameter cameras of node edge when it starts')
        return query

    async def _tried(self, query: Query) -> str:
        """Return why the model cannot answer a query, '' where it can."""
        if len(self._trials) >= MAX_TRIALS:
            return f'{MAX_TRIALS} definitions wait already; try again later'
        done: Future[str] = Future(executor=self._node.executor)
        self._trials.append((query, done, time.monotonic()))
        self._wake()
        return str(await done)

    def _change(self, changes: QueryChanges, query_id: str, persist: bool) -> None:
        """Keep, take up and tell a change; raise an error before anything has changed."""
        if not self._node.active:
            raise ParameterError('node edge is not active; activate it first')
        changes.checked(self.own, NODE)
        if persist:
            kept = self._kept.with_query_as_in(changes, query_id)
            try:
                kept.checked(self.own, NODE)
            except ParameterError as error:
                raise ParameterError(f'persist: with what was kept before, {error}') from error
            _write(self._edge.config.queries_file, kept)
            self._kept = kept
        self.adopt(changes)
        self._take(self.queries)
        self._publish()

    def _refused(self, error: Exception) -> str:
        if isinstance(error, (ParameterError, OSError)):
            text = str(error)
            self._node.count_problem('queries_refused', text)
        else:
            text = self._node.count_error('queries_refused', error)
        return printable(text)[:MAX_REASON]

    def _publish(self) -> None:
        values = self._node.query_parameters()
        message = Queries(ids=[q.id for q in self.queries], changes=self.changes.text(),
                          definitions=[definition(q.id, values) for q in self.queries])
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)


def _write(name: str, changes: QueryChanges) -> None:
    """Write a file of changes at once or not at all; raise ParameterError with the remedy."""
    if not name:
        raise ParameterError('persist needs parameter queries_file of node edge: the path of a '
                             'YAML that it may write')
    path = Path(name).expanduser()
    part = path.with_name(f'{path.name}.part')
    try:
        with open(part, 'w', encoding='utf-8') as file:
            file.write(HEAD + changes.text())
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise ParameterError(f'queries_file {name}: {error.strerror}; name a file that can be '
                             'written') from error
