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
"""`spotvlm label`: labels of a recording from what a cloud model says about its keyframes."""

from __future__ import annotations

import argparse
from dataclasses import replace
import math
from pathlib import Path
import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..cloud.client import CloudServer
    from ..config.nodes import CloudNodeConfig
    from ..config.profiles import Profile
    from ..labels.labelling import LabelConfig
    from ..method.facts import Query

HELP = 'label a recording by asking the cloud about its keyframes'
EXAMPLE = 'spotvlm label driving --bag drive --out drive.jsonl --cloud-url URL --cloud-model NAME'
UNITS = {'': 'requests', 'requests': 'requests', 'tokens': 'tokens', 'money': 'money',
         'mb': 'bytes'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument('profile', help='driving, hri, or the path of a params file')
    what = parser.add_argument_group('recording').add_mutually_exclusive_group(required=True)
    what.add_argument('--bag', type=Path, metavar='DIR',
                      help='rosbag2 (mcap or sqlite3) or ROS 1 bag')
    what.add_argument('--video', type=Path, metavar='FILE', help='video file')
    what.add_argument('--images', type=Path, metavar='DIR',
                      help='folder of images, in the order of their names')
    what.add_argument('--from', dest='source', nargs=2, metavar=('FORMAT', 'PATH'),
                      help='ask nobody, take exact labels: coco, yolo, mot or cvat PATH (with '
                      '--rule) or stills PATH are copied into folder --out; mini '
                      'CONDITION:SEED:SECONDS draws a drive of the miniature world there')
    parser.add_argument('--rule', type=Path, metavar='FILE', help='of --from: how boxes become '
                        'facts, or what the folders of stills are (docs/real.md)')
    parser.add_argument('--topic', default='', help='image topic of the bag (default: the only '
                        'one)')
    parser.add_argument('--fps', type=_positive, default=10.0, metavar='HZ',
                        help='of --images (default 10)')
    parser.add_argument('--out', type=Path, required=True, metavar='FILE',
                        help='label file to write; replies are kept beside it, and a run that '
                        'was interrupted goes on with them')
    cloud = parser.add_argument_group('cloud')
    cloud.add_argument('--cloud-url', default='', metavar='URL',
                       help='OpenAI-compatible server (default: base_url of the profile)')
    cloud.add_argument('--cloud-model', default='', metavar='NAME',
                       help='model to ask there (default: model of the profile)')
    cloud.add_argument('--second-url', default='', metavar='URL',
                       help='server of another model, whose disagreement is marked; its key: '
                       'SPOTVLM_API_KEY_SECOND')
    cloud.add_argument('--second-model', default='', metavar='NAME', help='that model')
    cloud.add_argument('--query', default='', metavar='ID',
                       help='query of the profile to ask (default: the first of format facts)')
    cloud.add_argument('--rate', type=_positive, default=0.0, metavar='HZ',
                       help='keyframes a second (default: as cloud_period_s of the query says); '
                       'one comes earlier where the scene changes (cut_below of node cloud)')
    cloud.add_argument('--budget', type=_budget, default=('requests', 0.0), metavar='N[UNIT]',
                       help='ask each model for no more: 200 requests, or with a unit 5money, '
                       '100000tokens, 50MB; keyframes are taken evenly')
    cloud.add_argument('--concurrency', type=int, default=0, metavar='N', choices=range(1, 65),
                       help='requests under way at once (default: max_in_flight of the profile)')
    cloud.add_argument('--params-file', action='append', type=Path, default=[], metavar='FILE',
                       help='laid over the profile; may be repeated')
    cloud.add_argument('-p', '--param', action='append', default=[], metavar='NODE.NAME:=VALUE',
                       help='one parameter, as in spotvlm run')
    cloud.add_argument('--yes', action='store_true', help='ask no question at a terminal')
    cloud.add_argument('--quiet', action='store_true', help='no progress')


def execute(arguments: argparse.Namespace) -> int:
    """Label the recording and return the exit code."""
    from ..system.signals import StopSignal
    stop = StopSignal()  # before the slow imports
    from ..config.profiles import load_profile
    try:
        profile = load_profile(arguments.profile, arguments.params_file).with_values(
            arguments.param)
        query = _query(profile, arguments.query, arguments.profile)
        if arguments.source:
            return _exact(arguments, profile, query)
        from ..labels.labelling import label
        config = _config(arguments, profile.cloud, query)
        code = label(config, profile.cloud, stop)
    except ImportError as error:
        print(f'error: {error}; run make setup, and see spotvlm doctor', file=sys.stderr)
        return 1
    except ValueError as error:    # of parameters and arguments
        print(f'error: {error}', file=sys.stderr)
        return 2
    stop.ignore()
    return code


def _config(arguments: argparse.Namespace, cloud: CloudNodeConfig, query: Query) -> LabelConfig:
    from ..cloud.budget import Cost
    from ..labels.keyframes import Recording
    from ..labels.labelling import LabelConfig
    unit, most = arguments.budget
    bounds = {name: math.inf for name in ('bytes', 'tokens', 'money')}
    if unit != 'requests':
        bounds[unit] = most
    recording = Recording('bag', arguments.bag, arguments.topic) if arguments.bag else \
        Recording('video', arguments.video) if arguments.video else \
        Recording('images', arguments.images, fps=arguments.fps)
    if arguments.topic and not arguments.bag:
        raise ValueError('--topic is of a bag; leave it out')
    out = arguments.out / 'labels.jsonl' if arguments.out.is_dir() else arguments.out
    return LabelConfig(
        recording, out, query, _models(arguments, cloud), arguments.rate,
        int(most) if unit == 'requests' else 0, Cost(**bounds), arguments.concurrency or 0,
        arguments.yes, arguments.quiet)


def _models(arguments: argparse.Namespace, cloud: CloudNodeConfig) -> dict[str, CloudServer]:
    """Return the models to ask, by name."""
    from ..cloud.client import cloud_server
    url, model = arguments.cloud_url or cloud.base_url, arguments.cloud_model or cloud.model
    if not url:
        raise ValueError('no server is named; give --cloud-url and --cloud-model (spotvlm serve '
                         'starts one on this machine)')
    if arguments.cloud_url and not arguments.cloud_model:
        raise ValueError('--cloud-model is missing; name the model to ask at --cloud-url')
    if bool(arguments.second_url) != bool(arguments.second_model):
        raise ValueError('--second-url and --second-model go together; give both, or none')
    models = {model: cloud_server(replace(cloud, base_url=url, model=model))}
    if arguments.second_url:
        if arguments.second_model == model:
            raise ValueError('--second-model is --cloud-model; name another one')
        models[arguments.second_model] = cloud_server(replace(
            cloud, base_url=arguments.second_url, model=arguments.second_model,
            api_key_file='', reply_form=''), 'second')
    return models


def _query(profile: Profile, name: str, where: str) -> Query:
    """Return the query to label for."""
    queries = {q.id: q for q in profile.queries()}
    if name and name not in queries:
        raise ValueError(f'--query: {where} has no query {name}; use one of '
                         f'{", ".join(queries)}')
    query = queries[name] if name else next(
        (q for q in queries.values() if q.format == 'facts'), None)
    if query is None or query.format == 'text':
        raise ValueError(f'{where} has no query of format facts' * (query is None)
                         + f'query {name} has no choices' * (query is not None)
                         + '; labels need keys and their choices: describe them in a params '
                         'file, docs/queries.md')
    return query


def _exact(arguments: argparse.Namespace, profile: Profile, query: Query) -> int:
    """Write exact labels, of data that has them."""
    from ..labels.drawn import draw
    from ..labels.importers import import_labels
    kind, what = arguments.source
    if kind != 'mini':
        for folder in import_labels(kind, Path(what), arguments.rule, arguments.out, query):
            print(f'{folder}: frames with labels')
        return 0
    made = draw(profile.camera.world, what, query, arguments.out)
    print(f'{arguments.out}: {made} frames with labels')
    return 0


def _positive(text: str) -> float:
    """Read a rate."""
    value = float(text)
    if not 0.0 < value <= 1000.0:
        raise argparse.ArgumentTypeError(f'{text} is no rate; give a number above 0 [Hz]')
    return value


def _budget(text: str) -> tuple[str, float]:
    """Read a number with a unit."""
    found = re.fullmatch(r'(\d+(?:\.\d+)?)\s*([A-Za-z]*)', text.strip())
    if found is None or found[2].lower() not in UNITS or not float(found[1]):
        raise argparse.ArgumentTypeError(f'{text!r} is no budget; give 200 (requests), 5money, '
                                         '100000tokens or 50MB')
    unit, number = UNITS[found[2].lower()], float(found[1])
    if unit == 'requests' and number % 1:
        raise argparse.ArgumentTypeError(f'{text!r}: half a request cannot be made')
    return unit, number * (1e6 if unit == 'bytes' else 1)
