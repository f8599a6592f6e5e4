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
"""Inputs made directly are those of the processor."""

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from spotvlm_ros.edge.inputs import Buffers, InputProcessor
from spotvlm_ros.method import prompt
from spotvlm_ros.method.facts import Context, Fact, NS
from spotvlm_ros.mini import models, shipped
from spotvlm_ros.mini.driving.scene import ACTION, DESCRIBE, SCENE
import torch
from transformers import AutoProcessor

SIZE = (models.EDGE.image, models.EDGE.image)


@pytest.fixture(scope='module')
def inputs():
    """Return the inputs of the shipped edge model."""
    processor = AutoProcessor.from_pretrained(shipped.checkpoint_path('spot-mini-edge'))
    return InputProcessor(processor, SIZE)


@given(st.sampled_from([SCENE, ACTION, DESCRIBE]), st.data())
@settings(max_examples=40, deadline=None)
def test_equal_to_the_processor(inputs, query, data):
    """Over any context and picture: the same tokens, the same masks, the same pixels."""
    assert inputs.fast
    facts = tuple(Fact(k, data.draw(st.sampled_from(v)), data.draw(st.integers(0, 9)) * NS)
                  for k, v in query.choices.items() if data.draw(st.booleans()))
    text = data.draw(st.text(max_size=60)) if query.format == 'text' else ''
    chat = prompt.messages(query, Context(query.id, 10 * NS, facts, text, 8 * NS), 10 * NS, 2)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    views = [rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8) for _ in range(2)]
    quick, slow = inputs(chat, views), inputs.process(chat, views)
    assert quick.keys() == slow.keys()
    for name in quick:
        if name == 'pixel_values':
            assert torch.allclose(quick[name], slow[name], atol=1e-5)
        else:
            assert torch.equal(quick[name], slow[name].to(quick[name].dtype)), name


def test_another_processor_is_used_as_it_is():
    """One that changes pixels in a way not foreseen is found out, not trusted."""
    processor = AutoProcessor.from_pretrained(shipped.checkpoint_path('spot-mini-edge'))
    processor.image_processor.max_image_size = {'longest_edge': 40}  # makes it resize the views
    changed = InputProcessor(processor, SIZE)
    assert not changed.fast
    chat = prompt.messages(ACTION, None, 0, 1)
    view = np.zeros((*SIZE, 3), np.uint8)
    assert changed(chat, [view])['pixel_values'].shape[-1] == 40


def test_check_turns_the_short_cut_off_where_it_would_differ(inputs):
    processor = AutoProcessor.from_pretrained(shipped.checkpoint_path('spot-mini-edge'))
    other = InputProcessor(processor, SIZE)
    other._per_image -= 1
    chat = prompt.messages(ACTION, None, 0, 1)
    view = np.zeros((*SIZE, 3), np.uint8)
    assert not other.check(chat, [view]) and not other.fast
    assert torch.equal(other(chat, [view])['input_ids'], inputs(chat, [view])['input_ids'])


def test_memory_that_nobody_holds_is_written_to_again():
    buffers = Buffers()
    first = torch.from_numpy(buffers.take((2, 3)))
    held = first[0]
    where = first.data_ptr()
    del first
    other = buffers.take((2, 3))
    assert other.ctypes.data != where, 'a part of it is held'
    del held
    assert buffers.take((2, 3)).ctypes.data == where
    assert buffers.take((3, 2)).shape == (3, 2)
