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
"""The ament_python package spotvlm_ros."""

from glob import glob

from setuptools import find_packages, setup

package_name = 'spotvlm_ros'

setup(
    name=package_name,
    version='0.1.0',
    packages=find_packages(include=[package_name, package_name + '.*']),
    package_data={package_name: ['mini/checkpoints/**', 'mini/checkpoints/**/*',
                                 'bench/spotbench/latencies.json', 'system/fastdds.xml',
                                 'view/web/*', 'edge/native/*.c']},
    data_files=[
        ('share/ament_index/resource_index/packages', ['resource/' + package_name]),
        ('share/' + package_name, ['package.xml']),
        ('share/' + package_name + '/launch', sorted(glob('launch/*.launch.py'))),
        ('share/' + package_name + '/examples', sorted(glob('examples/*.py'))),
        ('share/' + package_name + '/config',
         sorted(glob('config/*.yaml') + glob('config/*.xml') + glob('config/*.json'))),
        *(('share/' + package_name + '/' + folder, sorted(glob(folder + '/*.yaml')))
          for folder in ('config/real', 'config/real/rules')),
    ],
    install_requires=['setuptools'],
    extras_require={'test': ['pytest']},
    python_requires='>=3.10',
    zip_safe=False,
    maintainer='spotvlm maintainers',
    maintainer_email='maintainers@spotvlm.example.org',
    description='Real-time answers about a camera image, with context from the cloud',
    license='Apache-2.0',
    entry_points={
        'console_scripts': [
            'spotvlm = spotvlm_ros.cli.main:main',
            'camera = spotvlm_ros.nodes.main:camera',
            'edge = spotvlm_ros.nodes.main:edge',
            'cloud = spotvlm_ros.nodes.main:cloud',
            'context = spotvlm_ros.nodes.main:context',
            'composed = spotvlm_ros.nodes.main:composed',
        ],
    },
)
