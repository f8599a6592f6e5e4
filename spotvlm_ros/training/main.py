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
"""Teaches an edge checkpoint the task of label files (`spotvlm train --labels`)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import math
import os
from pathlib import Path
import sys

OTHER = ('example: spotvlm train --labels drive.jsonl --out out/taught. Without --labels, spotvlm '
         'train trains the two miniature models from scratch on their rendered worlds; its '
         'arguments follow.')


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line with --labels."""
    parser = argparse.ArgumentParser(prog='spotvlm train', description=__doc__, epilog=OTHER)
    add = parser.add_argument
    add('--labels', nargs='+', type=Path, required=True, metavar='PATH',
        help='label files, folders with one, or folders of such folders')
    add('--profile', nargs='+', default=['driving'],
        help='profiles, by name or path; labels belong to their first query that takes them')
    add('--start', default='spot-mini-edge', help='checkpoint to start from, by name or folder')
    add('--out', type=Path, default=Path('out/taught'), help='folder to write')
    add('--resume', action='store_true', help='go on with what is in --out')
    add('--validation', nargs='+', default=['0.15'], metavar='NAME',
        help='sequences to validate on, by name, or a share: the end of each')
    cloud = parser.add_argument_group('the late cloud, simulated from labels')
    cloud.add_argument('--delays', default='', metavar='TRACE|RECORDING',
                       help="a trace of spotvlm bench such as 'jitter 2 s', or a folder of "
                            'spotvlm run --record whose measured delays are drawn from')
    cloud.add_argument('--delay-median-s', type=float, default=2.0, help='without --delays')
    cloud.add_argument('--stills', action='store_true',
                       help='labelled pictures are in no order: what the cloud said before is '
                            'made up, the same for some 8 s and then another value')
    cloud.add_argument('--error-rate', type=float, default=0.05,
                       help='share of its facts that are wrong, and share that is missing')
    _add_variety(parser.add_argument_group('variety'))
    what = parser.add_argument_group('what is trained')
    what.add_argument('--lora', action='store_true', help='adapters, merged in the end')
    what.add_argument('--freeze', choices=('vision', 'none'), default='none')
    what.add_argument('--size', type=int, default=0, choices=(0, 48, 64, 96),
                      help='side of a view of a miniature checkpoint [pixels]; 0: as it is')
    _add_learning(parser.add_argument_group('learning'))
    add('--licence', default='', help='of the weights, for the model card')
    add('--score', type=int, default=200, help='validation frames answered for the model card')
    return parser


def _add_variety(variety: argparse._ArgumentGroup) -> None:
    variety.add_argument('--paste', nargs='*', metavar='KEY',
                         help='keys whose labelled things are cut out and pasted into other '
                              'frames; default: the key with regions if there is one only')
    variety.add_argument('--paste-rule', type=Path, metavar='FILE',
                         help='rule file of spotvlm label with a key of side: what it is about is '
                              'cut out and comes into other frames, to be counted and found there')
    variety.add_argument('--paste-share', type=float, default=0.5, help='share of frames')
    variety.add_argument('--balance', type=float, default=0.5,
                         help='how much more often rare values are shown than they come: 0 not '
                              'at all, 1 until all come equally often')
    variety.add_argument('--mirror', nargs='*', metavar='VALUE:VALUE',
                         help='mirror half of the frames, where left and right do not matter; '
                              'values that change places with it, such as left:right')
    variety.add_argument('--vary', type=float, default=1.0,
                         help='how much frames are turned, moved and zoomed; 0 where answers '
                              'depend on the exact place')
    variety.add_argument('--rehearse', type=float, default=0.0, metavar='SHARE',
                         help="share of frames from the miniature's rendered worlds, so that it "
                              'does not forget them')
    variety.add_argument('--hands', type=Path, help='hand photographs for those worlds')


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser()
    args = parser.parse_args(argv)
    _check(parser, args)
    return args


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with a message where a number cannot be."""
    for name in ('frames', 'first', 'steps', 'batch', 'rate', 'limit', 'patience', 'save_s',
                 'workers', 'score', 'delay_median_s'):
        if not getattr(args, name) > 0:
            parser.error(f'--{name.replace("_", "-")} {getattr(args, name)}: give a number '
                         'above 0')
    for name in ('error_rate', 'paste_share', 'rehearse'):
        if not 0.0 <= getattr(args, name) < 1.0:
            parser.error(f'--{name.replace("_", "-")} {getattr(args, name)}: give a share, 0 or '
                         'more and below 1')
    if not 0.0 <= args.balance <= 1.0:
        parser.error(f'--balance {args.balance}: give a number from 0 to 1')
    for pair in args.mirror or ():
        if not all(pair.partition(':')):
            parser.error(f'--mirror {pair}: give two values with a colon, such as left:right')
    if not 0.0 <= args.vary <= 3.0:
        parser.error(f'--vary {args.vary}: give a number from 0 to 3')


def _add_learning(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add('--frames', type=int, default=60_000, help='samples made; then they are seen again')
    add('--first', type=int, default=4000, help='begin when so many samples are ready')
    add('--steps', type=int, default=4000)
    add('--batch', type=int, default=256)
    add('--rate', type=float, default=6e-4, help='peak learning rate')
    add('--limit', type=float, default=math.inf, metavar='SECONDS')
    add('--patience', type=int, default=12, help='validations without a better one, then stop')
    add('--save-s', type=float, default=60.0, help='seconds between saved states')
    add('--device', default='', choices=('', 'cuda', 'cpu'), help='default: cuda if there is one')
    add('--compile', action='store_true', help='use torch.compile')
    add('--workers', type=int, default=max(1, (os.cpu_count() or 2) - 1),
        help='processes that make samples')
    add('--seed', type=int, default=1)


def main(argv: Sequence[str] | None = None) -> int:
    """Train on labels where there are any, or the miniature on its worlds."""
    given = list(sys.argv[1:] if argv is None else argv)
    labels = any(a.split('=')[0] == '--labels' for a in given)
    if not labels:
        if {'-h', '--help'} & set(given):
            try:
                arguments(['--help'])
            except SystemExit:
                print()
        from ..mini.training.train import main as train_miniature
        return train_miniature(given)
    args = arguments(given)
    from .teach import teach
    try:
        teach(args)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
