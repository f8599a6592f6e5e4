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
"""Commands as the documents print them, their help, completion, the schema and the site."""

import importlib
import json
import os
from pathlib import Path
import re
import shlex
import subprocess
import sys

import jsonschema
import pytest
from spotvlm_ros.bench.perf.main import PROGRAMS
from spotvlm_ros.cli.main import command_parser, COMMANDS, ELSEWHERE, main, parser_of
from spotvlm_ros.config.profiles import load_profile
from spotvlm_ros.config.schema import params_schema
from spotvlm_ros.config.strict_yaml import parse_yaml
from spotvlm_ros.mini.training.train import arguments as train_miniature
from spotvlm_ros.system.processes import PYTHON
from test_docs import DOCUMENTS, ROOT

# Of a reader, as the text around them says.
OTHERS = {'mine.yaml', 'my_queries.yaml', 'rule.yaml', 'door.yaml'}
COMMAND = re.compile(r'(?:^|[\s(`])(?:\.venv/bin/)?spotvlm ((?:[a-z]|--help).*)')


def words(line):
    """Return the words of a command up to what is the shell's, without dots for more."""
    found = []
    for word in shlex.split(line.replace('\\\n', ' '), comments=True):
        if word in ('&', '&&', '|', '>', '>>', ';') or word.startswith('>'):
            break
        variable = re.fullmatch(r'\$\w+', word)  # more options, but for the value of one
        if word != '...' and not (variable and not found[-1].startswith('-')):
            found.append(re.sub(r'\$\w+', '1', word))
    return found


def commands(document):
    """Yield the words of each command in the blocks of a document."""
    for language, block in re.findall(r'^```(\w*)\n(.*?)^```', document.read_text(),
                                      re.MULTILINE | re.DOTALL):
        for line in block.replace('\\\n', ' ').splitlines():
            found = re.match(r'(?:\.venv/bin/)?spotvlm (.*)', line.strip())
            if found and language in ('', 'bash'):
                yield words(found[1])


def parser(argv):
    """Return the parser of a command line, and what it parses of it."""
    if argv[0] == 'perf' and argv[1:2] and argv[1] in PROGRAMS:
        return importlib.import_module(PROGRAMS[argv[1]][0]).command_parser(), argv[2:]
    if argv[0] in ELSEWHERE:
        return parser_of(argv[0]), argv[1:]
    return command_parser(), argv


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: path.name)
def test_every_command_in_a_block_is_understood(document, capsys):
    for argv in commands(document):
        if argv[0] == 'train' and '--labels' not in argv:
            train_miniature(argv[1:])
            continue
        parse, rest = parser(argv)
        try:
            parse.parse_args(rest)
        except SystemExit as end:
            assert not end.code, f'{argv}: {capsys.readouterr().err}'


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: path.name)
def test_every_option_in_the_text_exists(document):
    text = re.sub(r'^```.*?^```', '', document.read_text(), flags=re.MULTILINE | re.DOTALL)
    for part in re.findall(r'`([^`]+)`', text):
        found = re.match(r'(?:\.venv/bin/)?spotvlm ([a-z].*)', part.replace('\n', ' '))
        argv = words(found[1]) if found else []
        if argv and argv[0] in {*COMMANDS, *ELSEWHERE} and argv[0] != 'train':
            parse, rest = parser(argv)
            sub = parse if argv[0] in ELSEWHERE else known(parse)[argv[0]]
            if argv[0] == 'query' and len(argv) > 1:
                sub = known(sub)[argv[1]]
            options = {word.split('=')[0] for word in rest if re.match(r'--?[a-z]', word)}
            assert options <= set(sub._option_string_actions), part


def known(parse):
    """Return the parsers of subcommands by name."""
    return parse._subparsers._group_actions[0].choices


def test_every_params_file_of_a_command_is_there_or_of_the_reader():
    shown = {name for document in DOCUMENTS for name in re.findall(
        r'^```yaml\n# ([\w.-]+\.yaml)', document.read_text(), re.MULTILINE)}
    given, made = set(), set()
    for document in DOCUMENTS:
        for argv in commands(document):
            for before, word in zip(['', *argv], argv):
                if word.endswith('.yaml'):
                    (made if before == '--out' or ':=' in word else given).add(word)
    missing = {name for name in given - made - shown - OTHERS if not (ROOT / name).is_file()}
    assert not missing and len(given) > 5


def test_a_module_is_run_in_the_environment_that_it_needs():
    """`python -m pytest` as it was printed found neither ROS nor the package."""
    for document in DOCUMENTS:
        for line in re.findall(r'[^`\n]*python3? -m [\w.]+', document.read_text()):
            needs_none = r'ros-env python -m|-m (spotvlm_ros\.system\.|colcon|sglang)'
            assert re.search(needs_none, line), f'{document.name}: {line}'


@pytest.mark.parametrize('name', [*COMMANDS, *ELSEWHERE, *(f'perf {p}' for p in PROGRAMS)])
def test_help_ends_in_an_example_that_is_understood(name):
    parse, _ = parser(name.split())
    parse = parse if name.split()[0] in ELSEWHERE else known(parse)[name]
    text = ' '.join(parse.format_help().split())
    example = re.search(r'example: (.*)', text)
    assert example, text
    line = COMMAND.search(example[1])
    parse, rest = parser(words(line[1].replace('). ', ' # ').replace('. Without', ' # ')))
    parse.parse_args([word.rstrip(')') for word in rest])


def test_the_rest_of_the_rules_of_the_documents_hold():
    """The requests of a robot, as docs/cloud.md reckons with them."""
    rate = sum(1.0 / q.cloud_period_s for q in load_profile('driving').queries())
    text = ' '.join((ROOT / 'docs' / 'cloud.md').read_text().split())
    assert f'the driving profile {rate:g} a second' in text
    assert f'{rate:g} requests a second take {60e3 * 8 * 4 / 3 * rate / 1e6:.1f} Mbit/s' in text
    assert f'profile sends {rate:g} a second, {3600 * rate:.0f} an hour' in ' '.join(
        (ROOT / 'docs' / 'questions.md').read_text().split())


def test_bare_spotvlm_shows_what_there_is(capsys):
    assert main([]) == 2
    assert 'example: spotvlm demo' in capsys.readouterr().out


# -- editors and shells --------------------------------------------------------------------------

@pytest.mark.parametrize('path', sorted((ROOT / 'config').glob('*.yaml'))
                         + sorted((ROOT / 'config' / 'real').glob('*.yaml')), ids=lambda p: p.stem)
def test_params_files_follow_the_schema(path):
    jsonschema.validate(parse_yaml(path.read_text()), params_schema())


def test_the_schema_is_one_and_knows_all_that_profiles_may_hold(tmp_path, capsys):
    assert main(['params', '--schema']) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft7Validator.check_schema(schema)
    whole = load_profile('driving').params_file()   # every parameter of every node
    jsonschema.validate(json.loads(whole), schema)


@pytest.mark.parametrize('section, values', [
    ('/**/edge', {'treads': 2}), ('/robot1/edge', {'threads': 'two'}), ('edge', {'threads': 0}),
    ('/**/cloud', {'box_scale': 'metres'}), ('/**', {'scene': {'rate': 2.0}}),
    ('/**/camera', {'wold': 'hri'}), ('/**/cloud', {'fallback': {'b': {'modle': 'x'}}})])
def test_what_the_schema_refuses(section, values):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({section: {'ros__parameters': values}}, params_schema())


@pytest.mark.parametrize('line, wanted', [
    ('spotvlm re', {'replay', 'report'}), ('spotvlm run --rec', {'--record'}),
    ('spotvlm demo --sp', {'--speed'}), ('spotvlm query set --per', {'--persist'})])
def test_a_shell_completes(line, wanted, tmp_path):
    out = tmp_path / 'out'
    shell = {'_ARGCOMPLETE': '1', '_ARGCOMPLETE_STDOUT_FILENAME': str(out), 'COMP_LINE': line,
             'COMP_POINT': str(len(line)), '_ARGCOMPLETE_IFS': '\n'}
    done = subprocess.run([*PYTHON, '-m', 'spotvlm_ros.cli'], capture_output=True, timeout=60,
                          env={**os.environ, **shell})
    assert {word.strip() for word in out.read_text().split('\n')} == wanted, done.stderr


@pytest.mark.parametrize('shell', ['bash', 'zsh', 'fish'])
def test_completion_prints_what_a_shell_takes(shell, capsys):
    assert main(['completion', shell]) == 0
    printed = capsys.readouterr().out
    assert 'spotvlm' in printed
    if shell == 'bash':
        assert subprocess.run(['bash', '-n'], input=printed, text=True).returncode == 0


# -- the site ------------------------------------------------------------------------------------

def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip('material', reason='pip install mkdocs-material "mkdocstrings[python]"')
    done = subprocess.run([sys.executable, '-m', 'mkdocs', '--quiet', 'build', '--site-dir',
                           str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    for name, words_on_it in (('index.html', 'as text (<em>context replacement'),
                              ('parameters.html', 'guard_odds'), ('glossary.html', 'keyframe'),
                              ('reference/commands.html', '--emulate-delay'),
                              ('reference/messages.html', 'context_sequence'),
                              ('reference/python.html', 'AnswerClient')):
        assert words_on_it in (tmp_path / name).read_text(), name
    assert 'https://' not in ''.join(re.findall(
        r'<(?:script|link)[^>]*(?:src|href)="([^"]*)"', (tmp_path / 'index.html').read_text()))
    assert Path(tmp_path / 'demo_frames.jpg').is_file()
