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
Makes docs/view.png and docs/report.png of a run in the miniature world, by Chromium.

Run from the root: `.venv/bin/ros-env python docs/draw_view.py` (apt-get install chromium).
"""

import atexit
from pathlib import Path
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'test'))
from browser import Browser  # noqa: E402

DOCS = Path(__file__).parent
SPOTVLM = (sys.executable, '-m', 'spotvlm_ros.cli')
SECONDS = 20.0      # until the cloud has helped now and then


def main() -> None:
    """Run, look, report, look again."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(Path(folder) / 'chromium')
        atexit.register(browser.close)
        page = browser.page()
        run = subprocess.Popen(
            [*SPOTVLM, 'run', 'driving', '--mini', '-p', 'camera.seed:=1000004', '--view',
             '--emulate-delay', '1.5', '--record', f'{folder}/drive'],
            stdout=subprocess.PIPE, text=True)
        try:
            url = next(line.split()[-1] for line in run.stdout if line.startswith('live page'))
            page.visit(url, 1280)
            page.wait('document.querySelectorAll("#cloud-boxes rect").length', 120.0)
            time.sleep(SECONDS)
            page.wait('document.querySelectorAll("#now-boxes rect").length > 1', 20.0)
            page.picture(DOCS / 'view.png')
        finally:
            run.send_signal(signal.SIGINT)
            run.communicate(timeout=30)
        subprocess.run([*SPOTVLM, 'report', f'{folder}/drive'], check=True)
        page.visit(f'file://{folder}/drive/report.html', 1000)
        page.run('show(90)')
        page.wait('document.querySelectorAll("#now-boxes rect").length')
        page.picture(DOCS / 'report.png')


if __name__ == '__main__':
    main()
