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
"""`spotvlm query`: a client of services set_query and remove_query, and of topic queries."""

from __future__ import annotations

from spotvlm_msgs.msg import Queries
from spotvlm_msgs.srv import RemoveQuery, SetQuery

from .base import latched
from .command import Command, command, fail
from ..method.prompt import printable


def list_queries(namespace: str, timeout_s: float) -> int:
    """Print the standing queries; return the exit code."""
    with command('spotvlm_query', namespace, timeout_s) as running:
        told: list[Queries] = []
        running.node.create_subscription(Queries, 'queries', told.append, latched(1))
        if not running.wait(lambda: bool(told)):
            return _no_edge(running)
        for query_id, definition in zip(told[0].ids, told[0].definitions):
            print(printable(f'{query_id}:\n  ' + definition.strip().replace('\n', '\n  ')))
    return 0


def set_query(query_id: str, definition: str, persist: bool, namespace: str,
              timeout_s: float) -> int:
    """Add or change a query, print what it is now; return the exit code."""
    return _call(SetQuery, 'set_query', SetQuery.Request(
        query_id=query_id, definition=definition, persist=persist), namespace, timeout_s)


def remove_query(query_id: str, persist: bool, namespace: str, timeout_s: float) -> int:
    """Remove a query; return the exit code."""
    return _call(RemoveQuery, 'remove_query', RemoveQuery.Request(
        query_id=query_id, persist=persist), namespace, timeout_s)


def _call(kind: type, name: str, request: object, namespace: str, timeout_s: float) -> int:
    with command('spotvlm_query', namespace, timeout_s) as running:
        client = running.node.create_client(kind, name)
        if not running.wait(client.service_is_ready):
            return _no_edge(running)
        done = client.call_async(request)
        if not running.wait(done.done):
            return fail('node edge did not reply in time; is its model busy?')
        response = done.result()
        text = printable(response.message.strip())
        if not response.success:
            return fail(text)
        print(text)
    return 0


def _no_edge(running: Command) -> int:
    return fail(f'no active node edge in namespace {running.node.get_namespace()}; is spotvlm run '
                'active there, with the same ROS_DOMAIN_ID?')
