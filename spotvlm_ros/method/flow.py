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
Carries regions from the cloud's frame to the present one, over buffered small grey frames.

Each step moves a region by sparse optical flow (pyramidal Lucas-Kanade) of corners inside it, of
which only those count that flow back to where they came from (forward-backward check, Kalal et
al., ICPR 2010) and that move like most of them do. A region with too few such corners is sought
as a whole nearby; where that fails, too, it moves with the camera; where that goes on for too long
it is lost, and a lost region is dropped rather than guessed.

Where it is known how the camera turned between two frames (`ego`), the earlier one is turned first
and flow finds the rest. What such a turn takes out of the picture is kept for a while: it may come
back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, NamedTuple, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from .appearance import Appearance, appearance_of, FLAT, Grey, similarity_of, thumbnail
from .ego import farthest_move, Matrix, rescaled, turned_points, turned_region
from .facts import NS, Region

Points = npt.NDArray[np.float32]  # n x 2, x and y [pixels of the grey frame]
Key = TypeVar('Key', bound=Hashable)  # by which a region is known
REACH_PX = 32                     # corners are looked for within this of where they were
OVERLAP = 0.25                    # less than this of a frame does not tell of a scene cut
TURN_PX = 5.0                     # a turn that moves no pixel farther is left to flow


@dataclass(frozen=True)
class FlowConfig:
    """How regions are carried. Pixels are those of the grey frame."""

    width: int = 640              # of the grey frames [pixels]
    corners: int = 16             # tracked per region, at most
    pad_px: float = 0.0           # corners are sought this far around a region, too
    back_px: float = 1.0          # a corner that flows back to farther away is not trusted
    min_corners: int = 3          # fewer trusted ones: seek the region as a whole
    search_px: int = 16           # where corners fail the region itself is sought this far around
    match: float = 0.8            # correlation at which it counts as found
    max_coasting_s: float = 5.0   # where that fails, too, it moves with the camera, this long
    spread_px: float = 1.0        # a corner farther from the median motion is not used
    prior_px: float = 4.0         # how strongly growth is drawn to none
    max_scale: float = 1.15       # growth of a region in one step
    window: int = 9               # of Lucas-Kanade [pixels]
    levels: int = 2               # of its pyramid
    history_s: float = 12.0       # of grey frames kept
    max_frames: int = 128         # kept, whatever the rate


@dataclass(frozen=True)
class Track:
    """A region [pixels of the camera frame] and the corners that carry it [of the grey frame]."""

    region: Region
    corners: Points = field(default_factory=lambda: np.empty((0, 2), np.float32))
    coasting_ns: int = 0          # for how long it has only moved with the camera
    first: Appearance | None = None  # in the cloud's frame
    away: bool = False            # the camera has turned away from it


def shrink(frame: npt.NDArray[np.uint8], config: FlowConfig, into: Grey | None = None) -> Grey:
    """
    Return a frame (height x width, or x 3 in RGB) as a grey one of at most that width.

    A copy, in ``into`` where that has the right size.
    """
    small = frame
    if frame.shape[1] > config.width:
        height = max(8, round(frame.shape[0] * config.width / frame.shape[1]))
        small = cv2.resize(frame, (config.width, height), interpolation=cv2.INTER_AREA)
    grey = (cv2.cvtColor(small, cv2.COLOR_RGB2GRAY, dst=into) if small.ndim == 3
            else cv2.copyTo(small, None, dst=into))
    return np.asarray(grey, dtype=np.uint8)


def step(before: Grey, after: Grey, tracks: Mapping[Key, Track], scale: float,
         elapsed_ns: int, config: FlowConfig) -> dict[Key, Track]:
    """
    Return the tracks one frame later, without those that are lost.

    `scale` is the width of the grey frame over that of the camera frame.
    """
    if not tracks:
        return {}
    corners = [_renewed(before, track, scale, config) for track in tracks.values()]
    there, trusted = _flow(before, after, np.concatenate(corners), config)
    camera: _Move | None = None
    result: dict[Key, Track] = {}
    at = 0
    for (key, track), before_px in zip(tracks.items(), corners):
        part = slice(at, at + len(before_px))
        at += len(before_px)
        move, same = _Move.fit(before_px, there[part], trusted[part], config.min_corners, config)
        coasting = 0
        if move is None:
            # A dark or plain picture does not tell how the camera moved: then it is taken to rest.
            camera = camera or _camera(before, after, config) or _Move(1.0, (0.0, 0.0))
            move = _matched(before, after, _scaled(track.region, scale), camera, config)
            if move is None:
                move, coasting = camera, track.coasting_ns + elapsed_ns
        if coasting > config.max_coasting_s * NS:
            continue
        carried = _scaled(move.apply(_scaled(track.region, scale)), 1 / scale)
        if not _centred_in(_scaled(carried, scale), after):
            continue  # it leaves the frame
        result[key] = Track(carried, there[part][same], coasting, track.first)
    return result


def turned(before: Grey, tracks: Mapping[Key, Track], scale: float, turn: Matrix,
           ) -> tuple[Grey, dict[Key, Track]]:
    """Return a grey frame and its tracks as the camera would have seen them, turned already."""
    height, width = before.shape
    picture = cv2.warpPerspective(before, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)
    result: dict[Key, Track] = {}
    for key, track in tracks.items():
        region = turned_region(_scaled(track.region, scale), turn)
        if region is None or abs(region.x) > 2 * width or abs(region.y) > 2 * width:
            continue  # too far to the side to come back soon
        corners = turned_points(track.corners, turn)
        inside = ((corners >= 0) & (corners < (width, height))).all(axis=1)
        away = not _centred_in(region, before)
        result[key] = replace(track, region=_scaled(region, 1 / scale), away=away,
                              corners=corners[inside & (not away)])
    return np.asarray(picture, dtype=np.uint8), result


def _renewed(grey: Grey, track: Track, scale: float, config: FlowConfig) -> Points:
    """
    Return a track's corners, with new ones from inside its region where too few are left.

    The old ones stay: they have proved to move with the thing, new ones may be background.
    """
    if len(track.corners) > config.corners // 2:
        return track.corners
    return np.concatenate([track.corners, _corners(grey, _scaled(track.region, scale), config)])


def _camera(before: Grey, after: Grey, config: FlowConfig) -> _Move | None:
    """Return the motion of most of the picture."""
    # At half the size: corners are sought in the whole picture.
    before, after = (np.ascontiguousarray(picture[::2, ::2]) for picture in (before, after))
    whole = Region(0, 0, before.shape[1], before.shape[0])
    points = _corners(before, whole, replace(config, corners=48, pad_px=0.0), spacing=16)
    there, trusted = _flow(before, after, points, config)
    move = _Move.fit(points, there, trusted, 4, config)[0]
    return None if move is None else _Move(move.growth, (2 * move.shift[0], 2 * move.shift[1]))


def _matched(before: Grey, after: Grey, region: Region, camera: _Move,
             config: FlowConfig) -> _Move | None:
    """
    Return the shift at which a region is found again near where the camera's motion puts it.

    For what is too small or too plain for corners, such as a lamp at night.
    """
    inside = Region(region.x - 2, region.y - 2, region.w + 4, region.h + 4).clipped(
        before.shape[1], before.shape[0])
    if inside is None:
        return None
    x0, y0, w, h = int(inside.x), int(inside.y), max(4, round(inside.w)), max(4, round(inside.h))
    patch = before[y0:y0 + h, x0:x0 + w]
    there = camera.apply(Region(x0, y0, w, h))
    u0, v0 = (max(0, round(a) - config.search_px) for a in (there.x, there.y))
    window = after[v0:v0 + h + 2 * config.search_px, u0:u0 + w + 2 * config.search_px]
    if (float(patch.std()) < FLAT or window.shape[0] < patch.shape[0]
            or window.shape[1] < patch.shape[1]):
        return None
    _, best, _, (u, v) = cv2.minMaxLoc(cv2.matchTemplate(window, patch, cv2.TM_CCOEFF_NORMED))
    if best < config.match:
        return None
    # The shift is that of the patch's corner; growth is the camera's, about the patch's centre.
    dx, dy = u0 + u - x0, v0 + v - y0
    g, cx, cy = camera.growth, x0 + w / 2, y0 + h / 2
    return _Move(g, (cx + dx - g * cx, cy + dy - g * cy))


def _similarity(before: Appearance, after: Appearance, turn: Matrix | None, width: int) -> float:
    """Return how alike thumbnails are in what both show after a turn; 1 where that is little."""
    if turn is None:
        return similarity_of(before, after)
    small = rescaled(turn, before.shape[1] / width)
    moved = cv2.warpPerspective(before, small, before.shape[::-1], borderValue=float('nan'))
    both = np.isfinite(moved)
    return similarity_of(moved[both], after[both]) if both.mean() > OVERLAP else 1.0


@dataclass(frozen=True)
class _Move:
    """Translation and growth about the origin: p -> growth * p + shift."""

    growth: float
    shift: tuple[float, float]

    @staticmethod
    def fit(before: Points, after: Points, trusted: npt.NDArray[np.bool_], least: int,
            config: FlowConfig) -> tuple[_Move | None, npt.NDArray[np.bool_]]:
        """Return the motion of most trusted points, None when too few; and which agree."""
        n = np.count_nonzero(trusted)
        if n < least:
            return None, np.zeros(len(before), dtype=bool)
        # Corners on the outline belong half to the background: keep those near the median.
        moved = after - before
        off = moved - np.sort(moved[trusted], axis=0)[n // 2]
        same = trusted & ((off * off).sum(axis=1) <= config.spread_px ** 2)
        if np.count_nonzero(same) < least:
            return None, same
        p, q = before[same], after[same]
        centre_p, centre_q = p.mean(axis=0), q.mean(axis=0)
        arms = p - centre_p
        # Least squares, drawn to 1 as if a corner at a distance of prior_px had not moved: few
        # corners close to one another say little about growth.
        weight = float((arms ** 2).sum())
        prior = config.prior_px ** 2
        growth = (float((arms * (q - centre_q)).sum()) + prior) / (weight + prior)
        growth = min(config.max_scale, max(1 / config.max_scale, growth))
        x, y = centre_q - growth * centre_p
        return _Move(growth, (float(x), float(y))), same

    def apply(self, region: Region) -> Region:
        g = self.growth
        return Region(g * region.x + self.shift[0], g * region.y + self.shift[1],
                      g * region.w, g * region.h)


def _centred_in(region: Region, grey: Grey) -> bool:
    return (0 <= region.x + region.w / 2 < grey.shape[1]
            and 0 <= region.y + region.h / 2 < grey.shape[0])


def _scaled(region: Region, by: float) -> Region:
    return Region(region.x * by, region.y * by, region.w * by, region.h * by)


def _corners(grey: Grey, region: Region, config: FlowConfig, spacing: float = 2.0) -> Points:
    """Return corners in and closely around a region."""
    height, width = grey.shape
    around = Region(region.x - config.pad_px, region.y - config.pad_px,
                    region.w + 2 * config.pad_px, region.h + 2 * config.pad_px)
    inside = around.clipped(width, height)
    if inside is None:
        return np.empty((0, 2), np.float32)
    x0, y0 = int(inside.x), int(inside.y)
    patch = grey[y0:int(np.ceil(inside.y + inside.h)), x0:int(np.ceil(inside.x + inside.w))]
    corners = cv2.goodFeaturesToTrack(patch, config.corners, 0.05, spacing, blockSize=3)
    if corners is None:
        return np.empty((0, 2), np.float32)
    return np.asarray(corners.reshape(-1, 2) + (x0, y0), dtype=np.float32)


def _flow(before: Grey, after: Grey, points: Points, config: FlowConfig,
          ) -> tuple[Points, npt.NDArray[np.bool_]]:
    """Return where points went, and which of them flow back to where they came from."""
    if not len(points):
        return points, np.zeros(0, dtype=bool)
    # Most of what this costs is the pyramids of both pictures: only the part around the points.
    left, top = np.maximum(0, points.min(axis=0).astype(int) - REACH_PX)
    right, bottom = points.max(axis=0).astype(int) + REACH_PX
    parts = [picture[top:bottom, left:right] for picture in (before, after)]
    inside = points - np.array([left, top], np.float32)
    how = {'winSize': (config.window, config.window), 'maxLevel': config.levels}
    there, status, _ = cv2.calcOpticalFlowPyrLK(*parts, inside.reshape(-1, 1, 2), None, **how)
    back, status_back, _ = cv2.calcOpticalFlowPyrLK(*parts[::-1], there, None, **how)
    there, back = there.reshape(-1, 2), back.reshape(-1, 2)
    off = back - inside
    near = (off * off).sum(axis=1) <= config.back_px ** 2
    trusted = (status.ravel() == 1) & (status_back.ravel() == 1) & near
    there = there + (left, top)
    return np.asarray(there, dtype=np.float32), np.asarray(trusted, dtype=bool)


class _Buffered(NamedTuple):
    stamp_ns: int
    grey: Grey
    scale: float           # its width over that of the camera frame
    turn: Matrix | None    # moves pixels of the frame before to this one, where known and large


@dataclass
class RegionTracker(Generic[Key]):
    """
    Grey frames of the last seconds, and the regions carried to the newest of them.

    Not thread-safe.
    """

    config: FlowConfig = field(default_factory=FlowConfig)
    cut_below: float = -1.0       # a frame that correlates less with the last is another scene
    tracks: dict[Key, Track] = field(default_factory=dict)
    lost: int = 0                 # regions dropped since start
    cut_ns: int = 0               # first frame of the present scene; 0: there was no cut
    cuts: int = 0                 # since start
    _frames: deque[_Buffered] = field(default_factory=deque)
    _spare: list[Grey] = field(default_factory=list)  # written anew: memory stays as it is
    _thumbnail: Appearance | None = None

    @property
    def newest_ns(self) -> int:
        """Stamp of the newest frame; 0 before the first."""
        return self._frames[-1].stamp_ns if self._frames else 0

    def add(self, stamp_ns: int, frame: npt.NDArray[np.uint8], turn: Matrix | None = None) -> None:
        """
        Take the next frame and carry all regions to it; frames must come in order.

        ``turn``: how the camera's turn since the last one moves pixels of the camera frame.
        """
        if self._frames and stamp_ns <= self.newest_ns:
            raise ValueError(f'frame {stamp_ns} is not newer than {self.newest_ns}; clear() '
                             'before a stream starts over')
        grey = shrink(frame, self.config, self._spare.pop() if self._spare else None)
        scale = grey.shape[1] / frame.shape[1]
        if self._frames and (self._frames[-1].grey.shape != grey.shape
                             or self._frames[-1].scale != scale):
            self._frames.clear()  # another camera mode: old frames cannot be compared
            self.tracks, self._spare = {}, []
        if turn is not None:
            turn = rescaled(turn, scale)
            turn = turn if farthest_move(turn, grey.shape) > TURN_PX else None
        last, self._thumbnail = self._thumbnail, thumbnail(grey)
        if self._frames and last is not None and \
                _similarity(last, self._thumbnail, turn, grey.shape[1]) < self.cut_below:
            self.lost += len(self.tracks)
            self._forget_frames()
            self.tracks, self.cut_ns, self.cuts = {}, stamp_ns, self.cuts + 1
        frame_now = _Buffered(stamp_ns, grey, scale, turn)
        if self._frames:
            self.tracks = self._step(self.tracks, self._frames[-1], frame_now)
        self._frames.append(frame_now)
        while (len(self._frames) > self.config.max_frames
               or stamp_ns - self._frames[0].stamp_ns > self.config.history_s * NS):
            self._spare.append(self._frames.popleft().grey)

    def start(self, regions: Mapping[Key, Region], stamp_ns: int) -> None:
        """
        Carry regions seen in the frame of `stamp_ns` to the newest frame, and on from there.

        The nearest buffered frame stands for that frame; without one within half a second the
        regions are lost. Other regions go on as they were.
        """
        stamps = np.array([f.stamp_ns for f in self._frames], dtype=np.int64)
        first = int(np.abs(stamps - stamp_ns).argmin()) if len(stamps) else 0
        self.keep([key for key in self.tracks if key not in regions])
        if not len(stamps) or abs(int(stamps[first]) - stamp_ns) > NS // 2:
            self.lost += len(regions)
            return
        grey, scale = self._frames[first].grey, self._frames[first].scale
        tracks: dict[Key, Track] = {
            key: Track(region, first=appearance_of(grey, _scaled(region, scale)))
            for key, region in regions.items()}
        for i in range(first, len(self._frames) - 1):
            tracks = self._step(tracks, self._frames[i], self._frames[i + 1])
        self.tracks |= tracks

    def keep(self, keys: Collection[Key]) -> None:
        """Stop carrying all regions but these."""
        self.tracks = {key: track for key, track in self.tracks.items() if key in keys}

    def regions(self) -> dict[Key, Region]:
        """Return the regions in the newest frame [pixels of the camera frame]."""
        return {key: track.region for key, track in self.tracks.items() if not track.away}

    def similarities(self) -> dict[Key, float]:
        """Return how much each region looks as it did in the cloud's frame, -1 to 1."""
        similarities = {}
        for key, track in self.tracks.items():
            newest = self._frames[-1]
            now = appearance_of(newest.grey, _scaled(track.region, newest.scale))
            if track.first is not None and now is not None:
                similarities[key] = similarity_of(track.first, now)
        return similarities

    def clear(self) -> None:
        """Forget everything (clock jump, stream restart)."""
        self._forget_frames()
        self.tracks, self.cut_ns = {}, 0

    def _forget_frames(self) -> None:
        self._spare += [buffered.grey for buffered in self._frames]
        self._frames.clear()

    def _step(self, tracks: Mapping[Key, Track], before: _Buffered,
              after: _Buffered) -> dict[Key, Track]:
        elapsed_ns, grey, away = after.stamp_ns - before.stamp_ns, before.grey, {}
        here = tracks
        if tracks and after.turn is not None:
            grey, here = turned(grey, tracks, before.scale, after.turn)
        if after.turn is not None or any(track.away for track in tracks.values()):
            away = {key: replace(track, coasting_ns=track.coasting_ns + elapsed_ns)
                    for key, track in here.items() if track.away
                    and track.coasting_ns + elapsed_ns <= self.config.max_coasting_s * NS}
            here = {key: track for key, track in here.items() if not track.away}
        result = step(grey, after.grey, here, before.scale, elapsed_ns, self.config) | away
        self.lost += len(tracks) - len(result)
        return result
