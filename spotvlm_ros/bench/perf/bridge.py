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
What the bridge to the cloud costs, and what the edge notices of the cloud's troubles.

``spotvlm perf bridge`` prints rows as ``make perf`` does; ``--soak 10`` is the ten-minute soak.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
import json
from pathlib import Path
import queue
import statistics
import sys
import tempfile
import time

import rclpy
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher
from spotvlm_msgs.msg import Answer

from .result import PerfResult, write_results
from ..faults.pictures import clip, frames
from ..faults.rig import ChaosProcess, LoadEdge, Resources, resources, RobotGraph
from ...cloud.bridge import CloudBridge
from ...cloud.bridge_statistics import percentile
from ...frames.frame import Frame
from ...frames.hub import FrameHub
from ...frames.pixels import encode_jpeg
from ...nodes.cloud import CloudNode
from ...nodes.edge import load_edge_model
from ...system.machine import machine

KEYFRAMES = 150
WARM_UP = 10
SETTLE_S = 1.0
SAMPLE_S = 5.0
GROWTH_MB = 5.0  # that a soak may take
SOAK_CLOUD: Mapping[str, object] = {  # often: faults are met by keyframes, not by the clock
    'deadline_s': 2.0, 'max_in_flight': 4, 'scene.cloud_period_s': 0.2,
    'action.cloud_period_s': 0.2}


def wire(keyframes: int = KEYFRAMES) -> list[PerfResult]:
    """
    Return the rows ``keyframe_to_wire_p95_ms`` and ``reply_to_answer_p95_ms``.

    From a raw 640x480 frame in the cloud node to its whole request read by a server in another
    process, and from that server's last byte to the published answer: both ends read the same
    clock. The baseline does the same with OpenCV's encoder and the ``openai`` client as it comes:
    nothing is bounded, streamed or held to a schema.
    """
    results = []
    for name, ours, usual in zip(('keyframe_to_wire_p95_ms', 'reply_to_answer_p95_ms'),
                                 _wire_of_node(keyframes), _wire_of_openai(keyframes)):
        value, base = (1e3 * percentile(times, 0.95) for times in (ours, usual))
        results.append(PerfResult(
            name, value, 'ms', f'OpenCV and the openai client, {base:.2f} ms' if base else '',
            value / base if base else None, machine()))
    return results


def _wire_of_node(keyframes: int) -> tuple[list[float], list[float]]:
    """Return what the ways out and back of keyframes take in node cloud [s]."""
    pixels, out, back = frames(16), [], []
    rclpy.init(args=['bridge_perf'])
    try:
        with ChaosProcess() as server:
            hub = FrameHub()
            node = CloudNode(hub, parameter_overrides=[
                Parameter('base_url', value=server.url), Parameter('queries', value=['go']),
                Parameter('go.prompt', value='What should the car do?'),
                Parameter('go.format', value='choice'),
                Parameter('go.choices', value=['stop', 'slow', 'go']),
                Parameter('go.cloud_period_s', value=0.001)])
            if not (node.autostart(False) and node.autostart(True)):
                raise RuntimeError(node.last_failure)
            published: queue.Queue[float] = queue.Queue()
            publish = node._answers.publish

            def publish_and_note(message: Answer) -> None:
                publish(message)
                published.put(time.monotonic())
            node._answers.publish = publish_and_note
            for number in range(keyframes + WARM_UP):
                frame = Frame(time.time_ns(), 'camera', pixels=pixels[number % len(pixels)])
                offered = time.monotonic()
                hub.publish(frame)
                try:
                    ended = published.get(timeout=10.0)
                except queue.Empty:
                    raise RuntimeError(f'no answer: {node.newest_problem}') from None
                stats = server.stats()
                if number >= WARM_UP:
                    out.append(stats.arrived[-1] - offered)
                    back.append(ended - stats.replied[-1])
            node.close()
            node.destroy_node()
    finally:
        rclpy.shutdown()
    return out, back


def _wire_of_openai(keyframes: int) -> tuple[list[float], list[float]]:
    """Do the least that a node written around the vendor's client would."""
    try:
        import openai
    except ImportError:
        return [], []
    pixels, out, back = frames(16), [], []

    async def ask_all(server: ChaosProcess, publisher: Publisher) -> None:
        client = openai.AsyncOpenAI(base_url=server.url, api_key='none', max_retries=0)
        for number in range(keyframes + WARM_UP):
            offered = time.monotonic()
            jpeg = encode_jpeg(pixels[number % len(pixels)])
            url = 'data:image/jpeg;base64,' + base64.b64encode(jpeg).decode('ascii')
            reply = await client.chat.completions.create(
                model='m', max_tokens=256, temperature=0.0, messages=[{'role': 'user', 'content': [
                    {'type': 'image_url', 'image_url': {'url': url}},
                    {'type': 'text', 'text': 'What should the car do?\nOne of: stop|slow|go'}]}])
            publisher.publish(Answer(text=reply.choices[0].message.content))
            ended = time.monotonic()
            stats = server.stats()
            if number >= WARM_UP:
                out.append(stats.arrived[-1] - offered)
                back.append(ended - stats.replied[-1])
        await client.close()
    rclpy.init(args=['bridge_perf'])
    node = rclpy.create_node('baseline')
    try:
        with ChaosProcess() as server:
            asyncio.run(ask_all(server, node.create_publisher(Answer, 'answers', 10)))
    finally:
        node.destroy_node()
        rclpy.shutdown()
    return out, back


def outage(pairs: int = 5, seconds: float = 6.0) -> list[PerfResult]:
    """
    Return the row ``edge_rate_under_outage_ratio``: answers per second with the server gone.

    Times with and without the server alternate and the medians are compared, so that other load
    on the machine hits both.
    """
    up, down = [], []
    server = ChaosProcess(pause_s=0.3)
    try:
        with RobotGraph(server.url) as robot:
            robot.wait(lambda: robot.since('edge', 0.0), 30.0)
            for _ in range(pairs):
                up.append(robot.watch(seconds))
                server.kill()
                time.sleep(SETTLE_S)
                down.append(robot.watch(seconds))
                server = ChaosProcess(pause_s=0.3, port=server.port)
                time.sleep(SETTLE_S)
    finally:
        server.close()
    for name, rates in (('up', up), ('down', down)):
        print(f'edge rate with the server {name}:', *(f'{rate:.2f}' for rate in rates), 'Hz')
    ratio = statistics.median(down) / statistics.median(up)
    return [PerfResult('edge_rate_under_outage_ratio', ratio, '1', 'the rate with the server up',
                       ratio, machine())]


@dataclass(frozen=True)
class Sample:
    """What a soak looks at, once."""

    at_s: float
    resources: Resources
    jobs: int    # of the bridge


@dataclass(frozen=True)
class Soak:
    """What came of a soak; memory in MB."""

    minutes: float
    growth_mb: float
    requests: int
    faults: int          # kinds met
    answers: int
    errors: int
    internal_errors: int
    edge_hz: float
    rss_mb: list[float]
    most_threads: int
    most_sockets: int
    most_jobs: int
    threads_left: int    # after the run, over those before
    sockets_left: int

    @property
    def result(self) -> PerfResult:
        """Return the row ``soak_growth_mb``."""
        return PerfResult('soak_growth_mb', self.growth_mb, 'MB',
                          f'what is allowed, {GROWTH_MB:g} MB', self.growth_mb / GROWTH_MB,
                          machine())


def soak(minutes: float = 10.0, warm_up_s: float = 60.0, load_edge: LoadEdge = load_edge_model,
         verbose: bool = False) -> Soak:
    """
    Run the whole graph while every other request meets a fault.

    Growth is the median memory of the last fifth after the warm-up over that of the first.
    """
    with tempfile.TemporaryDirectory(prefix='spotvlm-') as folder, \
            ChaosProcess('random') as server:
        camera = {'source': 'video', 'path': clip(folder), 'loop': True}
        with RobotGraph(server.url, SOAK_CLOUD, load_edge, camera):
            pass  # what ROS and torch keep for ever is no leak of a run
        before = resources()
        with RobotGraph(server.url, SOAK_CLOUD, load_edge, camera) as robot:
            began = time.monotonic()
            samples = _sample(robot, server, minutes, verbose)
            report = robot.bridge.report()
            stats, rate = server.stats(), robot.rate_hz(began, time.monotonic())
    after = resources()
    settled = [s for s in samples if s.at_s >= min(warm_up_s, 30 * minutes)]
    memory = [s.resources.rss / 1e6 for s in settled]
    fifth = max(1, len(settled) // 5)
    return Soak(
        minutes, statistics.median(memory[-fifth:]) - statistics.median(memory[:fifth]),
        requests=stats.count, faults=len(stats.served) - 1, answers=int(report['answers']),
        errors=int(report['errors']), internal_errors=int(report.get('errors.internal', 0)),
        edge_hz=round(rate, 2),
        rss_mb=[round(m, 1) for m in memory[::max(1, len(settled) // 12)]],
        most_threads=max(s.resources.threads for s in settled),
        most_sockets=max(s.resources.sockets for s in settled),
        most_jobs=max(s.jobs for s in settled),
        threads_left=after.threads - before.threads,
        sockets_left=after.sockets - before.sockets)


def _sample(robot: RobotGraph, server: ChaosProcess, minutes: float, verbose: bool
            ) -> list[Sample]:
    """Watch a graph for some minutes."""
    samples: list[Sample] = []
    began, bridge = time.monotonic(), robot.bridge
    while (passed := time.monotonic() - began) < 60 * minutes:
        time.sleep(min(SAMPLE_S, 60 * minutes / 20))
        # What a pause of the breaker would keep from being tested.
        bridge._loop.call_soon_threadsafe(_close_breakers, bridge)
        samples.append(Sample(passed, resources(), bridge.in_flight))
        if verbose and len(samples) % 6 == 0:
            used = samples[-1].resources
            print(f'{passed:6.0f} s: {used.rss / 1e6:.1f} MB, {used.threads} threads, '
                  f'{used.sockets} sockets, {server.stats().count} requests', flush=True)
    return samples


def _close_breakers(bridge: CloudBridge) -> None:
    for endpoint in bridge._pool.endpoints:
        endpoint.breaker.success()


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog='spotvlm perf bridge', description=__doc__,
                                     epilog='example: spotvlm perf bridge --only wire',
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--soak', type=float, default=0.0, metavar='MIN',
                        help='only the soak, this long; 10 is what the figures in docs are of')
    parser.add_argument('--only', choices=('wire', 'outage'), help='one of the others')
    parser.add_argument('--out', type=Path, metavar='FILE', help='write the rows there, too')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return 0."""
    arguments = command_parser().parse_args(argv)
    results: list[PerfResult] = []
    soaked: Soak | None = None
    if arguments.soak:
        soaked = soak(arguments.soak, verbose=True)
    else:
        results += wire() if arguments.only != 'outage' else []
        results += outage() if arguments.only != 'wire' else []
        soaked = soak(1.0, 20.0) if arguments.only is None else None
    if soaked is not None:
        print(soaked)
        results.append(soaked.result)
    print(json.dumps([asdict(r) for r in results], indent=2), flush=True)
    if arguments.out is not None:
        write_results(results, arguments.out)
    return 0


if __name__ == '__main__':
    sys.exit(main())
