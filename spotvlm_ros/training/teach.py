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
"""From label files to a checkpoint, step by step."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
import json
import os
import sys

import cv2
import numpy as np
import torch

from . import card
from .coach import Coach, STATE
from .context import SimulatedCloud
from .copy_paste import CopyPaste, cut_objects
from .delays import delays_of
from .learners import FamilyLearner, Learner, PlainLearner, SHARES
from .material import Clip, describe, open_all, split
from .pasting import gather, Patches
from .samples import absent_values, Example, LabelJob, Sampler, spread, Variety
from .student import add_adapters, freeze, open_student, room_for, Student
from .tracks import track_all
from ..labels.rules import read_rules
from ..mini.hri.hands import HandBank
from ..mini.models import EDGE
from ..mini.training.fit import fit, Mirror, Plan
from ..mini.training.rendering import PER_JOB, Rendering, Room, ROOMS, Store
from ..mini.training.train import meta_of

KEEP = ('labels', 'profile', 'start', 'lora', 'freeze', 'size', 'validation', 'seed', 'batch',
        'stills', 'steps')
BEGUN = 'training_begun.json'    # in --out until the training is finished: those arguments
STORED_BYTES = 6 << 30      # samples kept in memory, and on the GPU, at most
HELD_OUT = 480              # validation samples, at most
DRAWS = 4                   # of each validation frame, with answers of other ages, at most
HELD_OUT_SLOW = 24          # of the families that take one at a time
MEAN_S = 1.0                # beyond the horizon of delays: older answers are behind the newest


def teach(args: argparse.Namespace) -> None:
    """Train and write a checkpoint; raise ValueError or OSError with a remedy."""
    os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')   # of forked workers
    cv2.setNumThreads(1)  # workers are forked, and its threads do not live on in them
    device = _device(args.device)
    _check_out(args)
    training, tuning = split(open_all(args.labels, args.profile), args.validation)
    student = open_student(args.start, args.size)
    queries = {repr(c.query): c.query for c in [*training, *tuning]}
    room = room_for(student, queries.values(), ROOMS[EDGE.name] if args.rehearse else None)
    if args.rehearse:
        extra = 2 * (room.side // EDGE.patch // EDGE.shuffle) ** 2 - 2 * EDGE.tokens_per_image
        room = replace(room, length=room.length + max(0, extra))
    samplers = _samplers(args, training, tuning)
    print(f'training: {describe(training)}\nvalidation: {describe(tuning)}', flush=True)
    freeze(student, args.freeze == 'vision')
    if args.lora:
        add_adapters(student, args.freeze == 'vision')
    torch.manual_seed(args.seed)
    plan = Plan(args.batch, args.steps, args.rate, args.limit, 100, args.seed, args.compile)
    if student.is_plain:
        stores = _stores(args, room, len(samplers[1].frames))
        jobs = [LabelJob(student.edge, samplers[0], stores[0], args.seed, False, args.rehearse,
                         HandBank(args.hands) if args.hands else None),
                LabelJob(student.edge, samplers[1], stores[1], args.seed + 1, True)]
        renderings = [Rendering(job, len(job.store.start), workers) for job, workers in zip(
            jobs, (args.workers, min(2, args.workers)))]  # fork: before CUDA starts
        try:
            renderings[1].wait(len(stores[1].start))
            renderings[0].wait(min(len(stores[0].start), max(args.batch, args.first)))
            train_mirror, held_out = (
                Mirror(store, rendering, torch.device(device), SHARES)
                for store, rendering in zip(stores, renderings))
            learner: Learner = PlainLearner(student, (train_mirror, held_out), plan)
            _run(args, student, learner, samplers, plan)
        finally:
            for rendering in renderings:
                rendering.stop()
    elif args.rehearse:
        raise ValueError(f'--rehearse is for checkpoints of the family of the miniature, '
                         f'{args.start} is of another; leave it out')
    else:
        examples = _held_out(samplers[1], HELD_OUT_SLOW, args.seed)
        _run(args, student, FamilyLearner(student, samplers[0], examples, plan, device),
             samplers, plan)


def _device(name: str) -> str:
    found = torch.cuda.is_available()
    if name == 'cuda' and not found:
        raise ValueError(f'--device cuda, but torch {torch.__version__} finds no GPU; use '
                         '--device cpu, or install a CUDA build of torch')
    return name or ('cuda' if found else 'cpu')


def _kept(args: argparse.Namespace) -> dict[str, str]:
    """Return the arguments that a resumed training must have, too."""
    return {name: _plain(getattr(args, name)) for name in KEEP}


def _check_out(args: argparse.Namespace) -> None:
    """Raise ValueError where the folder to write is in use, or of another training."""
    out, note = args.out, args.out / BEGUN
    if out.is_file():
        raise ValueError(f'--out {out} is a file; name a folder')
    used = out.is_dir() and any(out.iterdir())
    if used and not args.resume:
        raise ValueError(f'--out {out} is in use already; name another folder, or go on with '
                         '--resume')
    if used and not note.is_file():
        raise ValueError(f'--resume: {out} holds no training that was cut off' + (
            ', it is finished' if (out / 'config.json').is_file() else '')
            + '; name another folder, without --resume')
    begun = json.loads(note.read_text()) if used else _kept(args)
    for name, value in _kept(args).items():
        if begun.get(name) != value:
            raise ValueError(f'--resume: {out} was begun with --{name} {begun.get(name)}, not '
                             f'{value}; give the same, or name another --out')
    out.mkdir(parents=True, exist_ok=True)


def _plain(value: object) -> str:
    return ' '.join(map(str, value)) if isinstance(value, list) else str(value)


def _samplers(args: argparse.Namespace, training: Sequence[Clip], tuning: Sequence[Clip],
              ) -> tuple[Sampler, Sampler]:
    """Return what draws samples to train on, and what draws those to validate on."""
    delays = delays_of(args.delays, args.delay_median_s)
    unique = [] if args.stills else list(
        {id(c.sequence): c.sequence for c in [*training, *tuning]}.values())
    tracks = dict(zip(map(id, unique), track_all(unique, delays.horizon_s + MEAN_S,
                                                 args.workers)))
    clips = [[replace(clip, tracks=tracks.get(id(clip.sequence))) for clip in some]
             for some in (training, tuning)]
    cloud = SimulatedCloud(delays, args.error_rate, args.error_rate, absent_values(training))
    variety = Variety(_patches(args, training), args.paste_share, args.vary, args.balance,
                      _copy_paste(args, clips[0]), _mirrored(args, training))
    return Sampler(clips[0], cloud, variety), Sampler(clips[1], cloud, Variety())


def _mirrored(args: argparse.Namespace, training: Sequence[Clip]) -> dict[str, str] | None:
    """Return which values change places when a frame is mirrored, None where none is."""
    if args.mirror is None:
        return None
    known = {v for clip in training for values in clip.query.choices.values() for v in values}
    pairs = [pair.split(':', 1) for pair in args.mirror]
    for value in (value for pair in pairs for value in pair):
        if value not in known:
            raise ValueError(f'--mirror {value}: no key has such a value; name two of '
                             f'{", ".join(sorted(known))}')
    return {a: b for one, other in pairs for a, b in ((one, other), (other, one))}


def _patches(args: argparse.Namespace, training: Sequence[Clip]) -> list[Patches]:
    """Cut out things of the keys that the user names, or of the one that has regions."""
    boxed = {key for c in training for s in c.frames for key in c.labels[s].regions}
    keys = args.paste
    if keys is None:
        keys = sorted(boxed) if len(boxed) == 1 else []
        if len(boxed) > 1:
            print(f'nothing is pasted: {", ".join(sorted(boxed))} have regions; name those whose '
                  'value does not depend on place or number with --paste')
    for key in keys:
        if key not in boxed:
            raise ValueError(f'--paste {key}: no label to train on has a region of that key; ' + (
                f'use {", ".join(sorted(boxed))}' if boxed else 'leave --paste out'))
    rng = np.random.default_rng(args.seed)
    found = [gather(training, key, rng, args.balance) for key in keys]
    return [patches for patches in found if patches is not None]


def _copy_paste(args: argparse.Namespace, training: Sequence[Clip]) -> CopyPaste | None:
    """Cut out what the rule file is about, None without one."""
    if args.paste_rule is None:
        return None
    if args.stills:
        raise ValueError('--paste-rule: pasted objects have a past, and --stills have none; leave '
                         'one out')
    rules = read_rules(args.paste_rule, training[0].query)
    found = cut_objects(training, rules, np.random.default_rng(args.seed))
    if found is None:
        raise ValueError(f'--paste-rule {args.paste_rule}: nothing can be cut out; it needs a key '
                         'of side, and labels to train on with regions of that')
    print(f'{len(found.pixels)} things are cut out to come into other frames')
    return found


def _stores(args: argparse.Namespace, room: Room, frames: int) -> tuple[Store, Store]:
    one = room.pictures * room.side ** 2 * 3 + 8 * room.length
    n = min(args.frames, STORED_BYTES // one)
    held_out = min(HELD_OUT, -(-DRAWS * frames // PER_JOB) * PER_JOB)
    return Store(room, max(1, n // PER_JOB) * PER_JOB), Store(room, held_out)


def _held_out(sampler: Sampler, most: int, seed: int) -> list[Example]:
    """Return validation samples spread over their frames."""
    places = spread(len(sampler.frames), min(len(sampler.frames), most))
    return [sampler.plain(*sampler.frames[place], np.random.default_rng([seed, place]))
            for place in places]


def _run(args: argparse.Namespace, student: Student, learner: Learner,
         samplers: tuple[Sampler, Sampler], plan: Plan) -> None:
    """Fit, save the best, score and describe it."""
    (args.out / BEGUN).write_text(json.dumps(_kept(args), indent=1) + '\n')
    coach = Coach(learner, plan, args.out, student.model, args.save_s, args.patience)
    begun = coach.resume() if args.resume else None
    try:
        log = fit(learner, plan, coach, begun)
    except KeyboardInterrupt:
        coach.interrupted()
        raise ValueError(f'interrupted; the same command with --resume goes on from {args.out}'
                         ) from None
    finally:
        coach.close()
    best = coach.load_best()
    note = f'The weights are those of step {best.step}' + (
        f': no better ones came in {coach.patience} validations.' if coach.stopped_early else '.')
    student.model.to('cpu').eval()
    meta = meta_of(student.model, str(args.start), argparse.Namespace(
        **{name: _plain(value) for name, value in vars(args).items()}
        | {'device': _device(args.device)}))
    student.save(args.out)
    examples = _held_out(samplers[1], args.score, args.seed)
    accuracy = card.score(args.out, examples)
    headers = [c.sequence.header for s in samplers for c, _ in s.frames]
    card.write(args.out, card.Report(
        args.out.name, student.name, describe(_clips(samplers[0])), describe(_clips(samplers[1])),
        sorted({h.licence for h in headers if h is not None and h.licence}), args.licence,
        samplers[0].cloud.delays.name, accuracy, len(examples), coach.curve, log,
        dict(meta), note))
    for name in (STATE, BEGUN):
        (args.out / name).unlink(missing_ok=True)
    print(f'{args.out}: right facts on {len(examples)} validation frames: ' + ', '.join(
        f'{name} {row["mean"]:.3f}' for name, row in accuracy.items()) + f'. {note}',
        flush=True)
    sys.stdout.flush()


def _clips(sampler: Sampler) -> list[Clip]:
    return list({id(clip): clip for clip, _ in sampler.frames}.values())
