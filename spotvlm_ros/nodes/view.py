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
The node behind `spotvlm run --view`: subscribes while somebody looks, changes what the page asks.

It lives in the process of `spotvlm run`, not in that of the edge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
import threading

from pydantic import JsonValue
from rcl_interfaces.msg import Parameter as ParameterMsg, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.client import Client
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage, Image
from spotvlm_msgs.msg import Answer, Calibration, CloudStatus, Context, Queries
from spotvlm_msgs.srv import SetQuery
import yaml

from .base import latched, SENSOR
from .convert import duration_s
from .health import PAUSED
from .image_topic import RELIABLE_SENSOR
from .own_answers import TOPIC as ALONE
from .publishers import frame_topic, image_topic
from ..config.query_changes import MAX_QUERIES
from ..frames.jpeg import jpeg_size
from ..frames.pixels import check_image, encode_jpeg, FrameError, image_to_rgb
from ..method.prompt import printable
from ..view.said import Json, said, stamp_ns, told
from ..view.state import LiveState, Picture
from ..view.viewers import open_view

MAX_SIDE = 960       # of pictures that are encoded here [pixels]
RAW_S = 0.1          # they are encoded this often, at most
BREAKERS = ('closed', 'open', 'half open')


class ViewNode(Node):
    """Fills a `LiveState` while somebody looks."""

    def __init__(self, title: str, where: str, cameras: Mapping[str, str],
                 delay_s: float) -> None:
        """
        Show the graph; raise AddressError.

        ``where`` is what `open_view` takes: '' is a page on this machine. ``cameras``
        says by name whether images are raw or compressed; ``delay_s`` is emulated.
        """
        super().__init__('spotvlm_view')
        self._cameras = cameras
        self.state = LiveState(title, lambda: int(self.get_clock().now().nanoseconds))
        self.state.status({'paused': False, 'delay_s': delay_s})
        self._ends: list[Callable[[], object]] = []  # of the subscriptions
        self._wanted = threading.Event()
        self._encoded_ns: dict[str, int] = {}
        self._change = self.create_guard_condition(self._listen)
        self._set_query = self.create_client(SetQuery, 'set_query')
        self._set_cloud = self.create_client(SetParameters, 'cloud/set_parameters')
        self.viewer = open_view(where, self.state, self, self._look)

    def destroy_node(self) -> None:
        """End what shows it, too."""
        self.viewer.close()
        super().destroy_node()

    # What is shown

    def _look(self, wanted: bool) -> None:
        """Begin or end to listen; called by the server's thread."""
        (self._wanted.set if wanted else self._wanted.clear)()
        self._change.trigger()

    def _listen(self) -> None:
        """Have the subscriptions that are wanted; called by the executor."""
        if not self._wanted.is_set():
            while self._ends:
                self._ends.pop()()
            self.state.forget()
            return
        if self._ends:
            return
        some, many = QoSProfile(depth=10), latched(MAX_QUERIES)
        for kind, topic, take, qos in (
                (Queries, 'queries', self._on_queries, latched(1)),
                (Answer, 'truth', lambda m: self.state.truth(said(m)), some),
                (Answer, ALONE, lambda m: self.state.alone(m.query_id, said(m)), some),
                (Answer, 'answers', lambda m: self.state.edge(m.query_id, said(m)), some),
                (Answer, 'cloud/answers', lambda m: self.state.cloud(m.query_id, said(m)), some),
                (Context, 'context', lambda m: self.state.context(m.query_id, told(m)), many),
                (Calibration, 'calibration', self._on_calibration, many),
                (CloudStatus, 'cloud/status', self._on_status, latched(1))):
            self._subscribe(kind, topic, take, qos)
        for camera, transport in self._cameras.items():
            if transport == 'compressed':
                self._subscribe(CompressedImage, frame_topic(self, camera, transport),
                                partial(self._on_jpeg, camera), SENSOR)
            else:
                self._subscribe(Image, image_topic(camera), partial(self._on_image, camera),
                                self._image_qos(camera))

    def _subscribe(self, kind: type, topic: str, take: Callable[..., None],
                   qos: QoSProfile) -> None:
        made = self.create_subscription(kind, topic, take, qos)
        self._ends.append(partial(self.destroy_subscription, made))

    def _image_qos(self, camera: str) -> QoSProfile:
        """Return a profile that fits all publishers: see `image_topic`."""
        offered = {info.qos_profile.reliability for info in
                   self.get_publishers_info_by_topic(frame_topic(self, camera, 'raw'))}
        return RELIABLE_SENSOR if offered == {RELIABLE_SENSOR.reliability} else SENSOR

    def _on_queries(self, message: Queries) -> None:
        definitions: dict[str, Json] = {}
        for query_id, text in zip(message.ids, message.definitions):
            try:
                fields = yaml.safe_load(text)
            except yaml.YAMLError:
                fields = None
            fields = fields if isinstance(fields, dict) else {}
            definitions[query_id] = {
                'text': printable(text), 'prompt': printable(str(fields.get('prompt', ''))),
                'camera': str(fields.get('camera', ''))}
        self.state.queries(definitions)

    def _on_calibration(self, message: Calibration) -> None:
        keys: list[JsonValue] = [
            {'key': printable(k.key), 'labels': int(k.labels), 'agreement': round(k.agreement, 4),
             'help': round(k.help, 4), 'harm': round(k.harm, 4), 'learned': bool(k.learned)}
            for k in message.keys]
        self.state.calibration(message.query_id, keys)

    def _on_status(self, message: CloudStatus) -> None:
        breaker = BREAKERS[message.breaker] if message.breaker < len(BREAKERS) else '?'
        self.state.status({
            'endpoint': printable(message.endpoint),
            'model': printable(message.model.rpartition('/')[2]),
            'in_flight': int(message.in_flight), 'requests': int(message.requests),
            'answers': int(message.answers), 'errors': int(message.errors),
            'skipped': int(message.skipped), 'breaker': breaker,
            'rejected': int(message.facts_rejected),
            'round_trip_p50_s': round(duration_s(message.round_trip_p50), 3),
            'round_trip_p95_s': round(duration_s(message.round_trip_p95), 3),
            'emulated_p50_s': round(duration_s(message.emulated_delay_p50), 3),
            'last_error': printable(message.last_error),
            'paused': message.last_error == PAUSED})

    def _on_jpeg(self, camera: str, message: CompressedImage) -> None:
        """Hand a JPEG on as it came."""
        jpeg = bytes(message.data)
        size = jpeg_size(jpeg)
        if size is not None:
            self.state.frame(camera, Picture(stamp_ns(message.header.stamp), jpeg, *size))

    def _on_image(self, camera: str, message: Image) -> None:
        """Encode a raw image, now and then."""
        stamp = stamp_ns(message.header.stamp)
        if 0 <= stamp - self._encoded_ns.get(camera, 0) < RAW_S * 1e9:
            return
        self._encoded_ns[camera] = stamp
        try:
            check_image(message)
            rgb = image_to_rgb(message)
        except FrameError:
            return  # node edge counts it
        step = -(-max(rgb.shape[:2]) // MAX_SIDE)
        self.state.frame(camera, Picture(stamp, encode_jpeg(rgb[::step, ::step]),
                                         int(message.width), int(message.height)))

    # What is changed

    def set_query(self, query_id: str, definition: str) -> Future[str]:
        """Change a standing query; see `view.server.Controls`."""
        def reply(response: SetQuery.Response) -> str:
            if not response.success:
                raise RuntimeError(printable(response.message))
            return f'{query_id} is changed'
        return _call(self._set_query, SetQuery.Request(query_id=query_id, definition=definition),
                     reply)

    def set_cloud(self, name: str, value: bool | float) -> Future[str]:
        """Change a parameter of node cloud; see `view.server.Controls`."""
        def reply(response: SetParameters.Response) -> str:
            result = response.results[0]
            if not result.successful:
                raise RuntimeError(printable(result.reason))
            self.state.status({'paused': value} if name == 'paused' else {'delay_s': value})
            return f'{name} of node cloud is {value}'
        kinds = {bool: ('bool_value', ParameterType.PARAMETER_BOOL),
                 float: ('double_value', ParameterType.PARAMETER_DOUBLE)}
        field, kind = kinds[type(value)]
        parameter = ParameterMsg(name=name, value=ParameterValue(type=kind, **{field: value}))
        return _call(self._set_cloud, SetParameters.Request(parameters=[parameter]), reply)


def _call(client: Client, request: object, reply: Callable[..., str]) -> Future[str]:
    """Call a service from any thread; the result is an error where nobody offers it."""
    done: Future[str] = Future()
    if not client.service_is_ready():
        done.set_exception(RuntimeError(f'nobody offers {client.srv_name}; is the node active?'))
        return done

    def take(replied: object) -> None:
        try:
            done.set_result(reply(replied.result()))  # type: ignore[attr-defined]
        except Exception as error:
            done.set_exception(RuntimeError(str(error)))
    client.call_async(request).add_done_callback(take)
    return done
