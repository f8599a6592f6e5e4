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
"""Gate, keyframes, audit, and the whole method as one state machine, as properties."""

from dataclasses import replace

import cv2
from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from spotvlm_ros.method.appearance import appearance_of, similarity_of
from spotvlm_ros.method.audit import Audit
from spotvlm_ros.method.facts import Fact, NS, Query, Region, Source, Turn
from spotvlm_ros.method.flow import FlowConfig, RegionTracker
from spotvlm_ros.method.gate import Drop, GateConfig, why_dropped
from spotvlm_ros.method.keyframes import (
    is_complete, is_unsure, KeyframePolicy, KeyframeRequest, next_keyframe, SceneCutDetector,
    target_in_flight)
from spotvlm_ros.method.transfer import Transfer, TransferConfig

SCENE = Query('scene', 'What is on the road?', 'facts',
              {'light': ('none', 'red', 'green'), 'lead': ('none', 'braking')},
              ttl_s={'light': 2.0, 'default': 4.0})
TENTH = NS // 10


def s(seconds):
    """Return seconds as a stamp; 100 s after the epoch."""
    return int((100 + seconds) * NS)


def turn(at, source=Source.CLOUD, **values):
    """Return a turn about the frame at this second."""
    facts = tuple(Fact(k, v, s(at), region=Region(60, 50, 40, 40)) for k, v in values.items())
    return Turn('scene', s(at), source, facts)


def texture(seed, shape=(240, 320)):
    """Return a picture full of corners."""
    noise = np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 1.5)


# -- gate ----------------------------------------------------------------------------------------

CONFIG = GateConfig(age_limit_s=3.0, changed_below=0.3, cut_below=0.4)


@pytest.mark.parametrize('key,age,cut,similarity,why', [
    ('light', 1.9, None, None, None),
    ('light', 2.1, None, None, Drop.LIFETIME),
    ('lead', 2.9, None, None, None),
    ('lead', 3.1, None, None, Drop.AGE),
    ('lead', 1.0, 0.5, None, Drop.SCENE_CUT),
    ('lead', 1.0, 1.5, None, None),
    ('lead', 1.0, None, 0.2, Drop.CHANGED),
    ('lead', 1.0, None, 0.4, None),
])
def test_why_a_fact_is_dropped(key, age, cut, similarity, why):
    fact = Fact(key, 'none', s(-age))
    cut_ns = s(-cut) if cut is not None else 0
    assert why_dropped(fact, SCENE, s(0), CONFIG, cut_ns, similarity) is why


def test_similarity_is_of_the_appearance_not_of_the_light():
    patch = texture(1)
    box = Region(100, 80, 60, 50)
    one = appearance_of(patch, box)
    assert similarity_of(one, appearance_of((patch * 0.5 + 60).astype(np.uint8), box)) > 0.95
    assert similarity_of(one, appearance_of(texture(2), box)) < 0.5
    flat = appearance_of(np.full((240, 320), 90, np.uint8), box)
    assert similarity_of(one, flat) == 0.0 and similarity_of(flat, flat) == 1.0
    assert appearance_of(patch, Region(400, 80, 60, 50)) is None


def test_a_scene_cut_drops_all_that_was_seen_before():
    transfer = Transfer([SCENE], TransferConfig(gate=CONFIG))
    for n in range(6):
        transfer.frame(s(n / 10), texture(1))
    transfer.add(turn(0.2, light='red', lead='braking'))
    assert len(transfer.context('scene', s(0.5)).facts) == 2
    transfer.frame(s(0.6), texture(2))
    context = transfer.context('scene', s(0.6))
    assert context.empty and not context.focus
    assert set(context.dropped.values()) == {Drop.SCENE_CUT}
    assert transfer.report()['scene_cuts'] == 1 and transfer.dropped[Drop.SCENE_CUT] == 2
    transfer.add(turn(0.5, light='green'))       # late, about the scene before
    assert transfer.context('scene', s(0.7)).empty
    transfer.add(turn(0.6, light='green'))       # about the present one
    assert [f.value for f in transfer.context('scene', s(0.7)).facts] == ['green']


def test_changed_pixels_are_noticed_where_the_thing_is_now():
    """The picture moves by 3 pixels a frame; then another thing stands in the region."""
    transfer = Transfer([SCENE], TransferConfig(gate=replace(CONFIG, age_limit_s=9.0)))
    wide, other = texture(3, (240, 420)), texture(4)

    def frame(n, change=False):
        image = wide[:, 3 * n:3 * n + 320].copy()
        if change:
            x = 160 - 3 * n
            image[50:90, x:x + 40] = other[50:90, :40]
        return image
    for n in range(8):
        transfer.frame(s(n / 10), frame(n))
        if not n:
            transfer.add(Turn('scene', s(0), Source.CLOUD, (
                Fact('lead', 'braking', s(0), region=Region(160, 50, 40, 40)),)))
    context = transfer.context('scene', s(0.7))
    assert [f.key for f in context.facts] == ['lead']
    assert abs(context.focus['lead'].x - (160 - 21)) < 3
    for n in range(8, 11):
        transfer.frame(s(n / 10), frame(n, change=True))
    context = transfer.context('scene', s(1.0))
    assert context.dropped == {'lead': Drop.CHANGED} and 'lead' in context.focus


def test_a_context_made_while_regions_are_tracked_does_not_judge_a_new_fact_by_an_old_region():
    """Between `carry` and `apply`, in another thread: the region of before has just changed."""
    transfer = Transfer([SCENE], TransferConfig(gate=CONFIG))
    other = texture(4)

    def frame(n):
        image = texture(3).copy()
        if n >= 3:                           # another thing stands where the first fact was seen
            image[50:90, 60:100] = other[50:90, 60:100]
        return image
    for n in range(5):
        transfer.frame(s(n / 10), frame(n))
        if n == 1:
            transfer.add(turn(0.1, light='red'))
    assert transfer.context('scene').dropped == {'light': Drop.CHANGED}
    transfer.add(turn(0.4, light='green'))   # about a frame in which the new thing stands there
    update = transfer.carry(s(0.5), frame(5), transfer.facts_to_track(s(0.5)))
    meanwhile = transfer.context('scene', s(0.5))
    transfer.apply(update)
    assert not meanwhile.dropped and [f.value for f in meanwhile.facts] == ['green']
    assert transfer.context('scene', s(0.5)).facts == meanwhile.facts


# -- flow beyond corners -------------------------------------------------------------------------

def test_what_has_no_corners_of_its_own_is_sought_as_a_whole():
    """A soft lamp that drifts over a dark picture."""
    def frame(n):
        image = np.full((240, 320), 20, np.uint8)
        cv2.circle(image, (100 + 4 * n, 80 + 2 * n), 6, 220, -1)
        return cv2.GaussianBlur(image, (0, 0), 4.0)
    carrier = RegionTracker(FlowConfig())
    for n in range(15):
        carrier.add(n * TENTH + TENTH, frame(n))
        if not n:
            carrier.start({'lamp': Region(88, 68, 24, 24)}, TENTH)
    region = carrier.regions()['lamp']
    assert abs(region.x + region.w / 2 - 156) < 4 and abs(region.y + region.h / 2 - 108) < 4


# -- the state machine ---------------------------------------------------------------------------

TURNS = st.lists(st.builds(
    turn, st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 2.5]),
    st.sampled_from([Source.CLOUD, Source.EDGE]),
    light=st.sampled_from(['none', 'red', 'green']), lead=st.sampled_from(['none', 'braking']),
), max_size=12)


@given(TURNS, st.randoms(use_true_random=False), st.floats(0, 8))
@settings(max_examples=100, deadline=None)
def test_any_order_and_duplication_of_answers_gives_the_same_context(turns, random, at):
    config = TransferConfig(carry=False)
    first, second = Transfer([SCENE], config), Transfer([SCENE], config)
    for one in turns:
        first.add(one)
    for one in random.sample(turns, len(turns)) + turns[:3]:
        second.add(one)
    assert first.context('scene', s(at)) == second.context('scene', s(at))


@given(TURNS, st.floats(0, 8), st.sampled_from([0.0, 1.0, 1.5]))
@settings(max_examples=100, deadline=None)
def test_nothing_too_old_too_new_or_outside_the_choices_is_told(turns, at, limit):
    gate = GateConfig(age_limit_s=limit or 12.0)
    transfer = Transfer([SCENE], TransferConfig(gate=gate, carry=False))
    for one in turns:
        transfer.add(one)
    context = transfer.context('scene', s(at))
    for fact in context.facts:
        assert 0 <= s(at) - fact.stamp_ns <= min(SCENE.ttl_ns(fact.key), gate.age_limit_s * NS)
        assert fact.value in SCENE.choices[fact.key]
    assert not {f.key for f in context.facts} & set(context.dropped)
    assert {f.key for f in context.facts} | set(context.dropped) >= set(context.focus)


def test_a_drop_is_counted_once_per_fact_and_reason():
    transfer = Transfer([SCENE], TransferConfig(carry=False))
    transfer.add(turn(0, light='red', lead='braking'))
    for at in (0.5, 2.5, 2.6, 3.0):
        transfer.context('scene', s(at))
    assert transfer.dropped[Drop.LIFETIME] == 1      # light; lead lives for 4 s
    transfer.context('scene', s(5))
    assert transfer.dropped[Drop.LIFETIME] == 2


def test_a_cloud_answer_from_before_a_restart_is_not_taken():
    transfer = Transfer([SCENE])
    transfer.add(turn(0, Source.EDGE, light='red'))
    assert not transfer.add(turn(100, light='green'))


@pytest.mark.parametrize('known', ['nothing', 'a frame', 'an answer'])
def test_answers_from_before_a_jump_back_do_not_stop_the_stream_after_it(known):
    transfer = Transfer([SCENE])
    transfer.add(turn(100, Source.EDGE, light='red'))
    transfer.clear()
    if known == 'a frame':
        transfer.frame(s(90), np.zeros((24, 32, 3), np.uint8))
    elif known == 'an answer':
        transfer.add(turn(90, Source.EDGE, light='red'))
    assert not transfer.add(turn(99, light='green'))
    if known != 'nothing':   # else the next answer, a second behind it, tells of the restart
        assert not transfer.add(turn(99.5, Source.EDGE, light='red'))
    assert transfer.add(turn(90.1, Source.EDGE, light='red'))
    assert transfer.add(turn(90, light='green'))
    context = transfer.context('scene')
    assert context.stamp_ns == s(90.1) and [f.value for f in context.facts] == ['green']
    assert transfer.add(turn(100.5, Source.EDGE, light='red'))   # the stream has come there again
    assert transfer.add(turn(100, light='green'))


# -- keyframes -----------------------------------------------------------------------------------

def test_what_is_urgent_goes_early_but_not_at_once():
    sent = {'scene': s(0)}
    assert next_keyframe([SCENE], sent, s(0.9)) is None
    assert next_keyframe([SCENE], sent, s(0.41), {'scene'}) is SCENE   # 40 % of its period
    assert next_keyframe([SCENE], sent, s(0.39), {'scene'}) is None


def test_requests_in_flight_follow_the_round_trips():
    slow = replace(SCENE, id='b', cloud_period_s=4.0)
    assert target_in_flight([SCENE], [], 4) == 4           # nothing measured yet
    assert target_in_flight([SCENE], [0.3] * 9, 4) == 1
    assert target_in_flight([SCENE], [2.5] * 9, 4) == 3
    assert target_in_flight([SCENE, slow], [2.5] * 9, 8) == 4
    assert target_in_flight([SCENE], [9.0] * 9, 4) == 4    # never more than allowed
    assert target_in_flight([SCENE], [9.0] * 9 + [0.2] * 8, 4) == 1


def sent_at(policy, *seconds):
    """Return the requests that a policy sends about frames of these times."""
    requests = []
    for at in seconds:
        query = policy.due(s(at))
        if query is not None and policy.has_room:
            requests.append(KeyframeRequest(query, s(at)))
            policy.begin(requests[-1])
    return requests


def test_no_more_requests_are_under_way_than_the_round_trips_need():
    policy = KeyframePolicy([SCENE], max_in_flight=2)
    first, second = sent_at(policy, 0, 0.5, 1.0, 2.0, 9.0)   # the rest waits for a place
    policy.answered(first, 2.5, complete=True)
    policy.end(first, again=False)
    assert [r.stamp_ns for r in sent_at(policy, 9.1)] == [s(9.1)]
    for request in (second, policy.requests[-1]):
        for _ in range(8):
            policy.answered(request, 0.3, complete=True)
        policy.end(request, again=False)
    assert policy.target_in_flight == 1 and len(sent_at(policy, 20, 21, 22)) == 1


def test_an_urgent_query_is_sent_early_once():
    policy = KeyframePolicy([SCENE], max_in_flight=9)
    sent_at(policy, 0)
    policy.urge('scene')
    policy.urge('scene')
    policy.urge('no query')
    assert policy.urged == 1
    assert [r.stamp_ns for r in sent_at(policy, 0.2, 0.4, 0.8, 1.2, 1.4)] == [s(0.4), s(1.4)]


def test_a_complete_answer_supersedes_older_requests_and_an_incomplete_one_does_not():
    policy = KeyframePolicy([SCENE], max_in_flight=3)
    old, newer, newest = sent_at(policy, 0, 1, 2)
    assert policy.answered(newer, 1.0, complete=False) == []
    assert policy.answered(newer, 1.0, complete=True) == [old]
    facts = turn(0, light='red', lead='none').facts
    assert is_complete(SCENE, facts, []) and not is_complete(SCENE, facts, ['light: twice'])
    assert not is_complete(SCENE, facts[:1], []) and newest in policy.requests


def test_a_request_that_fails_makes_its_query_due_again_if_it_is_the_newest():
    policy = KeyframePolicy([SCENE], max_in_flight=3)
    old, new = sent_at(policy, 0, 1)
    policy.end(old, again=True)
    assert policy.due(s(1.1)) is None, 'a newer frame is under way'
    assert not policy.renew(new, s(0.5)) and policy.renew(new, s(1.5))
    assert new.stamp_ns == s(1.5) and policy.due(s(2.2)) is None
    policy.end(new, again=True)
    assert policy.due(s(1.6)) is SCENE
    again, = sent_at(policy, 1.6)
    assert policy.reset() == [again] and policy.due(s(0.1)) is SCENE, 'a restarted stream'


def test_a_scene_cut_is_noticed_once_and_frames_close_to_each_other_are_not_compared():
    day, night = (np.dstack([texture(n)] * 3) for n in (1, 2))
    detector, cuts = SceneCutDetector(), []
    for n, image in enumerate([day, day, day, night, night, night, night]):
        if detector.is_due(s(n / 10)) and detector.update(s(n / 10), image, 0.4):
            cuts.append(n)
    assert cuts == [4], 'frame 3 is too close to frame 2'
    assert not SceneCutDetector().update(s(0), night, 0.4), 'nothing to compare with'


def test_an_edge_answer_is_unsure_as_soon_as_one_fact_is():
    assert is_unsure([0.9, 0.4], 0.5) and not is_unsure([0.9, 0.5], 0.5)
    assert not is_unsure([], 0.5), 'an answer without facts tells nothing'


# -- audit ---------------------------------------------------------------------------------------

def test_audit_counts_by_hand():
    def facts(**values):
        return [Fact(k, v, 0) for k, v in values.items()]
    audit = Audit(0.25)
    assert [audit.due() for _ in range(8)] == [False, False, False, True] * 2
    audit.add(facts(light='red', lead='none'), facts(light='green', lead='none'),
              facts(light='red', lead='braking'), {'light': 'green', 'lead': 'none'})
    audit.add(facts(light='red', lead='none'), facts(light='none', lead='none'),
              facts(light='red'), {'light': 'red', 'lead': 'none'})
    audit.add(facts(light='red'), facts(light='red'), facts(light='red'))   # no truth known
    report = audit.report()
    assert report['audit_frames'] == 3
    assert report['audit_agreement_rate'] == pytest.approx(3 / 5, abs=1e-3)
    assert report['audit_copy_rate'] == pytest.approx(2 / 3, abs=1e-3)
    assert report['audit_help_rate'] == report['audit_harm_rate'] == pytest.approx(1 / 4)
    assert Audit(0.0).report() == {'audit_frames': 0} and not Audit(0.0).due()
