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
from typing import TYPE_CHECKING, TypeVar

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

LENGTH = {EDGE.name: 224, CLOUD.name: 1024}  # longest sequence, visual tokens included
ANSWER = {EDGE.name: 48, CLOUD.name: 72}     # longest answer [tokens]
PICTURES = {EDGE.name: 3, CLOUD.name: CLOUD.images}  # stored per frame
PER_DRIVE = 40                               # frames taken from one drive
Scalar = TypeVar('Scalar', bound=np.generic)


def encode(tokenizer: PreTrainedTokenizerFast, shape: Shape, chat: Sequence[Message],
           answer: str) -> tuple[list[int], int]:
    """Return token ids of prompt, answer and end, and where the answer begins."""
    text = tokenizer.apply_chat_template(list(chat), chat_template=CHAT_TEMPLATE, tokenize=False,
                                         add_generation_prompt=True)
    head = tokenizer(expand_images(shape, text), add_special_tokens=False)['input_ids']
    tail = tokenizer(answer, add_special_tokens=False)['input_ids'] + [tokenizer.eos_token_id]
    if len(head) + len(tail) > LENGTH[shape.name] or len(tail) > ANSWER[shape.name]:
        raise ValueError(f'{len(head)} + {len(tail)} tokens do not fit into {shape.name}')
    return head + tail, len(head)


class Store:
    """
    Samples of one model in memory that forked workers share.

    Pictures (n x PICTURES x side x side x 3); token ids (n x variants x LENGTH), where the answer
    begins among them and how many there are. The edge model's have two variants, without and with
    context.
    """

    def __init__(self, shape: Shape, n: int) -> None:
        """Make room for n samples."""
        variants = 2 if shape is EDGE else 1
        self.shape = shape
        self.images = _shared((n, PICTURES[shape.name], shape.image, shape.image, 3), np.uint8)
        self.ids = _shared((n, variants, LENGTH[shape.name]), np.int16)
        self.start = _shared((n, variants), np.int16)
        self.length = _shared((n, variants), np.int16)

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

    def render_drive(self, number: int) -> None:
        """Render the frames of one drive into the stores."""
        rng = np.random.default_rng([self.seed, number])
        world = dataset.drive(number, self.hands, self.worlds)
        for i in range(number * PER_DRIVE, (number + 1) * PER_DRIVE):
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


_jobs: list[RenderJob] = []  # of a worker: the one it was forked with


def _start_worker(job: RenderJob) -> None:
    exit_with_parent()
    cv2.setNumThreads(1)   # the processes already fill the cores
    _jobs[:] = [job]


def _render_drive(number: int) -> None:
    _jobs[0].render_drive(number)


class Rendering:
    """Renders drives in other processes; training begins before the last one is ready."""

    def __init__(self, job: RenderJob, n: int, workers: int) -> None:
        """Start to render n frames. Workers are forked: the stores cannot travel by pickle."""
        self._pool = ProcessPoolExecutor(workers, mp.get_context('fork'), _start_worker, (job,))
        self._futures: list[Future[None]] = [
            self._pool.submit(_render_drive, k) for k in range(n // PER_DRIVE)]
        self._done = 0

    def ready(self) -> int:
        """Return how many samples, from the first, are complete; raise what a worker raised."""
        while self._done < len(self._futures) and self._futures[self._done].done():
            self._futures[self._done].result()
            self._done += 1
        return self._done * PER_DRIVE

    def wait(self, n: int) -> None:
        """Wait until n samples are ready."""
        begin = time.perf_counter()
        for future in self._futures[:-(-n // PER_DRIVE)]:
            future.result()
        print(f'rendered {self.ready()} frames in {time.perf_counter() - begin:.0f} s', flush=True)

    def stop(self) -> None:
        """Give up what is not rendered yet."""
        self._pool.shutdown(wait=True, cancel_futures=True)
