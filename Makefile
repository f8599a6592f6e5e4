# Copyright 2026 spotvlm maintainers
# SPDX-License-Identifier: Apache-2.0

PYTHON ?= python3
SPOTVLM := .venv/bin/spotvlm
# Runs a command with ROS 2, both packages and .venv in its environment.
ROS_ENV := .venv/bin/ros-env

# Tests have a domain of their own on this host; two checkouts may be tested at once.
TEST_DOMAIN ?= $(shell echo $$(( ($$$$ % 80) + 20 )))
TEST_ENV := ROS_DOMAIN_ID=$(TEST_DOMAIN) ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST

.DEFAULT_GOAL := help
.PHONY: help setup workspace demo test bench perf lint docs lock clean distclean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## */\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup:  ## ROS 2, Python packages, colcon build; quick when all is there
	@$(PYTHON) -m spotvlm_ros.system.bootstrap

workspace:  ## both packages where plain colcon, rosdep and bloom find them: WS=~/ws
	@$(PYTHON) -m spotvlm_ros.system.workspace $(if $(WS),'$(WS)')

demo: setup  ## the whole graph for half a minute, on the shipped models
	@$(SPOTVLM) demo $(ARGS)

test: setup  ## every test (ARGS='-k focus' for some, COVERAGE=1 to measure)
	@$(TEST_ENV) $(ROS_ENV) python -m pytest test -n 2 --dist worksteal \
	  $(if $(COVERAGE),--cov=spotvlm_ros) $(ARGS)

bench: setup  ## SpotBench, the quick set; FULL=1 for the whole
	@$(SPOTVLM) bench $(if $(FULL),--full) $(ARGS)

perf: setup  ## overhead, throughput, latency against the baselines
	@$(SPOTVLM) perf $(ARGS)

lint: setup  ## linters of ament, ruff, mypy, imports, sizes, manifests, licence
	@$(ROS_ENV) python test/lint.py

docs: setup  ## the documentation site, into out/site; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(ROS_ENV) python -m mkdocs --quiet build && echo "out/site/index.html"

COMPILE := .venv/bin/uv pip compile - --quiet --python-version 3.11 \
  --python-platform x86_64-manylinux_2_28 --no-annotate --custom-compile-command 'make lock'
NEEDED := $(ROS_ENV) python -m spotvlm_ros.system.requirements

lock: setup  ## requirements*.lock anew (ARGS=--upgrade for the newest versions)
	@$(NEEDED) kilted | $(COMPILE) $(ARGS) --output-file requirements.lock
	@sed '/^ros-/d' requirements.lock > .venv/shared.txt
	@$(NEEDED) jazzy | $(COMPILE) $(ARGS) --constraint .venv/shared.txt \
	  --output-file requirements-jazzy.lock

clean:  ## remove what was built and written, keep .venv
	rm -rf build install log out .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis \
	  .import_linter_cache
	find spotvlm_ros test launch -name __pycache__ -prune -exec rm -rf {} +

distclean: clean  ## remove .venv too: as after git clone
	rm -rf .venv
