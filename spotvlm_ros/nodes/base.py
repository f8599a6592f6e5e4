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
"""What all four nodes share: lifecycle, diagnostics, clock jumps, QoS."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
import threading
import traceback
from typing import ParamSpec, TypeVar

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.lifecycle import LifecyclePublisher, LifecycleState, TransitionCallbackReturn
from rclpy.qos import (DurabilityPolicy, qos_policy_name_from_kind, qos_profile_sensor_data,
                       QoSPolicyKind, QoSProfile, ReliabilityPolicy)
from rclpy.qos_overriding_options import QoSOverridingOptions
from typing_extensions import Unpack  # Python 3.10 has none

from .distribution import (
    PublisherEventCallbacks, QoSMessageLostInfo, QoSOfferedIncompatibleQoSInfo,
    QoSRequestedIncompatibleQoSInfo, SubscriptionEventCallbacks, UnsupportedEventTypeError)
from .health import ERROR, Problems, Trouble
from .parameters import Config, NodeOptions, ParameterNode

JUMP_FORWARD_S = 5.0  # a clock that skips more than this has been restarted
DOUBLES_S = 3.0       # other graphs and cameras are looked for this often
SENSOR = QoSProfile(depth=1, reliability=qos_profile_sensor_data.reliability,
                    durability=qos_profile_sensor_data.durability)
RELIABLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
QOS_OVERRIDES = 'qos_overrides.'
LINGERING = '(one that was killed is seen for 20 s more)'
M = TypeVar('M')  # a message
P = ParamSpec('P')
Report = dict[str, str | float]


def latched(depth: int) -> QoSProfile:
    """Return the profile for state that late joiners must get."""
    return QoSProfile(depth=depth, reliability=ReliabilityPolicy.RELIABLE,
                      durability=DurabilityPolicy.TRANSIENT_LOCAL)


class SpotNode(ParameterNode[Config]):
    """
    A lifecycle node that counts and tells what goes wrong.

    Subclasses give ``setup`` (configure), ``start`` (activate), ``stop`` (deactivate) and
    ``release`` (cleanup). An Exception that one of them raises fails the transition, whatever its
    type: it is logged and kept in ``last_failure``; what configure and activate had begun is
    undone. Callbacks of `subscribe` and `call_every` may raise, too: that is a counted problem.
    All these run on the thread of the executor. What else a subclass gives to rclpy, and `report`
    and `troubles`, must not raise: the executor would print a traceback and go on.
    """

    def __init__(self, name: str, config: type[Config],
                 **options: Unpack[NodeOptions]) -> None:
        """Declare the parameters of ``config`` and start diagnostics."""
        super().__init__(name, config, **options)
        self.failure = ''       # why the work ended early; empty when it did not
        self.closing = threading.Event()  # the process ends: what waits has to give up
        self._active = False
        self._at_stop: list[Callable[[], object]] = []  # undo what start() made
        self._advertised: list[LifecyclePublisher] = []
        self._problems = Problems(self.get_logger().warning)
        self.problem_counts = self._problems.counts  # by kind, for diagnostics
        self.hold_problem = self._problems.hold      # what goes on, until it is over
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._diagnostics_timer = self.create_timer(1.0 / self.config.diagnostics_hz,
                                                    self._diagnose, clock=self._steady)
        self.create_timer(DOUBLES_S, self.counting_errors(self._look_for_namesakes),
                          clock=self._steady)
        self._jumps = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=Duration(seconds=JUMP_FORWARD_S),
                          min_backward=Duration(nanoseconds=-1), on_clock_change=True),
            post_callback=self._on_jump)

    # For subclasses

    configured_first = False  # in its process: what it starts goes on while others load

    def setup(self) -> None:
        """Read parameters, create publishers, load models."""

    def start(self) -> None:
        """Subscribe and begin work; what `call_at_stop` is given is called before ``stop``."""

    def stop(self) -> None:
        """End work; called more than once."""

    def release(self) -> None:
        """Free memory; called more than once."""

    def clock_jumped(self) -> None:
        """Forget everything that depends on ROS time, which has jumped."""

    def report(self) -> Report:
        """Return what /diagnostics shows, by key."""
        return {}

    def troubles(self) -> Iterable[Trouble]:
        """Return what keeps the active node from its job, the cause first."""
        return ()

    def setting(self) -> str:
        """Return what the configured node is set up with, for one line of the log."""
        return ''

    def traffic(self) -> str:
        """Return what the active node takes and gives, for one line of the log."""
        return ''

    @property
    def ended(self) -> bool:
        """Whether the work is over and the process is to end."""
        return False

    @property
    def idle(self) -> bool:
        """Whether nothing is under way that the end of the process should wait for."""
        return True

    # For subclasses to use

    def call_at_stop(self, undo: Callable[[], object]) -> None:
        """Call ``undo`` on deactivate, last given first called."""
        self._at_stop.append(undo)

    def advertise(self, kind: type, topic: str, qos: QoSProfile) -> LifecyclePublisher:
        """Create a publisher until cleanup, silent while the node is inactive."""
        def incompatible(event: QoSOfferedIncompatibleQoSInfo) -> None:
            policy = qos_policy_name_from_kind(event.last_policy_kind).lower()
            self.count_problem(
                'qos_mismatch', f'a subscriber of {publisher.topic_name} asks for another '
                f'{policy} than is offered and gets nothing; have it ask for less, or set '
                f'qos_overrides.{publisher.topic_name}.publisher.{policy}')
        publisher = self.create_lifecycle_publisher(
            kind, topic, qos, qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            event_callbacks=PublisherEventCallbacks(incompatible_qos=incompatible))
        self._advertised.append(publisher)
        return publisher

    def subscribe(self, kind: type[M], topic: str, qos: QoSProfile, callback: Callable[[M], None],
                  on_mismatch: Callable[[], None] | None = None) -> Callable[[], object]:
        """
        Subscribe until deactivate, or until what is returned is called.

        A callback that raises is a counted problem, and so is a publisher whose QoS does not fit,
        unless ``on_mismatch`` deals with that: then users cannot override the reliability.
        """
        def incompatible(event: QoSRequestedIncompatibleQoSInfo) -> None:
            name = subscription.topic_name
            if on_mismatch is not None and event.last_policy_kind == QoSPolicyKind.RELIABILITY:
                on_mismatch()
                return
            policy = qos_policy_name_from_kind(event.last_policy_kind).lower()
            self.count_problem(
                'qos_mismatch', f'a publisher on {name} offers another {policy} than is asked '
                f'for; see ros2 topic info -v {name}, and set '
                f'qos_overrides.{name}.subscription.{policy} to what it offers')

        def lost(event: QoSMessageLostInfo) -> None:
            self.problem_counts['messages_lost'] += event.total_count_change
        policies = QoSOverridingOptions.with_default_policies().policy_kinds
        create = partial(
            self.create_subscription, kind, topic, self.counting_errors(callback), qos,
            qos_overriding_options=QoSOverridingOptions(
                [p for p in policies if on_mismatch is None or p != QoSPolicyKind.RELIABILITY]))
        try:
            subscription = create(event_callbacks=SubscriptionEventCallbacks(
                incompatible_qos=incompatible, message_lost=lost))
        except UnsupportedEventTypeError:  # not every middleware tells what was lost
            subscription = create(event_callbacks=SubscriptionEventCallbacks(
                incompatible_qos=incompatible))
        undo = partial(self.destroy_subscription, subscription)
        self.call_at_stop(undo)
        return undo

    def overrides_reliability(self, topic: str) -> bool:
        """Return whether the user says how reliably to subscribe to a topic, by its whole name."""
        return f'{QOS_OVERRIDES}{topic}.subscription.reliability' in self._parameter_overrides

    def call_every(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call until deactivate, by the steady clock."""
        timer = self.create_timer(seconds, self.counting_errors(callback), clock=self._steady)
        self.call_at_stop(lambda: self.destroy_timer(timer))

    def counting_errors(self, callback: Callable[P, object]) -> Callable[P, None]:
        """Return a callback that counts its errors as problems and never raises."""
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                callback(*args, **kwargs)
            except Exception as error:
                self.count_error('callback_errors', error)
        return wrapper

    def count_error(self, kind: str, error: Exception) -> str:
        """Count an exception that is being handled as a problem; return it in one line."""
        text = f'{type(error).__name__}: {error}'
        self.count_problem(kind, text)
        self.get_logger().debug(traceback.format_exc())
        return text

    def count_problem(self, kind: str, text: str = '') -> None:
        """
        Count something that went wrong under ``kind``, a key of /diagnostics.

        ``text`` with its remedy is shown there for ten seconds, and logged now and then.
        """
        self._problems.count(kind, text)

    @property
    def newest_problem(self) -> str:
        """Return what was counted last, with its remedy."""
        return self._problems.newest

    def look_for_publishers(self, topic: str) -> None:
        """Say when a topic that one node should publish has more publishers."""
        nodes = sorted(f'{info.node_namespace.rstrip("/")}/{info.node_name}'
                       for info in self.get_publishers_info_by_topic(topic))
        self.hold_problem('several_publishers', len(nodes) > 1 and (
            f'{len(nodes)} publish {topic}: {", ".join(nodes[:8])}; their images are mixed: stop '
            f'or remap all but one, or give each a namespace {LINGERING}') or '', topic)

    def now_ns(self) -> int:
        """Return ROS time; 0 until the first /clock where sim time is used."""
        return int(self.get_clock().now().nanoseconds)

    @property
    def active(self) -> bool:
        """Whether the node is activated."""
        return self._active

    # Lifecycle

    def autostart(self, active: bool) -> bool:
        """Configure, or else activate, if the parameter says so; return whether that worked."""
        if not self.config.autostart and not self._param_errors:
            return True
        change = self.trigger_activate if active else self.trigger_configure
        return bool(change() == TransitionCallbackReturn.SUCCESS)

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load what the node needs."""
        if self._param_errors:
            self.last_failure = next(iter(self._param_errors.values()))
            self.get_logger().error(self.last_failure)
            return TransitionCallbackReturn.FAILURE
        return self._transition('configure', self.setup, self._release,
                                lambda: super(SpotNode, self).on_configure(state), self.setting)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin work."""
        def begin() -> None:
            super(SpotNode, self).on_activate(state)
            self._active = True
            self.start()
            self._tell_unused_overrides()
        return self._transition('activate', begin, self._end, tell=self.traffic)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End work, keep models."""
        return self._transition('deactivate', self._end,
                                after=lambda: super(SpotNode, self).on_deactivate(state))

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free memory."""
        return self._transition('cleanup', self._release,
                                after=lambda: super(SpotNode, self).on_cleanup(state))

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End work and free memory."""
        self.close()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Go back to unconfigured, so that another configure can be tried."""
        self.close()
        return TransitionCallbackReturn.SUCCESS

    def close(self) -> None:
        """End work and free memory, whatever the state; safe to call again."""
        for step in (self._end, self._release):
            self.counting_errors(step)()

    def _transition(self, name: str, step: Callable[[], None],
                    undo: Callable[[], None] | None = None,
                    after: Callable[[], object] = lambda: None,
                    tell: Callable[[], str] | None = None) -> TransitionCallbackReturn:
        try:
            step()
            after()
            self.last_failure = ''
            if tell is not None:
                self.get_logger().info(f'{name}d: {tell()}')
            return TransitionCallbackReturn.SUCCESS
        except Exception as error:
            kind = '' if isinstance(error, (OSError, ValueError)) else f'{type(error).__name__}: '
            self.last_failure = f'{name}: {kind}{error}'
            self.get_logger().error(self.last_failure)
            self.get_logger().debug(traceback.format_exc())
        if undo is not None:
            self.counting_errors(undo)()
        return TransitionCallbackReturn.FAILURE

    def _end(self) -> None:
        self._active = False
        self._problems.end_standing()
        while self._at_stop:
            self.counting_errors(self._at_stop.pop())()
        self.stop()

    def _release(self) -> None:
        self.release()
        while self._advertised:
            self.destroy_lifecycle_publisher(self._advertised.pop())

    def _tell_unused_overrides(self) -> None:
        """Name what the user says of topics that the node has not: ROS says nothing of it."""
        declared = [name for name in self._parameters if name.startswith(QOS_OVERRIDES)]
        has = sorted({name.removeprefix(QOS_OVERRIDES).rpartition('.')[0] for name in declared})
        for name in sorted(self._parameter_overrides.keys() - declared):
            if name.startswith(QOS_OVERRIDES):
                self.count_problem('qos_without_effect', f'{name} has no effect: the node has '
                                   f'only {", ".join(has)}; where nodes share a process, images '
                                   'are taken by node camera: set it there')

    # Other graphs, clock and diagnostics

    def _look_for_namesakes(self) -> None:
        """Say when another node has this one's name: a second graph in the namespace."""
        me = (self.get_name(), self.get_namespace())
        count = self.get_node_names_and_namespaces().count(me)
        self.hold_problem('same_name', count > 1 and (
            f'{count} nodes are {self.get_fully_qualified_name()}: a second graph runs in this '
            f'namespace, and answers of both are mixed; stop one or give it another {LINGERING}')
            or '')

    def _on_jump(self, jump: TimeJump) -> None:
        self.count_problem('clock_jumps')
        self.counting_errors(self.clock_jumped)()

    def _troubles(self) -> Iterator[Trouble]:
        """Yield all that is wrong; where the node is not active, why, and the way there."""
        state = self._state_machine.current_state[1]
        step = {'inactive': 'activate', 'active': 'deactivate'}.get(state, 'configure')
        remedy = f'ros2 lifecycle set {self.get_fully_qualified_name()} {step}'
        if self._param_errors:
            name, text = next(iter(self._param_errors.items()))
            fixed = self._specs[name].changeable == 'at_start'
            yield Trouble(f'{text}; mend that and start the node again' if fixed else
                          f'{text}; ros2 param set {self.get_fully_qualified_name()} {name} '
                          f'VALUE, then {remedy}', ERROR)
        elif self.last_failure:
            yield Trouble(f'{state}: {self.last_failure}; mend that, then {remedy}', ERROR)
        elif not self._active:
            yield Trouble(f'{state}: it does nothing before {remedy}'
                          + (' and activate' if step == 'configure' else ''))
        else:
            if self.failure:
                yield Trouble(self.failure, ERROR)
            yield from self.troubles()
        yield from self._problems.troubles()

    def _diagnose(self) -> None:
        values = {'state': self._state_machine.current_state[1], **self.report(),
                  **self.problem_counts}
        troubles = sorted(self._troubles(), key=lambda trouble: trouble.level, reverse=True)
        text = ''
        for trouble in troubles:
            if trouble.text not in text:
                text += '; ' * bool(text) + trouble.text
        message = DiagnosticArray()
        message.header.stamp = self.get_clock().now().to_msg()
        message.status = [DiagnosticStatus(
            level=troubles[0].level if troubles else DiagnosticStatus.OK,
            name=self.get_fully_qualified_name().lstrip('/'),
            message=text or 'ok',
            hardware_id='spotvlm',
            values=[KeyValue(key=k, value=f'{v:.4g}' if isinstance(v, float) else str(v))
                    for k, v in values.items()])]
        self._diagnostics.publish(message)
