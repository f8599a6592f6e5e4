# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0
"""
Every parameter of every node, declared once.

The tables below are the only place that names a parameter: nodes declare from them, params files
are checked against them, and the table in the README is made of them. No ROS is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
import difflib
from pathlib import Path
from typing import Any, Literal

import yaml

from ..method.facts import Query
from ..method.guard import ODDS
from ..system.markdown import table

When = Literal['start', 'configure', 'run']  # when a change is accepted; start: never after it


class ParamError(ValueError):
    """A parameter that cannot be used; the message names it and the remedy."""


@dataclass(frozen=True)
class Param:
    """One parameter; the default's type is its type. An empty list holds strings."""

    name: str
    default: Any
    description: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    when: When = 'configure'

    def check(self, value: Any, name: str = '') -> Any:
        """Return the value, whole numbers widened to floats where one is wanted, or raise."""
        name = name or self.name
        kind = type(self.default)
        if kind is float and type(value) is int:
            value = float(value)
        if kind is list:
            value = list(value) if isinstance(value, (list, tuple)) else value
            odd = [v for v in value if not isinstance(v, str)] if type(value) is list else [value]
            if odd:
                raise ParamError(f'{name} must be a list of strings, got {value!r}; put quotes '
                                 f"around numbers, yes and no, as in ['{odd[0]}']")
            return value
        if type(value) is not kind:
            raise ParamError(f'{name} must be {_KINDS[kind]}, got {value!r}')
        if self.choices and value not in self.choices:
            raise ParamError(f'{name} is {value!r}; use one of {", ".join(self.choices)}')
        if not (self.low is None or value >= self.low) or \
                not (self.high is None or value <= self.high):
            raise ParamError(f'{name} is {value}; use {self.allowed}')
        return value

    @property
    def allowed(self) -> str:
        """Return the range in words, '' without one."""
        if self.choices:
            return ', '.join(self.choices)
        if self.high is not None:
            return f'{self.low:g} to {self.high:.10g}'
        return '' if self.low is None else f'at least {self.low:g}'


_KINDS = {str: 'a string', bool: 'true or false', int: 'a whole number', float: 'a number'}

COMMON = (
    Param('autostart', True, 'configure and activate by itself at start', when='start'),
    Param('diagnostics_hz', 1.0, 'messages on /diagnostics per second', 0.1, 10.0, when='start'),
)
INPUT = (
    Param('image_transport', 'raw', 'subscribe to image or to image/compressed; unused where '
          'frames are shared in memory', choices=('raw', 'compressed')),
)
RECORD = (
    Param('record_dir', '', 'folder to record to, for spotvlm replay; empty: nothing is recorded'),
)
QUERIES = (
    Param('queries', [], 'ids of the standing questions; each is a group of parameters <id>.*'),
)
CAMERA = (
    Param('source', 'mini', 'where frames come from; topic: subscribe to image',
          choices=('mini', 'video', 'images', 'usb', 'bag', 'topic')),
    Param('path', '', 'video file, folder of images or of a bag'),
    Param('device', 0, 'number of the USB camera', 0, 63),
    Param('topic', '', 'image topic in the bag; empty: the only one there is'),
    Param('rate_hz', 0.0, 'frames per second; 0: as recorded (20 in the miniature, 10 for '
          'images)', 0.0, 240.0),
    Param('loop', False, 'start over at the end'),
    Param('keep_stamps', False, 'bag only: keep the stamps in the bag instead of restamping to '
          'now; needs use_sim_time with a /clock of the same bag to have meaningful ages'),
    Param('cameras', [], 'names of the cameras: frames are on <name>/image; empty: one camera, on '
          'image; several only where source is topic'),
    Param('frame_id', 'camera_optical_frame', 'optical frame of the images (REP-105)'),
    Param('publish_image', 'auto', 'publish image: auto does while somebody subscribes',
          choices=('auto', 'always', 'never'), when='run'),
    Param('world', 'driving', 'miniature world to render', choices=('driving', 'hri')),
    Param('seed', 1, 'episode of the miniature world', 0, 2**31 - 1),
    Param('condition', '', 'weather and light of the miniature world; empty: by seed'),
    Param('wait_for_listener_s', 30.0, 'hold the first frame until node edge listens, at most '
          '[s]', 0.0, 600.0),
    Param('exit_when_finished', False, 'end the process when the source has no more frames',
          when='start'),
    *INPUT,
)
EDGE = (
    Param('model', 'spot-mini-edge', 'name of a shipped checkpoint or folder of another'),
    Param('device', 'cpu', 'torch device to run on, such as cpu or cuda'),
    Param('threads', 1, 'CPU threads of the model', 1, 64),
    Param('focus_backend', 'crop', 'how focus regions are shown: crop suits every model; tokens '
          'leaves out image tokens; attention favours some', choices=('crop', 'tokens',
                                                                      'attention')),
    Param('decoding', 'constrained', 'constrained: answers keep to keys and choices; free: the '
          'model may say anything', choices=('constrained', 'free')),
    Param('engine', 'fast', 'fast: keeps and drafts from frame to frame; generate: transformers '
          'as it is, to compare with', choices=('fast', 'generate')),
    Param('use_context', True, 'give the model what the cloud said; false: edge alone',
          when='run'),
    Param('guard_odds', ODDS, 'a value that repeats the context counts when its odds are this '
          "many times those of the edge's own, which takes a second pass where the edge is "
          'unsure; 0: one pass, and context always counts', 0.0, 1000.0),
    Param('audit_share', 0.02, 'share of the answers with context that are given once more '
          'without it, to measure on the robot how often context changes them', 0.0, 1.0),
    Param('audit_truth', False, 'listen to truth, too, and count how often context helps and '
          'harms'),
    Param('max_start_age_s', 0.005, 'start only on frames younger than this, measured from '
          'arrival [s]', 0.001, 10.0, when='run'),
    Param('patience_s', 0.1, 'take an older frame when no newer one came for this long [s]', 0.0,
          10.0, when='run'),
    Param('ask_timeout_s', 5.0, 'time limit of action ask when the goal names none [s]', 0.1,
          600.0, when='run'),
    Param('ask_max_tokens', 64, 'longest answer of action ask when the goal names no length '
          '[tokens]', 1, 4096, when='run'),
    *INPUT, *RECORD, *QUERIES,
)
# A server; in node cloud as they are for the preferred one, as fallback.<name>.* for others.
ENDPOINT = (
    Param('base_url', '', 'OpenAI-compatible server, such as http://127.0.0.1:8000/v1; empty, '
          'for the preferred one: spotvlm run starts an embedded one'),
    Param('model', 'spot-mini-cloud', 'model name sent with requests; a shipped checkpoint goes '
          'as its path'),
    Param('api_key_file', '', 'file with the API key, mode 600; empty: variable SPOTVLM_API_KEY, '
          'of a fallback SPOTVLM_API_KEY_<NAME>'),
    Param('allow_plain_key', False, 'let the API key go over http to another host; only on a '
          'network you trust'),
    Param('deadline_s', 20.0, 'give up on a request after [s], or when the longest time to live '
          'of its facts is over', 0.1, 600.0),
    Param('max_tokens', 256, 'longest reply [tokens]', 1, 16384),
    Param('max_tokens_field', 'max_tokens', 'how the server calls that limit',
          choices=('max_tokens', 'max_completion_tokens')),
    Param('temperature', 0.0, 'sampling temperature; below 0: not sent', -1.0, 2.0),
    Param('stream', True, 'read replies while they are written, so that one that runs wild ends '
          'early; false costs this process less'),
    Param('structured_output', True, 'ask for replies that follow a JSON schema; what a server '
          'refuses is left out'),
    Param('box_scale', 'relative', 'boxes in replies: relative (0 to 1000 of the frame, as '
          'Qwen3-VL) or pixels of the image sent (as Qwen2.5-VL)',
          choices=('relative', 'pixels')),
    Param('concurrency', 0, 'requests under way at once at this server; 0: no limit but '
          'max_in_flight', 0, 16),
    Param('price_input', 0.0, 'price of a million tokens sent, images included', 0.0, 1e6),
    Param('price_output', 0.0, 'price of a million tokens of replies', 0.0, 1e6),
    Param('price_request', 0.0, 'price of a request', 0.0, 1e6),
    Param('extra_body', '', 'JSON object, added to the body of each request'),
)
CLOUD = (
    *ENDPOINT,
    Param('fallbacks', [], 'names of servers to ask, in this order, while the preferred one '
          'fails; each is a group of parameters fallback.<name>.*'),
    Param('max_in_flight', 2, 'requests under way at once, at most: fewer where the round trips '
          'allow', 1, 16, when='run'),
    Param('cut_below', 0.4, 'a frame that correlates less than this with one shortly before '
          'brings the next keyframe forward (scene cut); -1: never', -1.0, 1.0, when='run'),
    Param('unsure_below', 0.5, 'a fact of the edge with less confidence brings the next keyframe '
          'of its query forward; 0: never', 0.0, 1.0, when='run'),
    Param('retries', 2, 'tries after a failed one, each about the newest frame', 0, 10),
    Param('max_side', 0, 'shrink keyframes to this many pixels on the long side; 0: never', 0,
          8192),
    Param('jpeg_quality', 85, 'JPEG quality of keyframes', 10, 100),
    Param('max_image_bytes', 0, 'lower quality, then size, of keyframes until they have at most '
          'this many bytes; 0: never', 0, 2**31 - 1),
    Param('privacy_masks', [], "parts that never leave the robot, each '<left> <top> <right> "
          "<bottom>' or the corners of a polygon, 0 to 1 of width and height"),
    Param('budget_mb_per_hour', 0.0, 'megabytes sent and received per hour; 0: no limit', 0.0,
          1e6),
    Param('budget_tokens_per_hour', 0, 'tokens per hour, prompts and replies; 0: no limit', 0,
          2**31 - 1),
    Param('budget_money_per_hour', 0.0, 'money per hour, in the currency of the prices; 0: no '
          'limit', 0.0, 1e6),
    Param('emulated_delay_median_s', 0.0, 'delay added to each reply on purpose, lognormal [s]; '
          '0: none', 0.0, 600.0),
    Param('emulated_delay_sigma', 0.4, 'spread of the added delay', 0.0, 3.0),
    Param('emulated_delay_seed', 0, 'makes the added delays repeatable', 0, 2**31 - 1),
    *INPUT, *QUERIES,
)
CONTEXT = (
    Param('rate_hz', 2.0, 'context is published again this often, with every frame that focus '
          'regions were carried to, and at once when the cloud answered', 0.1, 50.0),
    Param('flow_hz', 5.0, 'focus regions are carried to the present frame this often; 0: they '
          'stay where the cloud saw them', 0.0, 60.0),
    Param('age_limit_s', 12.0, 'no fact older than this is told, whatever its time to live [s]',
          0.1, 86400.0),
    Param('changed_below', 0.0, 'a fact is not told when its region correlates less than this '
          'with how the cloud saw it; -1: never', -1.0, 1.0),
    Param('cut_below', 0.4, 'all facts are dropped when a frame correlates less than this with '
          'the last one (scene cut); -1: never', -1.0, 1.0),
    *INPUT, *RECORD, *QUERIES,
)
TABLES: Mapping[str, tuple[Param, ...]] = {
    'camera': (*COMMON, *CAMERA), 'edge': (*COMMON, *EDGE),
    'cloud': (*COMMON, *CLOUD), 'context': (*COMMON, *CONTEXT)}

QUERY = (
    Param('prompt', '', 'the question in plain words'),
    Param('format', 'facts', 'facts: one value per key; choice: one of choices; text: free',
          choices=('facts', 'choice', 'text')),
    Param('keys', [], 'facts only: names of the facts'),
    Param('choices', [], 'choice only: the allowed answers'),
    Param('rate_hz', 5.0, 'wanted answers per second', 0.01, 100.0),
    Param('deadline_s', 0.5, 'an answer is cut short this long after its frame [s]', 0.01, 600.0),
    Param('cloud_period_s', 1.0, 'least time between keyframes for this query [s]; 0: never '
          'ask the cloud', 0.0, 3600.0),
    Param('max_new_tokens', 64, 'longest edge answer [tokens]', 1, 4096),
    Param('context_tokens', 256, 'longest history in the prompt, oldest facts dropped first '
          '[tokens]', 0, 16384),
    Param('camera', '', 'camera that the question is about: its frames come on <camera>/image; '
          'empty: on image'),
)
CHOICES = Param('choices.<key>', [], 'facts only: the allowed values of a fact, quoted strings')
TTL = Param('ttl_s.<key>', 5.0, 'a cloud fact is forgotten after [s]; key default for the '
            'others', 0.01, 86400.0)

Get = Callable[[Param, str], Any]  # table entry and full name -> checked value


def read_queries(get: Get) -> tuple[Query, ...]:
    """Build the queries from parameters that ``get`` looks up; raise ParamError."""
    ids = get(QUERIES[0], 'queries')
    if not ids:
        raise ParamError("queries is empty; name at least one, as in queries: ['scene'], and "
                         'describe it under scene.prompt, scene.format and so on')
    if len(set(ids)) != len(ids):
        raise ParamError(f'queries names one twice: {ids}')
    return tuple(_read_query(query_id, get) for query_id in ids)


def _read_query(query_id: str, get: Get) -> Query:
    plain = {p.name: get(p, f'{query_id}.{p.name}') for p in QUERY
             if p.name not in ('keys', 'choices')}
    if not plain['prompt']:
        raise ParamError(f'{query_id}.prompt is empty; write the question there')
    choices: dict[str, tuple[str, ...]] = {}
    if plain['format'] == 'facts':
        keys = get(_by_name(QUERY, 'keys'), f'{query_id}.keys')
        if not keys:
            raise ParamError(f'{query_id}.keys is empty; name the facts wanted')
        choices = {k: tuple(get(CHOICES, f'{query_id}.choices.{k}')) for k in keys}
    elif plain['format'] == 'choice':
        choices = {query_id: tuple(get(_by_name(QUERY, 'choices'), f'{query_id}.choices'))}
    ttl = {k: get(TTL, f'{query_id}.ttl_s.{k}') for k in (*choices, 'default')}
    default = ttl['default']
    ttl = {k: default if v is None else v for k, v in ttl.items()}
    try:
        return Query(id=query_id, choices=choices,
                     ttl_s={k: TTL.default if v is None else v for k, v in ttl.items()}, **plain)
    except ValueError as error:
        raise ParamError(str(error)) from error


def fallback_name(name: str, param: str) -> str:
    """Return the full name of a parameter of a fallback server."""
    return f'fallback.{name}.{param}'


def _by_name(table: Iterable[Param], name: str) -> Param:
    return next(p for p in table if p.name == name)


def check_file(path: Path, earlier: Mapping[str, Mapping[str, Any]] | None = None
               ) -> dict[str, dict[str, Any]]:
    """
    Read a ROS params file and check it against the tables.

    ``earlier`` are the parameters of files that this one is laid over. Return the flat parameters
    per node, theirs included; raise ParamError with the file, the name and the remedy.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, yaml.YAMLError) as error:
        raise ParamError(f'{path}: {error}') from error
    if not isinstance(document, dict):
        raise ParamError(f'{path}: no sections; start with /**/edge: and ros__parameters: '
                         'below it')
    nodes = {node: dict((earlier or {}).get(node, {})) for node in TABLES}
    for section, body in document.items():
        flat = _flatten(body.get('ros__parameters')) if isinstance(body, dict) else None
        node = str(section).rsplit('/', 1)[-1]
        if flat is None:
            raise ParamError(f'{path}: section {section} has no ros__parameters')
        if node not in TABLES and node != '**':
            raise ParamError(f'{path}: section {section} is for no node of ours; '
                             f'use /**/ and one of {", ".join(TABLES)}')
        targets = tuple(TABLES) if node == '**' else (node,)
        try:
            flat = _check_section(flat, targets, {} if node == '**' else nodes[node])
        except ParamError as error:
            raise ParamError(f'{path}: {section}: {error}') from error
        for target in targets:
            nodes[target].update(flat)
    for node, flat in nodes.items():
        if any(p.name == 'queries' for p in TABLES[node]):
            try:
                read_queries(lambda p, name: lookup(flat, p, name))
            except ParamError as error:
                raise ParamError(f'{path}: {node}: {error}') from error
    return nodes


def lookup(flat: Mapping[str, Any], param: Param, name: str) -> Any:
    """Return a checked value from flat parameters; None for an absent time to live."""
    if name not in flat:
        return None if param is TTL else param.default
    return param.check(flat[name], name)


def _check_section(flat: Mapping[str, Any], nodes: tuple[str, ...],
                   base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section with its values checked; ``base`` is what it is laid over."""
    both, checked = {**base, **flat}, dict(flat)
    ids = both.get('queries', [])
    known: dict[str, Param] = {p.name: p for node in nodes for p in TABLES[node]}
    for query_id in ids if isinstance(ids, list) else ():
        known |= {f'{query_id}.{p.name}': p for p in QUERY}
        keys = both.get(f'{query_id}.keys', [])
        for key in keys if isinstance(keys, list) else ():
            known[f'{query_id}.choices.{key}'] = CHOICES
            known[f'{query_id}.ttl_s.{key}'] = TTL
        known[f'{query_id}.ttl_s.{query_id}'] = known[f'{query_id}.ttl_s.default'] = TTL
    servers = both.get('fallbacks', []) if 'cloud' in nodes else []
    for server in servers if isinstance(servers, list) else ():
        known |= {fallback_name(server, p.name): p for p in ENDPOINT}
    for name, value in flat.items():
        if name in known:
            checked[name] = known[name].check(value, name)
        elif name != 'use_sim_time' and not name.startswith('qos_overrides.'):
            near = difflib.get_close_matches(name, known, 1)
            group = name.partition('.')[0]
            hint = f'; did you mean {near[0]}?' if near else (
                f'; queries is {ids} and does not name {group!r}' if '.' in name else '')
            raise ParamError(f'unknown parameter {name}{hint}')
    return checked


def _flatten(tree: Any, prefix: str = '') -> dict[str, Any] | None:
    if not isinstance(tree, dict):
        return None
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f'{prefix}{key}.') or {}
        else:
            flat[f'{prefix}{key}'] = value
    return flat


def _yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True)).removesuffix('...\n').strip()


def markdown() -> str:
    """Return the tables of all parameters for the README."""
    lines = []
    groups = {**TABLES, 'each query, as <id>.*': (*QUERY, CHOICES, TTL)}
    groups['cloud, each fallback server, as fallback.<name>.*'] = ENDPOINT
    for title, params in groups.items():
        lines += [f'### {title}', '', table(
            ('parameter', 'default', 'range', 'change', 'meaning'),
            [(f'`{p.name}`', f'`{_yaml(p.default)}`', p.allowed, _WHEN[p.when], p.description)
             for p in params]), '']
    return '\n'.join(lines)


_WHEN: Mapping[str, str] = {'start': 'at start', 'configure': 'before configure',
                            'run': 'while running'}
MARKS = ('<!-- parameters: made by `spotvlm params --update README.md` -->',
         '<!-- end of parameters -->')
