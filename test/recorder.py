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
Record whatever is said on the ROS graph, as any peer could, to files in a folder.

Each topic is taken as it comes over the wire; on a line of standard input all parameters of all
nodes are fetched, too, and figures are printed.
"""

import importlib
import json
from pathlib import Path
import sys
import threading
import time

from rcl_interfaces.srv import GetParameters, ListParameters
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy


def message_class(name):
    """Return the class of a type such as std_msgs/msg/Header, or of an action's feedback."""
    package, space, kind = name.split('/')
    found = importlib.import_module(f'{package}.{space}')
    if space == 'action':
        return getattr(found, kind.removesuffix('_FeedbackMessage')).Impl.FeedbackMessage
    return getattr(found, kind)


class Recorder(Node):
    """Subscribes to every topic."""

    def __init__(self, folder):
        super().__init__('recorder')
        self.folder, self.topics, self.calls = folder, {}, []
        self.create_timer(0.1, self.look)

    def look(self):
        """Subscribe to what is new."""
        for topic, kinds in self.get_topic_names_and_types():
            if topic not in self.topics:
                file = (self.folder / f'{topic.strip("/").replace("/", "-")}.cdr').open('wb')
                self.topics[topic] = self.create_subscription(
                    message_class(kinds[0]), topic, lambda data, f=file: self.write(f, data),
                    QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT), raw=True)

    def write(self, file, data):
        """Keep a message."""
        file.write(bytes(data))
        file.flush()

    def parameters(self):
        """Fetch all parameters of all nodes; return how many there are."""
        count = 0
        for name in ('camera', 'edge', 'cloud', 'context'):
            listed = self.call(ListParameters, f'/{name}/list_parameters',
                               ListParameters.Request())
            values = self.call(GetParameters, f'/{name}/get_parameters',
                               GetParameters.Request(names=listed.result.names))
            count += len(values.values)
            (self.folder / f'parameters-{name}.txt').write_text(
                str(list(zip(listed.result.names, values.values))))
        return count

    def call(self, kind, service, request):
        """Call a service; the executor runs in another thread."""
        client = self.create_client(kind, service)
        if not client.wait_for_service(10.0):
            raise SystemExit(f'no {service}')
        future = client.call_async(request)
        until = time.monotonic() + 10.0
        while not future.done():
            if time.monotonic() > until:
                raise SystemExit(f'{service} does not answer')
            time.sleep(0.01)
        return future.result()


def spin(node):
    """Spin until shutdown."""
    try:
        rclpy.spin(node)
    except ExternalShutdownException:
        pass


def main():
    """Record until standard input is closed."""
    rclpy.init()
    recorder = Recorder(Path(sys.argv[1]))
    spinning = threading.Thread(target=spin, args=(recorder,))
    spinning.start()
    print('ready', flush=True)
    for _ in sys.stdin:
        print(json.dumps({'parameters': recorder.parameters(),
                          'topics': len(recorder.topics)}), flush=True)
    rclpy.shutdown()
    spinning.join()


if __name__ == '__main__':
    main()
