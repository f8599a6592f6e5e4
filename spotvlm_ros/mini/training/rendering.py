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
"""Renders training samples in other processes, into memory that they share with training."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
import mmap
import multiprocessing as mp
import time
from typing import Protocol, TYPE_CHECKING, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from . import dataset
from ..hri.hands import HandBank
from ..models import CHAT_TEMPLATE, CLOUD, cut, EDGE, expand_images, Shape
from ...method.prompt import Message
from ...system.processes import exit_with_parent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PER_JOB = 40      # samples that one call of a worker makes: frames taken from one drive
SILENT = -128     # the slot of a token of an answer that nobody knows: it is not learnt
Scalar = TypeVar('Scalar', bound=np.generic)


@dataclass(frozen=True)
class Room:
    """
    What one sample takes.

    An edge model's samples have two variants, without and with context, and three pictures: the
    whole, and the focus view of each variant.
    """

    pictures: int
    side: int       # of a picture [pixels]
    variants: int
    length: int     # longest sequence, visual tokens included
    answer: int     # longest answer [tokens]


ROOMS = {EDGE.name: Room(3, EDGE.image, 2, 224, 48),
         CLOUD.name: Room(CLOUD.images, CLOUD.image, 1, 1024, 72)}


def encode(tokenizer: PreTrainedTokenizerFast, shape: Shape, chat: Sequence[Message],
           answer: str) -> tuple[list[int], int]:
    """Return token ids of prompt, answer and end, and where the answer begins."""
    text = tokenizer.apply_chat_template(list(chat), chat_template=CHAT_TEMPLATE, tokenize=False,
                                         add_generation_prompt=True)
    head = tokenizer(expand_images(shape, text), add_special_tokens=False)['input_ids']
    tail = tokenizer(answer, add_special_tokens=False)['input_ids'] + [tokenizer.eos_token_id]
    room = ROOMS[shape.name]
    if len(head) + len(tail) > room.length or len(tail) > room.answer:
        raise ValueError(f'{len(head)} + {len(tail)} tokens do not fit into {shape.name}')
    return head + tail, len(head)


class Store:
    """
    Samples of one model in memory that forked workers share.

    Pictures (n x pictures x side x side x 3); token ids (n x variants x length), where the answer
    begins among them and how many there are; slots (n x answer): which fact a token of the answer
    is of, by its number, -1 for what is between them, or SILENT.
    """

    def __init__(self, room: Room, n: int) -> None:
        """Make room for n samples."""
        self.room = room
        self.images = _shared((n, room.pictures, room.side, room.side, 3), np.uint8)
        self.ids = _shared((n, room.variants, room.length), np.int32)
        self.start = _shared((n, room.variants), np.int16)
        self.length = _shared((n, room.variants), np.int16)
        self.slots = _shared((n, room.answer), np.int8)

    def put(self, i: int, variant: int, ids: list[int], start: int) -> None:
        """Store one token sequence."""
        self.ids[i, variant, :len(ids)] = ids
        self.start[i, variant], self.length[i, variant] = start, len(ids)


def _shared(shape: tuple[int, ...], dtype: type[Scalar]) -> npt.NDArray[Scalar]:
    buffer = mmap.mmap(-1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return np.frombuffer(buffer, dtype=dtype).reshape(shape)


@dataclass(frozen=True)
class RenderJob:
    """What to render, into which stores; edge and cloud are None where not wanted."""

    tokenizer: PreTrainedTokenizerFast
    hands: HandBank | None
    worlds: Sequence[str]
    seed: int
    edge: Store | None
    cloud: Store | None

    def render(self, number: int) -> None:
        """Render the frames of one drive into the stores."""
        rng = np.random.default_rng([self.seed, number])
        world = dataset.drive(number, self.hands, self.worlds)
        for i in range(number * PER_JOB, (number + 1) * PER_JOB):
            item = dataset.sample(world, int(rng.integers(dataset.FIRST, dataset.LAST)), rng)
            if self.edge is not None:
                whole, plain = dataset.edge_views(item, None)
                self.edge.images[i] = whole, plain, dataset.edge_views(item, item.context)[1]
                for variant, context in enumerate((None, item.context)):
                    self.edge.put(i, variant, *encode(self.tokenizer, EDGE,
                                                      *dataset.edge_chat(item, context)))
            if self.cloud is not None:
                self.cloud.images[i] = cut(CLOUD, item.frame)
                self.cloud.put(i, 0, *encode(self.tokenizer, CLOUD, *dataset.cloud_chat(item)))


class Job(Protocol):
    """What workers do, piece by piece."""

    def render(self, number: int) -> None:
        """Make the samples from number * PER_JOB on, PER_JOB of them."""


_jobs: list[Job] = []  # of a worker: the one it was forked with


def _start_worker(job: Job) -> None:
    exit_with_parent()
    cv2.setNumThreads(1)   # the processes already fill the cores
    _jobs[:] = [job]


def _render(number: int) -> None:
    _jobs[0].render(number)


class Rendering:
    """Makes samples in other processes; training begins before the last one is ready."""

    def __init__(self, job: Job, n: int, workers: int) -> None:
        """Start to make n samples. Workers are forked: the stores cannot travel by pickle."""
        self._pool = ProcessPoolExecutor(workers, mp.get_context('fork'), _start_worker, (job,))
        self._futures: list[Future[None]] = [
            self._pool.submit(_render, k) for k in range(n // PER_JOB)]
        self._done = 0

    def ready(self) -> int:
        """Return how many samples, from the first, are complete; raise what a worker raised."""
        while self._done < len(self._futures) and self._futures[self._done].done():
            self._futures[self._done].result()
            self._done += 1
        return self._done * PER_JOB

    def wait(self, n: int) -> None:
        """Wait until n samples are ready."""
        begin = time.perf_counter()
        for future in self._futures[:-(-n // PER_JOB)]:
            future.result()
        print(f'rendered {self.ready()} frames in {time.perf_counter() - begin:.0f} s', flush=True)

    def stop(self) -> None:
        """Give up what is not rendered yet."""
        self._pool.shutdown(wait=True, cancel_futures=True)
