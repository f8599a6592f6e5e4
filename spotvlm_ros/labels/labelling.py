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
"""Labels of a recording from what a cloud model says about its keyframes (`spotvlm label`)."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
import hashlib
import math
import os
from pathlib import Path
import select
import statistics
import sys

from pydantic import JsonValue

from .asking import Asked, Asking, NO_LIMIT, Outcome, USELESS
from .keyframes import choose, Chosen, frames_at, Recording
from .replies import Replies
from .said import agreement, counted, labels, read, reasons, Said, table
from .schema import Header, Label, label_line, LabelError, write_labels
from ..cloud.budget import Cost, NAMES
from ..cloud.client import CloudServer
from ..cloud.errors import CloudError
from ..cloud.keyframe_encoder import EncodedKeyframe, KeyframeEncoder
from ..cloud.patient import Stopped
from ..cloud.wording import ask_text
from ..config.nodes import CloudNodeConfig
from ..frames.source_frame import SourceError
from ..method.facts import Query
from ..method.prompt import printable
from ..mini.shipped import note_on
from ..system.progress import progress
from ..system.signals import StopSignal

INTERRUPTED = 130
ASK_ABOVE = 100     # requests, or any price: then a person at a terminal is asked
USUAL_S = 2.0       # a reply is thought to take, before there was one
LINES_S = 30.0      # between lines of progress
REPLIES = ('.replies', '.second')   # beside the label file, model by model


@dataclass(frozen=True)
class LabelConfig:
    """What to label; the command line in one place."""

    recording: Recording
    out: Path
    query: Query
    models: dict[str, CloudServer]   # by name; the first labels, a second is compared with it
    rate_hz: float = 0.0             # 0: as often as the query asks the cloud
    requests: int = 0                # to each model, at most; 0: no limit
    most: Cost = NO_LIMIT            # for the replies of each model
    concurrency: int = 0             # 0: max_in_flight
    yes: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Opinion:
    """A model that is asked, and what it has replied."""

    name: str
    asked: Asked
    replies: Replies
    outcome: Outcome

    def said(self) -> dict[int, Said]:
        """Return what it said, by the number of the frame."""
        return read(self.asked.query, self.replies.by_number, self.asked.server.config.box_scale)


def label(config: LabelConfig, cloud: CloudNodeConfig, stop: StopSignal) -> int:
    """Label a recording and return the exit code. Errors are printed, not raised."""
    try:
        with ExitStack() as stack:
            return _label(config, cloud, stop, stack)
    except Stopped:
        print(f'interrupted; the same command goes on with {config.out}', flush=True)
        return INTERRUPTED
    except CloudError as error:
        why = f'{error}; mend that, and the same command goes on: what was answered is in ' \
              f'{config.out.with_suffix(REPLIES[0])}'
    except OSError as error:
        why = f'{error.filename or config.out}: {error.strerror}; mend that, and the same ' \
              'command goes on'
    except (SourceError, ValueError) as error:    # all of ours are ValueErrors
        why = str(error)
    print(printable(f'error: {why}'), file=sys.stderr)
    return 1


def _label(config: LabelConfig, cloud: CloudNodeConfig, stop: StopSignal,
           stack: ExitStack) -> int:
    if config.out.exists() and not config.out.with_suffix(REPLIES[0]).exists():
        raise _taken(config.out)
    query, recording = config.query, config.recording.with_topic()
    rate_hz = config.rate_hz or 1 / (query.cloud_period_s or 1.0)
    found = choose(recording, query, rate_hz, cloud.cut_below, stop)
    picture = _first_picture(recording, found, cloud)
    asked = {name: Asked(query, server, cloud, config.concurrency or cloud.max_in_flight,
                         config.most) for name, server in config.models.items()}
    chosen = _affordable(config, found, [one.estimate(len(picture.jpeg))
                                         for one in asked.values()])
    opinions = []
    for (name, one), suffix in zip(asked.items(), REPLIES):
        replies = Replies(config.out.with_suffix(suffix),
                          _identity(config, one, chosen, picture) | {'model': name})
        stack.callback(replies.close)
        opinions.append(Opinion(name, one, replies, Outcome()))
    made = _made(opinions, recording, chosen)
    if config.out.exists() and _lines(config.out) != [label_line(one) for one in made]:
        raise _taken(config.out)
    _announce_frames(config, recording, found, chosen)
    left = [(opinion, len(chosen.keyframes) - len(opinion.replies.by_number))
            for opinion in opinions]
    for opinion, n in left:
        _announce(opinion, n, len(picture.jpeg))
    price = sum(n * opinion.asked.estimate(len(picture.jpeg)).money for opinion, n in left)
    sys.stdout.flush()
    if not config.yes and (price or sum(n for _, n in left) > ASK_ABOVE):
        _confirm(stop)
    for opinion in opinions:
        _ask(config, opinion, recording, chosen, stop)
    return _finish(config, opinions, recording, chosen)


def _first_picture(recording: Recording, found: Chosen, cloud: CloudNodeConfig
                   ) -> EncodedKeyframe:
    """Return the first keyframe that can be sent, as it is sent."""
    encoder, why = KeyframeEncoder(cloud), ''
    for _, frame in frames_at(recording, found.keyframes):
        try:
            return encoder.encode(frame.jpeg, frame.rgb)
        except ValueError as error:
            why = why or str(error)
    raise LabelError(f'{recording.path}: none of {len(found.keyframes)} keyframes can be sent: '
                     f'{why}')


def _affordable(config: LabelConfig, found: Chosen, costs: list[Cost]) -> Chosen:
    """Return as many of the keyframes as the budget will do for, from the whole length."""
    most = config.requests or len(found.keyframes)
    for cost in costs:
        for name in NAMES:
            limit, each = getattr(config.most, name), getattr(cost, name)
            if limit == math.inf:
                continue
            if not each:
                raise LabelError(f'--budget is of {name}, and a request costs none; set '
                                 'price_input, price_output or price_request of node cloud')
            most = min(most, int(limit / each))
    if not most:
        raise LabelError('--budget does not do for one request; raise it')
    return found.evenly(most)


def _identity(config: LabelConfig, asked: Asked, chosen: Chosen, picture: EncodedKeyframe
              ) -> dict[str, JsonValue]:
    """Return all that replies depend on."""
    server = asked.server.config
    return {
        'recording': config.recording.path.name,
        'keyframes': f'{len(chosen.keyframes)} of {chosen.frames} frames, '
                     + _digest(repr(chosen.keyframes).encode()),
        'picture': _digest(picture.jpeg),
        'question': ask_text(asked.query, server, server.structured_output),
        'parameters': {'system_prompt': server.system_prompt, 'max_tokens': server.max_tokens,
                       'temperature': server.temperature, 'extra_body': server.extra_body}}


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _made(opinions: list[Opinion], recording: Recording, chosen: Chosen) -> list[Label]:
    """Return the labels that replies make."""
    first, *others = (one.said() for one in opinions)
    return labels(chosen.keyframes, first, others[0] if others else {},
                  [file.name for file in recording.files()])


def _taken(out: Path) -> LabelError:
    return LabelError(f'{out} exists, and is not what replies beside it make; name another --out, '
                      'or move it away: replies that are kept are not asked for again')


def _lines(path: Path) -> list[str]:
    """Return the lines of a label file, without its first, which is no label."""
    return path.read_text(encoding='utf-8', errors='replace').splitlines()[1:]


# Asking

def _ask(config: LabelConfig, one: Opinion, recording: Recording, chosen: Chosen,
         stop: StopSignal) -> None:
    """Ask a model about the keyframes that it has not replied about."""
    left = [k for k in chosen.keyframes if k.number not in one.replies.by_number]
    asking = Asking(one.asked, one.replies, one.outcome, stop)
    with progress('keyframes', len(left), config.quiet, LINES_S) as done:
        asking.run(frames_at(recording, left, stop), done)


def _confirm(stop: StopSignal) -> None:
    """Ask a person at a terminal whether to go on; a script has decided."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return
    print('go on? [y/N] ', end='', flush=True)
    while not select.select([sys.stdin], [], [], 0.2)[0]:
        if stop():
            raise Stopped
    if sys.stdin.readline().strip().lower() not in ('y', 'yes'):
        raise LabelError('nothing was asked; --budget N asks less, --yes asks no question')


# What the user sees

def _announce_frames(config: LabelConfig, recording: Recording, found: Chosen,
                     chosen: Chosen) -> None:
    rate_hz = config.rate_hz or 1 / (config.query.cloud_period_s or 1.0)
    early = f', {found.cuts} times earlier: the scene changed' if found.cuts else ''
    print(printable(
        f'{recording.path}{f" {recording.topic}" * bool(recording.topic)}: {found.frames} frames '
        f'in {found.duration_s:.1f} s; {len(found.keyframes)} keyframes, one in '
        f'{1 / rate_hz:.3g} s{early}'))
    if len(chosen.keyframes) < len(found.keyframes):
        print(f'the budget does for {len(chosen.keyframes)} of them, taken evenly')
    if found.cut_off:
        print(printable(f'the recording is cut off: {found.cut_off}'))


def _announce(one: Opinion, n: int, jpeg_bytes: int) -> None:
    """Say what is going to be asked, and what it will take."""
    kept = one.replies.by_number
    note = note_on(one.name)
    if note:
        print(f'note: {note}')
    if one.asked.config.fallbacks:
        print(f'note: fallbacks ({", ".join(one.asked.config.fallbacks)}) are not asked: the '
              'label file names one model')
    if kept:
        print(f'going on with {one.replies.path}: {len(kept)} replies are there already')
    cost = one.asked.estimate(jpeg_bytes)
    usual_s = statistics.median(r.took_s for r in kept.values()) if kept else USUAL_S
    price = f'{n * cost.money:.2f} by the prices set' if cost.money else \
        'cost unknown: no price_input, price_output or price_request is set'
    print(printable(
        f'{n} requests to {one.name} at {one.asked.server.config.base_url}, '
        f'{one.asked.concurrency} at once: about {n * cost.bytes / 1e6:.1f} MB, '
        f'{n * cost.tokens:.0f} tokens at most, '
        f'{n * usual_s / one.asked.concurrency / 60:.1f} min at {usual_s:.2g} s each; {price}'))


def _finish(config: LabelConfig, opinions: list[Opinion], recording: Recording,
            chosen: Chosen) -> int:
    """Write the label file and tell what is in it."""
    made = _made(opinions, recording, chosen)
    said = [one.said() for one in opinions]
    for one, mine in zip(opinions, said):
        print(f'{one.name}:' if len(opinions) > 1 else '')
        for line in [*table(config.query, list(mine.values())), *_troubles(one)]:
            print(printable(line))
    if not made:
        raise LabelError(f'no label: no reply of {len(said[0])} can be used '
                         f'({reasons(list(said[0].values())) or "there was none"}); {USELESS}')
    if len(opinions) > 1:
        print('agreement of the two models:')
        print('\n'.join(agreement(config.query, *said)))
    write_labels(config.out, made, Header(
        recording=os.path.relpath(recording.path.resolve(), config.out.resolve().parent),
        kind=recording.kind, topic=recording.topic, query=config.query.id,
        labelled_by=opinions[0].name, second=opinions[1].name if len(opinions) > 1 else ''))
    print(printable(f'{config.out}: {len(made)} labels from {len(chosen.keyframes)} keyframes'))
    return 0


def _troubles(one: Opinion) -> list[str]:
    """Return what has no reply, and why."""
    lines, outcome = [], one.outcome
    if outcome.late:
        lines.append(f'no reply: {sum(outcome.late.values())}: {counted(outcome.late)}; the same '
                     'command asks again')
    if outcome.bad_frames:
        lines.append(f'frames that cannot be sent: {len(outcome.bad_frames)}, the first at '
                     f'{outcome.bad_frames[0]}')
    if outcome.unasked:
        lines.append(f'not asked, the budget being spent: {outcome.unasked}')
    return lines
