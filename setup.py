# Copyright 2026 spotvlm maintainers
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
                                 'bench/spotbench/latencies.json']},
    data_files=[
        ('share/ament_index/resource_index/packages', ['resource/' + package_name]),
        ('share/' + package_name, ['package.xml']),
        ('share/' + package_name + '/launch', sorted(glob('launch/*.launch.py'))),
        ('share/' + package_name + '/config', sorted(glob('config/*.yaml'))),
    ],
    install_requires=['setuptools'],
    extras_require={'test': ['pytest']},
    python_requires='>=3.11',
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
