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
"""Who publishes an image topic, and what to do where its frames do not come."""

from __future__ import annotations

from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy, qos_check_compatible, QoSCompatibility, QoSProfile, ReliabilityPolicy)
from rclpy.topic_endpoint_info import TopicEndpointInfo
from sensor_msgs.msg import CompressedImage, Image

SUFFIX = '/compressed'  # of the topic beside image
MOST = 4                # that are listed
TAKERS = ('camera', 'edge', 'cloud', 'context')   # nodes that may take frames


def image_topic(camera: str) -> str:
    """Return the topic of a camera's raw images; '' is the only camera."""
    return f'{camera}/image' if camera else 'image'


def frame_topic(node: Node, camera: str, transport: str) -> str:
    """
    Return the resolved topic of a camera, '' being the only one, raw or compressed.

    The compressed one follows a remap of the raw one, unless it has a remap of its own.
    """
    raw = node.resolve_topic_name(image_topic(camera))
    if transport == 'raw':
        return raw
    own = node.resolve_topic_name(image_topic(camera) + SUFFIX)
    plain = node.resolve_topic_name(image_topic(camera) + SUFFIX, only_expand=True)
    return own if own != plain else raw + SUFFIX


def who_publishes(node: Node, topic: str, transport: str) -> str:
    """Return who publishes a topic that a node takes frames from, and the remedy."""
    wanted = _type(Image if transport == 'raw' else CompressedImage)
    publishers = node.get_publishers_info_by_topic(topic)
    fitting = [p for p in publishers if p.topic_type == wanted]
    if fitting:
        return f'{len(fitting)} publish it: {", ".join(map(_describe, fitting[:MOST]))}' \
            f'{_mismatch(node, topic, fitting)}; are they running? see ros2 topic hz {topic}'
    if publishers:
        return f'{_describe(publishers[0])} publishes it as {publishers[0].topic_type}, not as ' \
            f'{wanted}; {_advice(node, topic, transport)}'
    return f'nobody publishes it; {_advice(node, topic, transport)}'


def _advice(node: Node, topic: str, transport: str) -> str:
    """Return what to do where nobody publishes the right type."""
    other = 'compressed' if transport == 'raw' else 'raw'
    beside = topic + SUFFIX if transport == 'raw' else topic.removesuffix(SUFFIX)
    topics = {kind: sorted(
        name for name, types in node.get_topic_names_and_types()
        if _type(kind) in types and node.count_publishers(name)) for kind in
        ((Image, CompressedImage) if transport == 'raw' else (CompressedImage, Image))}
    same, others = topics.values()
    if beside in others:
        return f'{beside} is published: set image_transport to {other}'
    if same:
        return f'images are on {", ".join(same[:MOST])}: remap {topic} to one of these, or set ' \
            'namespace'
    if others:
        return f'{other} images are on {", ".join(others[:MOST])}: set image_transport to ' \
            f'{other}, and remap {beside} to one of these'
    return 'no topic of images is published: is the driver running, with this ROS_DOMAIN_ID?'


def _mismatch(node: Node, topic: str, publishers: list[TopicEndpointInfo]) -> str:
    """Return why a subscription of our nodes does not match a publisher, '' where all do."""
    for mine in node.get_subscriptions_info_by_topic(topic):
        if mine.node_namespace != node.get_namespace() or mine.node_name not in TAKERS:
            continue
        for publisher in publishers:
            fits, why = qos_check_compatible(publisher.qos_profile, mine.qos_profile)
            if fits == QoSCompatibility.ERROR:
                return f'; its QoS does not fit node {mine.node_name} ({why.strip(" ;")}): ' \
                    f'{qos_remedy(topic, mine.qos_profile, publisher.qos_profile)}'
    return ''


def qos_remedy(topic: str, asked: QoSProfile, offered: QoSProfile) -> str:
    """Return which parameter of the subscription to set to what."""
    for policy, weaker in (('reliability', ReliabilityPolicy.BEST_EFFORT),
                           ('durability', DurabilityPolicy.VOLATILE)):
        if getattr(offered, policy) == weaker != getattr(asked, policy):
            return f'set qos_overrides.{topic}.subscription.{policy} to {weaker.name.lower()}, ' \
                'or leave it out'
    return f'set qos_overrides.{topic}.subscription.* to what is offered, or leave it out'


def _describe(publisher: TopicEndpointInfo) -> str:
    qos = publisher.qos_profile
    return f'{publisher.node_namespace.rstrip("/")}/{publisher.node_name} ' \
        f'({qos.reliability.name.lower()}, {qos.durability.name.lower()})'


def _type(kind: type) -> str:
    return f'sensor_msgs/msg/{kind.__name__}'
