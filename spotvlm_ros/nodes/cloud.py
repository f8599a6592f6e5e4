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
"""Cloud node: keyframes to an OpenAI-compatible server, its answers to `cloud/answers`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
import time

from spotvlm_msgs.msg import Answer, CloudStatus
from typing_extensions import Unpack

from .base import latched, RELIABLE, Report, SpotNode
from .convert import cloud_answer_msg, duration_msg
from .health import ERROR, PAUSED, Trouble
from .input import FrameInput
from .parameters import NodeOptions
from .standing_queries import StandingQueries
from ..cloud.bridge import CloudBridge
from ..cloud.budget import Budget, Cost
from ..cloud.client import cloud_server, CloudServer
from ..cloud.keyframe_encoder import KeyframeEncoder
from ..cloud.parse import CloudAnswer
from ..cloud.server import EmbeddedServer
from ..config.nodes import CloudNodeConfig, NodeConfig, ServerConfig
from ..config.profiles import fallback_prefix
from ..config.spec import ParameterError
from ..frames.frame import Frame
from ..frames.hub import FrameHub
from ..method.facts import cameras, Query
from ..method.keyframes import is_unsure, SceneCutDetector
from ..mini.shipped import model_name_or_path

BUDGETS = {'budget_bytes': 'budget_mb_per_hour', 'budget_tokens': 'budget_tokens_per_hour',
           'budget_money': 'budget_money_per_hour'}
UNANSWERED_S = 10.0  # without an answer, at least, though keyframes are due: no cloud
STATUS_S = 0.5  # CloudStatus is published this often
TEND_S = 0.2    # and the embedded server looked after


class CloudNode(SpotNode[CloudNodeConfig]):
    """Offers every frame to the bridge, which sends the few it wants."""

    def __init__(self, hub: FrameHub | None = None, **options: Unpack[NodeOptions]) -> None:
        """Create the node; ``hub`` is shared with the other nodes of this process."""
        super().__init__('cloud', CloudNodeConfig, **options)
        self._hub = hub
        self._bridge: CloudBridge | None = None
        self._servers: list[CloudServer] = []
        self._embedded: EmbeddedServer | None = None
        self._encoder = KeyframeEncoder()
        self._inputs: list[FrameInput] = []
        self._standing = StandingQueries(self, self._take_queries)
        self._cameras: dict[str, str] = {}       # query -> its camera
        self._frame_ids: dict[str, str] = {}     # by camera
        self._scene_cuts: dict[str, SceneCutDetector] = {}  # by camera

    configured_first = True  # for the embedded server

    def setup(self) -> None:
        """Read the address, start the embedded server if it is that; nothing is sent yet."""
        self._queries = self._standing.setup()
        self._cameras = {q.id: q.camera for q in self._queries}
        if not self.config.base_url:
            self._embedded = self._embed()
        self._servers = [self._server(''), *map(self._server, self.config.fallbacks)]
        self._encoder = KeyframeEncoder(self.config)
        self._answers = self.advertise(Answer, 'cloud/answers', RELIABLE)
        self._status = self.advertise(CloudStatus, 'cloud/status', latched(1))
        if self._embedded is not None:
            self._embedded.start()

    def start(self) -> None:
        """Wait for the embedded server, which other nodes need not, and listen to frames."""
        if self._embedded is not None:
            self._embedded.start()
            self._embedded.wait(self.closing.is_set)
        limits = Cost(self.config.budget_mb_per_hour * 1e6,
                      self.config.budget_tokens_per_hour, self.config.budget_money_per_hour)
        self._bridge = CloudBridge(
            self._servers, self._queries, self._on_answer, self.config,
            budget=Budget(limits, time.monotonic()),
            on_error=lambda text: self.count_problem('request_errors', text))
        self._inputs = []
        self._listen()
        if self.config.unsure_below:
            self.subscribe(Answer, 'answers', RELIABLE, self._on_edge_answer)
        self.call_every(STATUS_S, self._publish_status)
        if self._embedded is not None:
            self.call_every(TEND_S, self._tend)
        self._standing.start()
        self._publish_status()

    def stop(self) -> None:
        """Give up requests in flight."""
        if self._bridge is not None:
            self._bridge.stop()
            self._bridge = None

    def release(self) -> None:
        """Forget the configuration."""
        self._standing.release()
        self._servers = []
        if self._embedded is not None:
            self._embedded.stop()
            self._embedded = None

    def clock_jumped(self) -> None:
        """Forget when frames were sent."""
        for camera in set(self._cameras.values()):
            self._reset(camera)

    def report(self) -> Report:
        """Return what /diagnostics shows."""
        bridge = self._bridge
        if bridge is None:
            return {}
        values: Report = bridge.report() | {'emulated_delay_p50_s': bridge.emulated_delay_s}
        for frames in self._inputs:
            values |= frames.report()
        return values

    def troubles(self) -> Iterator[Trouble]:
        """Yield why the cloud does not answer, or not as often as it should."""
        bridge = self._bridge
        if bridge is None:
            return
        if self._embedded is not None and self._embedded.trouble:
            yield Trouble(self._embedded.trouble, ERROR)
        frames = [trouble for frames in self._inputs for trouble in frames.troubles()]
        yield from frames
        if self.config.paused:
            yield Trouble(PAUSED)
            return
        budget = bridge.short_of
        if budget:
            yield Trouble(f'{BUDGETS[budget]} is spent and keyframes wait: raise it or '
                          'cloud_period_s, or set max_image_bytes')
        if bridge.pauses:
            yield Trouble(bridge.pauses)
        elif not frames:
            yield from self._silence(bridge)

    def _silence(self, bridge: CloudBridge) -> Iterator[Trouble]:
        """Yield that servers fail, or do not answer though keyframes are due."""
        server, unanswered_s = bridge.server.config, bridge.unanswered_s
        remedy = f'does curl {server.base_url}/models answer? start the server, set base_url of ' \
            f'{self.get_name()}, or name fallbacks'
        why = f' ({bridge.stats.last_error})' if bridge.stats.last_error else ''
        usual_s = 0.0 if why and not bridge.stats.answers else bridge.usual_s
        if unanswered_s > max(UNANSWERED_S, 2.0 * usual_s):
            yield Trouble(f'no answer from {server.base_url} for '
                          f'{unanswered_s:.0f} s{why}; {remedy}', ERROR)
        elif bridge.failing:
            others = f'; {server.base_url} answers instead' \
                if server.base_url not in bridge.failing else ''
            yield Trouble(f'{", ".join(bridge.failing)} fails and is tried now and then{why}'
                          f'{others}; {remedy}')
        elif not bridge.stats.answers and not bridge.short_of:
            yield Trouble(f'no answer from {server.base_url} yet{why}')

    def setting(self) -> str:
        """Return servers and queries; addresses hold no credentials."""
        servers = ', else '.join(f'{s.config.model} at {s.config.base_url}' for s in self._servers)
        median_s = self.config.emulated_delay_median_s
        delay = f', emulated delay of {median_s:g} s at the median' if median_s else ''
        return f'model {servers}{delay}; keyframes for ' + ', '.join(
            f'{q.id} (every {q.cloud_period_s:g} s)' for q in self._queries if q.cloud_period_s)

    def traffic(self) -> str:
        """Return where frames come from and answers go."""
        return f'frames from {", ".join(f.where for f in self._inputs)}, answers to ' \
            f'{self._answers.topic_name}'

    def _listen(self) -> None:
        """Listen to the frames of the cameras that queries are about."""
        heard = [frames.camera for frames in self._inputs]
        self._inputs += [
            FrameInput(self, self._hub, self._offer, partial(self._reset, camera), camera)
            for camera in cameras(self._queries) if camera not in heard]

    def _take_queries(self, queries: tuple[Query, ...]) -> None:
        """Ask other queries from now on."""
        self._queries = queries
        self._cameras = {q.id: q.camera for q in queries}
        if self._bridge is not None:
            self._bridge.replace(queries)
        self._listen()

    def _embed(self) -> EmbeddedServer:
        """Return the embedded server, not started yet."""
        model = model_name_or_path(self.config.model)
        if not self.config.embedded_threads:
            raise ParameterError('base_url is empty; give the address of an OpenAI-compatible '
                                 'server, or set embedded_threads to start one here')
        if not Path(model).is_dir():
            raise ParameterError(
                f'cloud model {model!r} is neither a shipped checkpoint nor a folder; for a '
                'server of your own set base_url of node cloud')
        return EmbeddedServer(model, threads=self.config.embedded_threads)

    def _tend(self) -> None:
        happened = self._embedded.tend() if self._embedded is not None else ''
        if happened:
            self.count_problem('server_restarts', happened)

    def _server(self, name: str) -> CloudServer:
        """Read the parameters of a server; '' is the preferred one."""
        config = self.read(ServerConfig, fallback_prefix(name) if name else '')
        if self._embedded is not None and not name:
            return self._embedded.to_ask(config, self.config)
        return cloud_server(config, name, self.config)

    def _reset(self, camera: str) -> None:
        """Forget what is of another time: the stream of a camera starts over."""
        self._scene_cuts.pop(camera, None)
        if self._bridge is not None:
            self._bridge.reset(camera)

    def _offer(self, frame: Frame) -> None:
        if self._bridge is None:
            return
        if self.config.paused:
            self._bridge.rest()
            return
        self._bridge.emulate(self.config)
        self._bridge.policy.max_in_flight = self.config.max_in_flight
        self._frame_ids[frame.camera] = frame.frame_id
        self._watch(self._bridge, frame)
        self._bridge.offer(frame.stamp_ns,
                           lambda: self._encoder.encode(frame.jpeg, frame.rgb),
                           frame.camera)

    def _watch(self, bridge: CloudBridge, frame: Frame) -> None:
        """Ask early about a scene that has just changed; frames not decoded yet are let pass."""
        detector = self._scene_cuts.setdefault(frame.camera, SceneCutDetector())
        if not frame.decoded or not detector.is_due(frame.stamp_ns):
            return
        if detector.update(frame.stamp_ns, frame.rgb(), self.config.cut_below):
            for query_id, camera in self._cameras.items():
                if camera == frame.camera:
                    bridge.urge(query_id)

    def _on_edge_answer(self, message: Answer) -> None:
        """Ask early when the edge is unsure."""
        confidences = [fact.confidence for fact in message.facts]
        if self._bridge is not None and is_unsure(confidences, self.config.unsure_below):
            self._bridge.urge(message.query_id)

    def _on_answer(self, answer: CloudAnswer) -> None:
        """Publish a reply; called by the bridge's thread."""
        frame_id = self._frame_ids.get(self._cameras.get(answer.query_id, ''), '')
        self._answers.publish(cloud_answer_msg(answer, frame_id))

    def _publish_status(self) -> None:
        bridge = self._bridge
        if bridge is None:
            return
        stats, spent = bridge.stats, bridge.spent_hour()
        kinds = sorted(stats.errors_by.items())
        status = CloudStatus(
            endpoint=bridge.server.config.base_url, endpoint_name=bridge.server.name,
            retries=stats.retries, failovers=stats.failovers, superseded=stats.superseded,
            injections=stats.injections, spent_hour_mb=spent.bytes / 1e6,
            spent_hour_tokens=int(spent.tokens), spent_hour_money=spent.money,
            error_kinds=[kind for kind, _ in kinds], error_counts=[n for _, n in kinds],
            model=bridge.server.config.model, in_flight=bridge.in_flight, requests=stats.requests,
            answers=stats.answers, errors=stats.errors, skipped=stats.skipped,
            facts_rejected=stats.facts_rejected, bytes_sent=stats.bytes_sent,
            round_trip_p50=duration_msg(bridge.round_trip_s(0.5)),
            round_trip_p95=duration_msg(bridge.round_trip_s(0.95)),
            emulated_delay_p50=duration_msg(bridge.emulated_delay_s),
            breaker=int(bridge.breaker_state),
            last_error=PAUSED if self.config.paused else stats.last_error or bridge.pauses)
        status.header.stamp = self.get_clock().now().to_msg()
        self._status.publish(status)


def make_nodes() -> list[SpotNode[NodeConfig]]:
    """Return the node for a process of its own."""
    return [CloudNode()]
