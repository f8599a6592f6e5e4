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
Whether the middleware (RMW) that the environment names is installed and has what it needs.

And that Fast DDS, the default one, gives back the memory of messages (`free_buffers`), and that a
process is heard that is started again after it was killed (`own_ports`).

rcl compares the names when it is loaded, and ends the process with code 102 (ros2/ros2#908). Where
/dev/shm is full, the first that writes there ends with SIGBUS: LTTng, which ROS brings along, with
any middleware; Fast DDS does without shared memory at best, and half of it at worst.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
import shutil
import sys

VARIABLE = 'RMW_IMPLEMENTATION'
TRANSPORTS = 'FASTDDS_BUILTIN_TRANSPORTS'
SHARED_MEMORY = Path('/dev/shm')
PARTICIPANT = 2**20  # bytes that Fast DDS takes there for a process; 0.7 MB were seen
PAGES = 2**14        # and LTTng
PROFILES = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')  # 3 and 2 (Jazzy)
FROM_XML = 'RMW_FASTRTPS_USE_QOS_FROM_XML'
# Who has one of these has set Fast DDS up himself; the last are read in the working directory.
SET_UP = (*PROFILES, FROM_XML, 'RMW_FASTRTPS_PUBLICATION_MODE')
PROFILES_HERE = ('DEFAULT_FASTDDS_PROFILES.xml', 'DEFAULT_FASTRTPS_PROFILES.xml')
OURS = Path(__file__).with_name('fastdds.xml')
# Numbers of participants, of which their ports are made: usually the lowest that are free. With
# discovery on this host alone (LOCALHOST) nobody looks beyond 31.
NUMBERS = range(8, 28)


def report_middleware_problem(environment: Mapping[str, str]) -> bool:
    """Print what is wrong with the middleware as an error; return whether something is."""
    problem = middleware_problem(environment)
    if problem:
        print(f'error: {"; ".join(problem)}', file=sys.stderr)
    return problem is not None


def middleware_problem(environment: Mapping[str, str]) -> tuple[str, str] | None:
    """Return what is wrong with the middleware, and its remedy; None where nothing is."""
    name = environment.get(VARIABLE, '')
    folders = [Path(f) for f in environment.get('LD_LIBRARY_PATH', '').split(':') if f]
    folders += [Path(f) / 'lib' for f in environment.get('AMENT_PREFIX_PATH', '').split(':') if f]
    if name and not any((folder / f'lib{name}.so').exists() for folder in folders):
        there = sorted({path.stem.removeprefix('lib') for folder in folders
                        for path in folder.glob('librmw_*_cpp.so')})
        return (f'{VARIABLE} is {name}, which is not installed'
                + (f' (there is {", ".join(there)})' if there else ''), f'unset {VARIABLE}')
    shared = 'fastrtps' in (name or 'fastrtps') and not environment.get(
        TRANSPORTS, '').startswith(('UDP', 'TCP'))
    needed = PARTICIPANT if shared else PAGES
    with suppress(OSError):  # without it there is another way
        free = shutil.disk_usage(SHARED_MEMORY).free
        if free < needed:
            remedy = (f'remove what nobody uses there (fastdds shm clean), or enlarge it (docker '
                      f'run --shm-size=64m; mount -o remount,size=64m {SHARED_MEMORY})')
            if shared and free >= PAGES:
                remedy += f', or do without it: export {TRANSPORTS}=UDPv4'
            return (f'{SHARED_MEMORY} is full: {free / 1e3:.0f} kB are free of the '
                    f'{needed / 1e3:.0f} kB that DDS needs', remedy)
    return None


def free_buffers(environment: MutableMapping[str, str]) -> None:
    """Have Fast DDS free the buffers of messages, unless it was set up by somebody else."""
    if not any(map(environment.get, SET_UP)) and not any(Path(p).exists() for p in PROFILES_HERE):
        # With both, rmw_fastrtps reads the file twice and says that it is wrong.
        environment[_profiles(environment)] = str(OURS)
        environment[FROM_XML] = '1'


def own_ports(environment: Mapping[str, str], folder: Path, number: int) -> dict[str, str]:
    """
    Return what to change for the process that takes the place of a killed one, the n-th.

    For up to 20 s the others go on sending to the one that was killed, and Fast DDS would give its
    ports to the new one. Over shared memory they may then write for ever where nobody reads
    (eProsima/Fast-DDS#5053). And what they send to the dead, pieces of images above all, reaches
    the new one before they know it: they take it back, and Fast DDS looks for ever for what it has
    freed half (2.6 to 3.6, ``StatefulReader::process_gap_msg``). Nothing is changed where somebody
    else has set Fast DDS up.
    """
    name = _profiles(environment)
    try:  # by what it holds: another copy of this package may have named its own
        if Path(environment.get(name, '')).read_bytes() != OURS.read_bytes():
            return {}
    except OSError:
        return {}
    participant = '<participant profile_name="spotvlm_participant" is_default_profile="true">' \
        f'<rtps><participantID>{NUMBERS[number % len(NUMBERS)]}</participantID></rtps>' \
        '</participant>'
    path = folder / f'fastdds-{number}.xml'
    path.write_text(OURS.read_text().replace('<profiles>', f'<profiles>{participant}'))
    return {name: str(path)}


def _profiles(environment: Mapping[str, str]) -> str:
    return PROFILES[environment.get('ROS_DISTRO') in ('humble', 'iron', 'jazzy')]
