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
"""`spotvlm process`: a bag in, a bag of answers out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
import json
from pathlib import Path
import sys
import time

import cv2

from .answer_bag import AnswerBag, BagFile, read_truth
from .bag_motion import BagMotion
from .summary import delayed_truth
from .. import __version__
from ..cloud.bridge_statistics import percentile
from ..cloud.client import cloud_server, CloudServer
from ..cloud.errors import CloudError
from ..cloud.keyframe_encoder import KeyframeEncoder
from ..cloud.offline import Delays, OfflineCloud
from ..cloud.patient import Stopped
from ..cloud.server import EmbeddedServer, ServerError
from ..config.nodes import CloudNodeConfig, EdgeConfig
from ..config.profiles import Profile
from ..config.spec import ParameterError
from ..edge.answer import EdgeVLM
from ..frames.bags import bag, bag_extent, BagExtent
from ..frames.frame import Frame
from ..frames.source_frame import SourceError, SourceFrame
from ..method.facts import Query
from ..method.keyframes import URGENT_SHARE
from ..method.prompt import printable
from ..mini.shipped import checkpoint_path, model_name_or_path, note_on
from ..recording.journal import fingerprint, Header, Journal, JournalError, Kept
from ..recording.process import KeptEdge, Process, Rules
from ..system.progress import progress
from ..system.signals import StopSignal

INTERRUPTED = 130
EMBEDDED_S = 1.0    # delay of the embedded server, whose speed is that of this machine
WHERE = frozenset({'base_url', 'api_key_file', 'record_dir'})  # of no influence on answers


@dataclass(frozen=True)
class ProcessConfig:
    """What to process; the command line in one place. Times are seconds."""

    bag: Path
    out: Path
    topic: str = ''
    from_s: float = 0.0
    to_s: float = 0.0             # 0: to the end
    edge_latency_s: float = 0.0
    delay_s: float | None = None  # None: measured, or as the profile emulates it
    delays: Path | None = None    # journal of an earlier run
    quiet: bool = False


def process(config: ProcessConfig, profile: Profile, stop: StopSignal) -> int:
    """Process a bag and return the exit code. Errors are printed, not raised."""
    try:
        with ExitStack() as stack:
            return _process(config, profile, stop, stack)
    except Stopped:
        print(f'interrupted; the same command goes on with {config.out}', flush=True)
        return INTERRUPTED
    except CloudError as error:
        why = f'{error}; mend that, and the same command goes on with {config.out}'
    except OSError as error:
        why = f'{error.filename or config.out}: {error.strerror}; mend that, and the same ' \
              f'command goes on with {config.out}'
    except (SourceError, JournalError, ParameterError, ServerError, ValueError) as error:
        why = str(error)
    print(printable(f'error: {why}'), file=sys.stderr)
    return 1


def _process(config: ProcessConfig, profile: Profile, stop: StopSignal, stack: ExitStack) -> int:
    queries = _queries(profile)
    extent = bag_extent(str(config.bag), config.topic)
    earlier = Kept(config.delays) if config.delays is not None else None
    delays = _delays(config, profile.cloud)
    header = _header(config, profile, extent, delays, earlier)
    journal = Journal(config.out, header, earlier)
    stack.callback(journal.close)
    cv2.setNumThreads(1)
    server, start = _server(profile.cloud, stack, stop)
    cloud = OfflineCloud(server, queries, profile.cloud, delays, journal)
    stack.callback(cloud.close)
    cloud.ready, cloud.stopped = start, stop
    edge = KeptEdge(lambda: load_edge(profile.edge), queries, journal)
    file = stack.enter_context(BagFile(config.out, json.dumps(
        header | {'path': str(config.bag.resolve())}, sort_keys=True)))
    output = AnswerBag(file, queries, Path(profile.edge.model).name, read_truth(str(config.bag)),
                       config.edge_latency_s)
    rules = Rules(profile.edge, profile.cloud, profile.context, config.edge_latency_s)
    run = Process(queries, rules, edge, cloud, output)
    motion = None
    if profile.context.ego_motion != 'none':
        motion = BagMotion(str(config.bag), profile.context)
        run.turn = motion.turn
    _announce(config, profile, extent, queries, cloud)
    print(f'answers of the cloud come {_how_late(delays, config)}')
    if journal.resumed:
        print(f'going on with {config.out}: {journal.resumed} answers are there already')
    sys.stdout.flush()
    began = time.monotonic()
    cut_off = _take_all(config, extent, run, output, stop)
    summary = _summary(run, edge, cloud, output, file)
    summary |= {'cut_off': cut_off, 'wall_s': round(time.monotonic() - began, 3),
                'meta': header}
    if motion is not None:
        summary['ego_motion'] = {**motion.counts, 'newest': motion.newest}
    if not run.counts['answers']:
        raise SourceError(f'bag {config.bag}: no frame of {run.counts["frames"]} was answered; '
                          'look at --topic, --from and --to')
    (config.out / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n',
                                             encoding='utf-8')
    file.finish()
    _print_summary(summary, config.out)
    return 0


def _take_all(config: ProcessConfig, extent: BagExtent, run: Process, output: AnswerBag,
              stop: StopSignal) -> str:
    """Take all frames; return why the bag is cut off, '' for a whole one."""
    share = _length_s(config, extent) / extent.duration_s if extent.duration_s else 1.0
    cut_off = ''
    try:
        with progress('frames', round(extent.images * share), config.quiet) as advance:
            for index, frame in bag_frames(config, extent):
                if stop():
                    raise Stopped
                if not run.counts['frames']:
                    output.begin(frame.log_ns)
                run.take(index, frame)
                advance()
    except SourceError as error:
        if not run.counts['answers']:
            raise
        cut_off = str(error)   # what there is, is answered
    run.finish()
    output.end(run.newest_ns)
    return cut_off


def _queries(profile: Profile) -> tuple[Query, ...]:
    queries = profile.queries()
    named = sorted({q.camera for q in queries} - {''})
    if named:
        raise ParameterError(f'queries are about cameras {", ".join(named)}; a bag is processed '
                             'for one camera: leave camera of the queries empty, and run once '
                             'for each camera')
    if not queries:
        raise ParameterError('queries is empty; name a standing question')
    return queries


def _delays(config: ProcessConfig, cloud: CloudNodeConfig) -> Delays:
    if config.delay_s is not None:
        return Delays(False, config.delay_s)
    emulated_s = cloud.emulated_delay_median_s
    if not cloud.base_url:
        emulated_s = emulated_s or EMBEDDED_S
    return Delays(bool(cloud.base_url), emulated_s, cloud.emulated_delay_sigma,
                  cloud.emulated_delay_seed)


def _header(config: ProcessConfig, profile: Profile, extent: BagExtent, delays: Delays,
            earlier: Kept | None) -> Header:
    """Return what tells this run from others: all that its bag depends on."""
    parameters = {node: {name: value for name, value in section.items()
                         if name.rpartition('.')[2] not in WHERE}
                  for node, section in profile.sections.items() if node != 'camera'}
    models = {}
    for name in (profile.edge.model, profile.cloud.model):
        path = checkpoint_path(name)
        models[name] = fingerprint(path) if path.is_dir() else None
    kept = earlier.header if earlier is not None else {}
    header = {
        'spotvlm': __version__, 'bag': fingerprint(config.bag), 'topic': extent.topic,
        'from_s': config.from_s, 'to_s': config.to_s, 'edge_latency_s': config.edge_latency_s,
        'delays': kept.get('delays', asdict(delays)), 'parameters': parameters, 'models': models}
    return dict(json.loads(json.dumps(header)))


def _server(config: CloudNodeConfig, stack: ExitStack, stop: StopSignal
            ) -> tuple[CloudServer, Callable[[], None]]:
    """Return the server to ask, and what makes sure that it is there."""
    if config.base_url:
        return cloud_server(config), lambda: None
    model = model_name_or_path(config.model)
    if not Path(model).is_dir():
        raise ParameterError(f'cloud model {model!r} is neither a shipped checkpoint nor a '
                             'folder; for a server of your own set base_url of node cloud')
    server = EmbeddedServer(model, threads=max(1, config.embedded_threads))
    stack.callback(server.stop)

    def start() -> None:
        if not server.alive:
            server.start()
            if not server.wait(stop):
                raise Stopped
    return server.to_ask(config), start


def load_edge(config: EdgeConfig) -> EdgeVLM:
    """Load the edge model of a profile; raise ParameterError where `process` has no use for it."""
    if config.remote_url:  # two runs would not be equal, nor would what failed be asked again
        raise ParameterError('edge.remote_url is set; process runs the edge model itself: leave '
                             'it empty, and let model be the checkpoint')
    import transformers

    from ..edge.model import EdgeModel
    transformers.utils.logging.disable_progress_bar()
    try:
        return EdgeModel.load(config)
    except FileNotFoundError as error:
        raise ParameterError(str(error)) from error


def bag_frames(config: ProcessConfig, extent: BagExtent) -> Iterator[tuple[int, SourceFrame]]:
    """Yield the frames that are asked for, each with its number in the bag."""
    for index, frame in enumerate(bag(str(config.bag), extent.topic)):
        if config.to_s and frame.at_s > config.to_s:
            return
        if frame.at_s >= config.from_s:
            yield index, frame


# What the user sees

def _announce(config: ProcessConfig, profile: Profile, extent: BagExtent,
              queries: tuple[Query, ...], cloud: OfflineCloud) -> None:
    """Say what is going to happen, and what it will cost."""
    note = note_on(profile.edge.model)
    if note:
        print(f'note: {note}')
    if profile.cloud.fallbacks:  # which of them answers would differ from run to run
        print(f'note: fallbacks of node cloud ({", ".join(profile.cloud.fallbacks)}) are not '
              'asked: process asks one server, base_url, and waits for it')
    print(f'{extent.topic}: {extent.images} images in {extent.duration_s:.1f} s')
    first = next((f for _, f in bag_frames(config, extent)), None)
    asked = [(q, _length_s(config, extent) / q.cloud_period_s) for q in queries
             if q.cloud_period_s]
    if first is None or not asked:
        return
    frame, size = Frame(1, '', pixels=first.load, jpeg=first.jpeg), 0
    number = sum(n for _, n in asked)
    try:
        size = len(KeyframeEncoder(profile.cloud).encode(first.jpeg, frame.rgb).jpeg)
    except ValueError:
        pass   # the first frame is none that can be sent
    price = sum(n * cloud.price(query, size) for query, n in asked)
    print(f'cloud: about {number:.0f} keyframes (at most {number / URGENT_SHARE:.0f}) of '
          f'{size / 1e3:.0f} kB, {number * size / 1e6:.1f} MB in all'
          + (f', for {price:.2f} by the prices set' if price else '')
          + f', to {profile.cloud.base_url or "the embedded server"}')


def _length_s(config: ProcessConfig, extent: BagExtent) -> float:
    end_s = min(extent.duration_s, config.to_s or extent.duration_s)
    return max(0.0, end_s - config.from_s)


def _how_late(delays: Delays, config: ProcessConfig) -> str:
    if config.delays is not None:
        return f'as in {config.delays}'
    typical = ' at the median' if delays.sigma else ''
    emulated = f'{delays.median_s:g} s late{typical} (emulated)' if delays.median_s else ''
    if not delays.measured:
        return emulated or 'at once (emulated)'
    return 'as late as measured' + (f', and {emulated}' if emulated else '')


def _summary(run: Process, edge: KeptEdge, cloud: OfflineCloud, output: AnswerBag,
             file: BagFile) -> dict[str, object]:
    counts, stats, answers = run.counts, cloud.stats, run.counts['answers']

    def percentiles(values: list[float], factor: float, digits: int) -> dict[str, float]:
        return {p: round(percentile(values, q) * factor, digits)
                for p, q in (('p50', 0.5), ('p95', 0.95))}
    return {
        'frames': counts['frames'],
        'frames_rejected': {name.removeprefix('frames_'): n for name, n in sorted(counts.items())
                            if name.startswith('frames_') and n},
        'time_jumps': counts['time_jumps'], 'restarts': counts['restarts'],
        'due': counts['due'], 'answers': answers,
        'messages': dict(file.counts),
        'errors': sum(output.errors.values()),
        'errors_by_message': dict(output.errors.most_common(8)),
        'context_used_fraction': round(output.used['context'] / answers, 4) if answers else 0.0,
        'focus_used_fraction': round(output.used['focus'] / answers, 4) if answers else 0.0,
        'cloud': {
            'requests': stats.requests, 'answers': stats.answers, 'errors': stats.errors,
            'errors_by': dict(stats.errors_by), 'skipped_by': dict(stats.skipped_by),
            'superseded': stats.superseded, 'not_awaited': cloud.in_flight_lost,
            'facts_rejected': stats.facts_rejected, 'bytes_sent': stats.bytes_sent,
            'delay_s': percentiles(output.delays_s, 1.0, 3)},
        'calibration': {q: delayed_truth(keys) for q, keys in run.calibration.items()},
        'inference_ms': percentiles(edge.inference_s, 1e3, 2),
        'accuracy': {query: round(output.right[query] / n, 4)
                     for query, n in output.labelled.items()}
        | ({'all': round(sum(output.right.values()) / sum(output.labelled.values()), 4)}
           if output.labelled else {})}


def _print_summary(summary: Mapping[str, object], out: Path) -> None:
    cloud = summary['cloud']
    assert isinstance(cloud, dict)
    print(f'{summary["answers"]} answers about {summary["frames"]} frames, {summary["errors"]} '
          f'errors; {cloud["answers"]} answers of the cloud to {cloud["requests"]} requests, '
          f'{cloud["delay_s"]["p50"]} s late at the median; context used in '
          f'{summary["context_used_fraction"]:.0%}')
    if summary['frames_rejected']:
        print(f'frames not used: {summary["frames_rejected"]}')
    if summary['cut_off']:
        print(printable(f'the bag is cut off: {summary["cut_off"]}'))
    if summary['accuracy']:
        print(f'right facts, by the truth in the bag: {summary["accuracy"]}')
    print(f'{out} is a bag: ros2 bag info {out}', flush=True)
