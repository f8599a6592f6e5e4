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
Every parameter of every node: one dataclass per node, whose fields are its parameters.

Durations are in seconds unless the name says otherwise. A tuple is a list of strings in ROS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TYPE_CHECKING

from .spec import parameter
from ..method.focus import FocusBackend
from ..method.gate import GateConfig
from ..method.guard import ODDS

if TYPE_CHECKING:
    from ..method.transfer import TransferConfig

Decoding = Literal['constrained', 'free']
EngineKind = Literal['fast', 'generate']
DType = Literal['auto', 'bfloat16', 'float16', 'float32', 'bf16', 'fp16', 'fp32']
Quantization = Literal['none', 'int8', 'int4', 'int8_dynamic', 'auto']
VisionBackend = Literal['auto', 'torch', 'openvino']
DecoderBackendName = Literal['auto', 'torch', 'native']
BoxScale = Literal['relative', 'pixels']
MAX_INT32 = 2**31 - 1
RECORDED = ('video', 'images', 'bag')  # sources of node camera that are files
MADE = ('mini', 'usb', 'stream', *RECORDED)  # and those whose frames it publishes
MAX_ASK_S = 600.0      # time limits of action ask, also where the goal names them [s]
MAX_ASK_TOKENS = 4096  # and its longest answers [tokens]


@dataclass(frozen=True)
class NodeConfig:
    """Parameters of all nodes."""

    autostart: bool = parameter(True, 'configure and activate by itself at start',
                                changeable='at_start')
    diagnostics_hz: float = parameter(1.0, 'messages on /diagnostics per second', 0.1, 10.0,
                                      changeable='at_start')


@dataclass(frozen=True)
class ImageInputConfig(NodeConfig):
    """Parameters of nodes that take frames."""

    image_transport: Literal['raw', 'compressed'] = parameter(
        'raw', 'subscribe to image or to image/compressed; unused where frames are shared in '
        'memory')
    use_cv_bridge: bool = parameter(
        True, 'convert raw images by cv_bridge where that is installed and gives the same pixels '
        'as our own converter, which is faster')


@dataclass(frozen=True)
class RecordingConfig(NodeConfig):
    """Parameters of nodes that can record what they do."""

    record_dir: str = parameter(
        '', 'folder to record to, for spotvlm replay; empty: nothing is recorded')


@dataclass(frozen=True)
class QueriesConfig(NodeConfig):
    """Parameters of nodes that know the standing questions; see also `QueryConfig`."""

    queries: tuple[str, ...] = parameter(
        (), 'ids of the standing questions; each is a group of parameters <id>.*')


@dataclass(frozen=True)
class CameraConfig(ImageInputConfig):
    """Parameters of node camera."""

    source: Literal['mini', 'video', 'images', 'usb', 'stream', 'bag', 'topic'] = parameter(
        'mini', 'where frames come from; stream: a camera on the network; topic: subscribe to '
        'image')
    path: str = parameter(
        '', 'video file, folder of images or of a bag; usb: name of the camera or its path in '
        '/dev/v4l/by-id, empty: device; stream: rtsp:// or http:// address or a pipeline of '
        'GStreamer, or a file of mode 600 that holds one with user and password',
        sources=('usb', 'stream', *RECORDED))
    device: int = parameter(0, 'number of the USB camera', 0, 63, sources=('usb',))
    timeout_s: float = parameter(
        5.0, 'connect a stream anew when it gives no picture for this long [s]; three times as '
        'long at its beginning', 0.2, 600.0, sources=('stream',))
    topic: str = parameter('', 'image topic in the bag; empty: the only one there is',
                           sources=('bag',))
    rate_hz: float = parameter(0.0, 'frames per second, of a stream at most; 0: as recorded (20 '
                               'in the miniature, 10 for images)', 0.0, 240.0, sources=MADE)
    loop: bool = parameter(False, 'start over at the end', sources=RECORDED)
    keep_stamps: bool = parameter(
        False, 'bag only: keep the stamps in the bag instead of restamping to now; needs '
        'use_sim_time with a /clock of the same bag to have meaningful ages', sources=('bag',))
    cameras: tuple[str, ...] = parameter(
        (), 'names of the cameras: frames are on <name>/image; empty: one camera, on image; '
        'several only where source is topic')
    frame_id: str = parameter('camera_optical_frame', 'optical frame of the images (REP-105)',
                              sources=MADE)
    publish_image: Literal['auto', 'always', 'never'] = parameter(
        'auto', 'publish image: auto does while somebody subscribes', changeable='while_running',
        sources=MADE)
    world: Literal['driving', 'hri'] = parameter('driving', 'miniature world to render',
                                                 sources=('mini',))
    seed: int = parameter(1, 'episode of the miniature world', 0, MAX_INT32, sources=('mini',))
    speed: float = parameter(1.0, 'how fast the miniature world goes by, in times its own speed',
                             0.1, 10.0, sources=('mini',))
    condition: str = parameter('', 'weather and light of the miniature world; empty: by seed',
                               sources=('mini',))
    publish_motion: bool = parameter(
        False, 'publish camera_info, and on odom how the camera moves through the miniature '
        'world, for ego_motion of node context', sources=('mini',))
    wait_for_listener_s: float = parameter(
        30.0, 'hold the first frame until node edge listens, at most [s]', 0.0, 600.0,
        sources=MADE)
    exit_when_finished: bool = parameter(
        False, 'end the process when the source has no more frames', changeable='at_start')


@dataclass(frozen=True)
class RemoteEdgeConfig(NodeConfig):
    """Parameters of an edge model that another host of the robot runs."""

    remote_url: str = parameter(
        '', 'OpenAI-compatible server that runs model, on another host of the robot, such as '
        'http://192.168.1.5:8000/v1; empty: this process runs it')
    remote_key_file: str = parameter(
        '', 'file with the API key of remote_url, mode 600; empty: variable SPOTVLM_API_KEY_EDGE')
    remote_plain_key: bool = parameter(
        False, 'let that key go over http to another host; only on a network you trust')
    remote_schema: bool = parameter(
        True, 'ask remote_url for replies that follow a JSON schema; what it refuses is left out. '
        "false: for a model that was trained on the edge's own lines")
    remote_view_side: int = parameter(
        384, 'width and height of the two views of a frame that go to remote_url; best is what '
        'its model takes [pixels]', 32, 2048)
    remote_view_quality: int = parameter(
        90, 'JPEG quality of these views; 0: PNG, without loss', 0, 100)
    remote_extra_body: str = parameter(
        '', 'JSON object, added to the body of each request to remote_url')


@dataclass(frozen=True)
class EdgeConfig(QueriesConfig, RecordingConfig, ImageInputConfig, RemoteEdgeConfig):
    """
    Parameters of node edge; those of the model are what `EdgeModel.load` takes.

    Device, threads, number formats, decoding and engine are of a model in this process.
    """

    model: str = parameter('spot-mini-edge',
                           'name of a shipped checkpoint or folder of another; with '
                           'remote_url, what the server calls it')
    device: str = parameter('cpu', 'torch device to run on, such as cpu or cuda')
    threads: int = parameter(1, 'CPU threads of the model', 1, 64)
    dtype: DType = parameter(
        'auto', 'numbers that the model computes with; auto: as its checkpoint has them, or 32 '
        'bits on a CPU without instructions for 16')
    quantization: Quantization = parameter(
        'none', "bits of the decoder's weights: int8 and int4 take about a half and a quarter of "
        'the memory of 16 bits; int8_dynamic, on a CPU: of its inputs, too, in less time; auto: '
        'int8_dynamic where spotvlm check --accuracy found that it loses no more than 1 point, on '
        'a CPU with instructions for it, else none; what it costs in time and accuracy: spotvlm '
        'check')
    vision_dtype: DType = parameter(
        'auto', 'numbers that the vision tower computes with; auto: as dtype')
    vision_quantization: Quantization = parameter(
        'none', "bits of the vision tower's weights: less memory, and no faster; int8_dynamic, on "
        'a CPU: of its inputs, too, in less time; auto: as for quantization')
    vision_backend: VisionBackend = parameter(
        'auto', 'what runs the vision tower on a CPU; auto: OpenVINO where it is installed, the '
        'tower takes more than 0.1 s, and a short trial shows that it is faster and gives the '
        'same')
    decoder_backend: DecoderBackendName = parameter(
        'auto', 'what runs passes of few tokens through the decoder on a CPU; auto: code that is '
        'compiled for this processor when a model is first loaded, where there is a C compiler '
        'and the decoder is like that of Llama, else torch')
    view_size: int = parameter(
        0, 'width and height of the views of a frame [pixels], where the vision tower takes '
        'several: fewer image tokens, in less time, that show less; 0: as it was trained', 0,
        4096)
    focus_backend: FocusBackend = parameter(
        'crop', 'how focus regions are shown: crop suits every model; tokens leaves out image '
        'tokens; attention favours some')
    decoding: Decoding = parameter(
        'constrained', 'constrained: answers keep to keys and choices; free: the model may say '
        'anything')
    engine: EngineKind = parameter(
        'fast', 'fast: keeps and drafts from frame to frame; generate: transformers as it is, to '
        'compare with')
    use_context: bool = parameter(
        True, 'give the model what the cloud said; false: edge alone', changeable='while_running')
    guard_odds: float = parameter(
        ODDS, 'a value that repeats the context counts when its odds are this many times those of '
        "the edge's own, which takes a second pass where the edge is unsure; 0: one pass, and "
        'context always counts', 0.0, 1000.0)
    calibrate: bool = parameter(
        True, "learn from the cloud's answers, when they come, whom to believe: the edge alone, "
        'the edge with context, or the cloud; false: as weights of a query say, else guard_odds '
        'always')
    calibrate_share: float = parameter(
        0.05, 'share of the frames with context that take a second pass at least, however sure '
        'the edge is, to learn what context is worth there; without time before the deadline they '
        'do without', 0.0, 1.0)
    audit_share: float = parameter(
        0.02, 'share of the answers with context that are given once more without it, to measure '
        'on the robot how often context changes them', 0.0, 1.0)
    audit_truth: bool = parameter(
        False, 'listen to truth, too, and count how often context helps and harms')
    max_start_age_s: float = parameter(
        0.005, 'start only on frames younger than this, measured from arrival [s]', 0.001, 10.0,
        changeable='while_running')
    patience_s: float = parameter(
        0.1, 'take an older frame when no newer one came for this long [s]', 0.0, 10.0,
        changeable='while_running')
    ask_timeout_s: float = parameter(
        5.0, 'time limit of action ask when the goal names none, and how long one answer to it '
        'may hold standing answers up [s]', 0.1, MAX_ASK_S,
        changeable='while_running')
    ask_max_tokens: int = parameter(
        64, 'longest answer of action ask when the goal names no length [tokens]', 1,
        MAX_ASK_TOKENS, changeable='while_running')
    ask_max_frame_age_s: float = parameter(
        2.0, 'action ask answers about no older frame where the goal names no limit, but waits '
        'for a newer one; by stamp and ROS time [s]', 0.01, 1e9, changeable='while_running')
    cameras: tuple[str, ...] = parameter(
        (), 'further cameras that action ask and queries set at run time may be about, beside '
        'those of the queries; their frames come on <name>/image')
    queries_file: str = parameter(
        '', 'YAML that keeps queries set or removed at run time with persist, read at configure; '
        'one for each robot')


@dataclass(frozen=True)
class ServerConfig:
    """
    Parameters of a cloud server.

    In node cloud as they are for the preferred one, as ``fallback.<name>.*`` for others.
    """

    base_url: str = parameter(
        '', 'OpenAI-compatible server, such as http://127.0.0.1:8000/v1; empty, for the preferred '
        'one: see embedded_threads')
    model: str = parameter('spot-mini-cloud', 'model name sent with requests; a shipped '
                           'checkpoint goes as its path')
    api_key_file: str = parameter(
        '', 'file with the API key, mode 600; empty: variable SPOTVLM_API_KEY, of a fallback '
        'SPOTVLM_API_KEY_<NAME>')
    allow_plain_key: bool = parameter(
        False, 'let the API key go over http to another host; only on a network you trust')
    deadline_s: float = parameter(
        20.0, 'give up on a request after [s], or when the longest time to live of its facts is '
        'over', 0.1, 600.0)
    max_tokens: int = parameter(256, 'longest reply [tokens]', 1, 16384)
    max_tokens_field: Literal['max_tokens', 'max_completion_tokens'] = parameter(
        'max_tokens', 'how the server calls that limit')
    temperature: float = parameter(0.0, 'sampling temperature; below 0: not sent', -1.0, 2.0)
    stream: bool = parameter(
        True, 'read replies while they are written, so that one that runs wild ends early; false '
        'costs this process less')
    structured_output: bool = parameter(
        True, 'ask for replies that follow a JSON schema; what a server refuses is left out')
    system_prompt: str = parameter('', 'text of a system message before each question; empty: '
                                   'none is sent')
    reply_form: str = parameter(
        '', 'how a model was trained to be asked for facts, said after the question as the edge '
        "is asked it, without a JSON schema; empty: what reply_form.txt in the model's folder "
        "says, else spotvlm's own words and schema")
    box_scale: BoxScale = parameter(
        'relative', 'boxes in replies: relative (0 to 1000 of the frame, as Qwen3-VL) or pixels '
        'of the image sent (as Qwen2.5-VL)')
    concurrency: int = parameter(
        0, 'requests under way at once at this server; 0: no limit but max_in_flight', 0, 16)
    price_input: float = parameter(0.0, 'price of a million tokens sent, images included', 0.0,
                                   1e6)
    price_output: float = parameter(0.0, 'price of a million tokens of replies', 0.0, 1e6)
    price_request: float = parameter(0.0, 'price of a request', 0.0, 1e6)
    extra_body: str = parameter('', 'JSON object, added to the body of each request')


@dataclass(frozen=True)
class RequestConfig:
    """How many requests are made."""

    max_in_flight: int = parameter(
        2, 'requests under way at once, at most: fewer where the round trips allow', 1, 16,
        changeable='while_running')
    retries: int = parameter(2, 'tries after a failed one, each about the newest frame', 0, 10)
    paused: bool = parameter(
        False, 'send no keyframes; what is under way is still answered',
        changeable='while_running')


@dataclass(frozen=True)
class KeyframeConfig:
    """Limits on the images that leave the robot."""

    max_side: int = parameter(
        0, 'shrink keyframes to this many pixels on the long side; 0: never', 0, 8192)
    jpeg_quality: int = parameter(85, 'JPEG quality of keyframes', 10, 100)
    max_image_bytes: int = parameter(
        0, 'lower quality, then size, of keyframes until they have at most this many bytes; 0: '
        'never', 0, MAX_INT32)
    privacy_masks: tuple[str, ...] = parameter(
        (), "parts that never leave the robot, each '<left> <top> <right> <bottom>' or the "
        'corners of a polygon, 0 to 1 of width and height')
    keep_metadata: bool = parameter(
        False, "send what a camera's own JPEG says about place, camera and time (EXIF and the "
        'like); the picture is the same without')


@dataclass(frozen=True)
class EmulatedDelayConfig:
    """A delay added to real round trips, labelled as such."""

    emulated_delay_median_s: float = parameter(
        0.0, 'delay added to each reply on purpose, lognormal [s]; 0: none', 0.0, 600.0,
        changeable='while_running')
    emulated_delay_sigma: float = parameter(0.4, 'spread of the added delay', 0.0, 3.0)
    emulated_delay_seed: int = parameter(0, 'makes the added delays repeatable', 0, MAX_INT32)


@dataclass(frozen=True)
class CloudNodeConfig(RequestConfig, KeyframeConfig, EmulatedDelayConfig, QueriesConfig,
                      ImageInputConfig, ServerConfig):
    """Parameters of node cloud; those of its preferred server are among them."""

    fallbacks: tuple[str, ...] = parameter(
        (), 'names of servers to ask, in this order, while the preferred one fails; each is a '
        'group of parameters fallback.<name>.*')
    embedded_threads: int = parameter(
        0, 'where base_url is empty: serve model, a checkpoint folder, on this machine with this '
        'many CPU threads; 0: an empty base_url is an error', 0, 64)
    cut_below: float = parameter(
        0.4, 'a frame that correlates less than this with one shortly before brings the next '
        'keyframe forward (scene cut); -1: never', -1.0, 1.0, changeable='while_running')
    unsure_below: float = parameter(
        0.5, 'a fact of the edge with less confidence brings the next keyframe of its query '
        'forward; 0: never', 0.0, 1.0, changeable='while_running')
    budget_mb_per_hour: float = parameter(
        0.0, 'megabytes sent and received per hour; 0: no limit', 0.0, 1e6)
    budget_tokens_per_hour: int = parameter(
        0, 'tokens per hour, prompts and replies; 0: no limit', 0, MAX_INT32)
    budget_money_per_hour: float = parameter(
        0.0, 'money per hour, in the currency of the prices; 0: no limit', 0.0, 1e6)


@dataclass(frozen=True)
class ContextNodeConfig(QueriesConfig, RecordingConfig, ImageInputConfig):
    """Parameters of node context."""

    rate_hz: float = parameter(
        2.0, 'context is published again this often, with every frame that focus regions were '
        'carried to, and at once when the cloud answered', 0.1, 50.0)
    flow_hz: float = parameter(
        5.0, 'focus regions are carried to the present frame this often; 0: they stay where the '
        'cloud saw them', 0.0, 60.0)
    age_limit_s: float = parameter(
        12.0, 'no fact older than this is told, whatever its time to live [s]', 0.1, 86400.0)
    changed_below: float = parameter(
        0.0, 'a fact is not told when its region correlates less than this with how the cloud saw '
        'it; -1: never', -1.0, 1.0)
    cut_below: float = parameter(
        0.4, 'all facts are dropped when a frame correlates less than this with the last one '
        '(scene cut); -1: never', -1.0, 1.0)

    ego_motion: Literal['none', 'odometry', 'tf'] = parameter(
        'none', 'turns of the camera are known from camera_info, with topic odom or tf: regions '
        'outlast turns too fast for optical flow, and times out of view')
    ego_frame: str = parameter('odom', 'ego_motion tf: frame that stands still')
    ego_mount: str = parameter(
        '0 0 0', 'ego_motion odometry: how the camera is fixed to its child frame: roll, pitch, '
        'yaw of x ahead, z up [rad]')
    ego_rectified: bool = parameter(
        False, 'image is rectified: P of camera_info holds, not K and D')

    @property
    def transfer(self) -> TransferConfig:
        """Return these as the rules of the method."""
        from ..method.transfer import TransferConfig  # slow to import
        return TransferConfig(
            carry=self.flow_hz > 0,
            gate=GateConfig(age_limit_s=self.age_limit_s, changed_below=self.changed_below,
                            cut_below=self.cut_below))


@dataclass(frozen=True)
class QueryConfig:
    """Parameters of one standing question, as ``<id>.*``; `method.facts.Query` is made of it."""

    prompt: str = parameter('', 'the question in plain words')
    format: Literal['facts', 'choice', 'text'] = parameter(  # noqa: A003
        'facts', 'facts: one value per key; choice: one of choices; text: free')
    keys: tuple[str, ...] = parameter((), 'facts only: names of the facts')
    choices: tuple[str, ...] = parameter((), 'choice only: the allowed answers')
    rate_hz: float = parameter(5.0, 'wanted answers per second', 0.01, 100.0)
    deadline_s: float = parameter(
        0.5, 'an answer is cut short this long after its frame came, and one that is complete '
        'only later carries ERROR_TIMEOUT [s]', 0.01, 600.0)
    cloud_period_s: float = parameter(
        1.0, 'least time between keyframes for this query [s]; 0: never ask the cloud', 0.0,
        3600.0)
    max_new_tokens: int = parameter(64, 'longest edge answer [tokens]', 1, 4096)
    context_tokens: int = parameter(
        256, 'longest history in the prompt, oldest facts dropped first [tokens]', 0, 16384)
    camera: str = parameter(
        '', 'camera that the question is about: its frames come on <camera>/image; empty: on '
        'image')
    harm_at_most: float = parameter(
        1.0, 'share of facts that may be right without context and wrong in the answer, measured '
        "by the cloud's later answers; where there is more, the edge alone is believed more; "
        '1: no bound', 0.0, 1.0)
    cautious: bool = parameter(
        False, 'with harm_at_most: believe the edge alone more from the beginning, until 3 / '
        "harm_at_most of the cloud's answers have shown no harm")
    cloud_prompt: str = parameter('', 'the question as the cloud is asked it; empty: prompt')
    cloud_examples: tuple[str, ...] = parameter(
        (), 'lines that follow the question to the cloud under "Examples:"')
    language: str = parameter(
        '', 'text only: language that the cloud answers in, as in German; empty: not said')


NODE_CONFIGS: Mapping[str, type[NodeConfig]] = MappingProxyType({
    'camera': CameraConfig, 'edge': EdgeConfig, 'cloud': CloudNodeConfig,
    'context': ContextNodeConfig})
