# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""Child processes: apart from Ctrl-C, but in our session, where giving way counts."""

import os

import pytest
from spotvlm_ros.child import Child


@pytest.mark.parametrize('idle', [False, True])
def test_a_child_has_a_group_of_its_own_in_our_session_and_gives_way_if_told(idle):
    child = Child(['sleep', '60'], idle=idle)
    try:
        pid = child.process.pid
        assert os.getpgid(pid) == pid
        assert os.getsid(pid) == os.getsid(0)
        assert os.sched_getscheduler(pid) == (os.SCHED_IDLE if idle else os.SCHED_OTHER)
    finally:
        assert child.stop() < 0
    assert not child.alive


def test_where_giving_way_is_forbidden_a_child_starts_all_the_same(monkeypatch):
    def forbidden(*arguments):
        raise PermissionError('no such call here')
    monkeypatch.setattr(os, 'sched_setscheduler', forbidden)
    child = Child(['sleep', '60'], idle=True)
    assert child.alive
    assert child.stop() < 0
