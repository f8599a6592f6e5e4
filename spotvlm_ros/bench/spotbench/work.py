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
"""Episodes spread over processes of one thread each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed, Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
import multiprocessing
from pathlib import Path
from typing import TypeVar

from .cache import Cache, code_hash, model_hash
from .delays import HEADLINE
from .latencies import Latencies
from .models import CachedCloud, CachedEdge, LocalCloud, PackedAnswer, Reply
from .replay import Replay, RunScope
from .seeds import Episode, SETS
from .streams import Sampling, WorldStream
from .systems import Inputs
from .tally import Tally
from ...config.nodes import EdgeConfig
from ...edge.model import EdgeModel
from ...frames.pixels import Image
from ...method.facts import Context, Query
from ...method.guard import ODDS, OFF
from ...mini.hri.hands import HandBank
from ...mini.worlds import make_world, TRAIN_SEEDS
from ...system.processes import exit_with_parent

T = TypeVar('T')
MAJORITY_EPISODES, MAJORITY_FRAMES = 60, 8
_setups: list[Setup] = []     # of this process: the last counts


@dataclass(frozen=True)
class Setup:
    """What every process needs to know."""

    edge: Path
    cloud: Path
    hands: Path | None
    cache: Path | None
    sampling: Sampling
    latencies: Latencies
    odds: float = ODDS      # of the guard


@dataclass
class Result:
    """What came of one episode."""

    episode: Episode
    tally: Tally
    contexts: Mapping[int, Context] = field(default_factory=dict)   # of the full method


def begin(setup: Setup) -> None:
    """Take the setup as that of this process, which computes in one thread from now on."""
    import cv2
    import torch
    import transformers
    exit_with_parent()
    _setups.append(setup)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    transformers.utils.logging.disable_progress_bar()
    for load in (edge_model, cloud_model, hand_bank, hashes):
        load.cache_clear()


def _setup() -> Setup:
    return _setups[-1]


@cache
def edge_model() -> EdgeModel:
    """Return the edge model, loaded when first needed."""
    return EdgeModel.load(EdgeConfig(model=str(_setup().edge), guard_odds=OFF))


@cache
def cloud_model() -> LocalCloud:
    """Return the cloud model, loaded when first needed."""
    return LocalCloud(_setup().cloud)


@cache
def hand_bank() -> HandBank | None:
    """Return the photographs of hands, None without."""
    folder = _setup().hands
    return HandBank(folder) if folder is not None else None


@cache
def hashes() -> tuple[str, str]:
    """Return what answers of the edge and of the cloud depend on."""
    code = code_hash()
    return f'{model_hash(_setup().edge)}-{code}', f'{model_hash(_setup().cloud)}-{code}'


class _LazyCloud:
    """Loads the cloud model only if something is asked that is not known yet."""

    def replies(self, query: Query, images: Sequence[Image]) -> list[Reply | None]:
        return cloud_model().replies(query, images)


class OpenEpisode:
    """An episode, with the answers that are kept of the edge and of the cloud."""

    def __init__(self, episode: Episode) -> None:
        """Read what is kept."""
        self.stream = WorldStream(episode, _setup().sampling, hand_bank())
        name = f'{episode.world}-{episode.condition}-{episode.seed}-{episode.first}'
        edge, cloud = hashes()
        self._edge: Cache[PackedAnswer] = Cache(_setup().cache, f'edge-{edge}/{name}')
        self._cloud: Cache[str] = Cache(_setup().cache, f'cloud-{cloud}/{name}')

    def replay(self, majority: Mapping[str, str] | None = None) -> Replay:
        """Return the replay of the episode."""
        setup = _setup()
        edge = CachedEdge(edge_model(), self.stream, self._edge, setup.odds)
        cloud = CachedCloud(_LazyCloud(), self.stream, self._cloud)
        return Replay(Inputs(self.stream, edge, cloud, setup.latencies), setup.sampling, majority)

    def save(self) -> None:
        """Keep the answers of both models."""
        self._edge.save()
        self._cloud.save()


def replay(episode: Episode, scope: RunScope, majority: Mapping[str, str]) -> Result:
    """Run one episode through everything but what needs another episode."""
    opened = OpenEpisode(episode)
    run = opened.replay(majority)
    run.run(scope)
    opened.save()
    return Result(episode, run.tally,
                  run.full[HEADLINE].contexts if HEADLINE in run.full else {})


def other_context(episode: Episode, contexts: Mapping[int, Context]) -> Result:
    """Run the control with the contexts of another episode."""
    opened = OpenEpisode(episode)
    run = opened.replay()
    run.other(contexts)
    opened.save()
    return Result(episode, run.tally)


def majority_values(name: str) -> dict[str, str]:
    """Return the commonest value per key in training episodes of a set's conditions."""
    world_name, conditions = SETS[name]
    counts: dict[str, Counter[str]] = {}
    for n in range(MAJORITY_EPISODES):
        world = make_world(world_name, TRAIN_SEEDS[50_000 + n], conditions[n % len(conditions)],
                           hand_bank())
        for k in range(MAJORITY_FRAMES):
            for fact in world.facts(300 + 200 * k, 0):
                counts.setdefault(fact.key, Counter())[fact.value] += 1
    return {key: max(sorted(c), key=lambda v: c[v]) for key, c in counts.items()}


class WorkerPool:
    """Worker processes; with one job everything runs in this process, which is easier to debug."""

    def __init__(self, setup: Setup, jobs: int) -> None:
        """Start the processes; each loads a model when it first needs it."""
        self._pool = None
        if jobs > 1:
            self._pool = ProcessPoolExecutor(jobs, multiprocessing.get_context('spawn'),
                                             initializer=begin, initargs=(setup,))
        else:
            begin(setup)

    def run(self, calls: Sequence[Callable[[], T]]) -> Iterator[tuple[int, T]]:
        """Yield the place and the result of each call, in the order in which they finish."""
        if self._pool is None:
            for i, call in enumerate(calls):
                yield i, call()
            return
        futures: dict[Future[T], int] = {self._pool.submit(call): i
                                         for i, call in enumerate(calls)}
        for future in as_completed(futures):
            yield futures[future], future.result()

    def close(self) -> None:
        """End the processes, whatever they are at."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
