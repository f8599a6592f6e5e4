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
.PHONY: help setup demo test bench perf lint clean distclean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## */\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup:  ## ROS 2, Python packages, colcon build; quick when all is there
	@$(PYTHON) spotvlm_ros/system/bootstrap.py

demo: setup  ## the whole graph for half a minute, on the shipped models
	@$(SPOTVLM) demo $(ARGS)

test: setup  ## every test (ARGS='-k focus' for some)
	@$(TEST_ENV) $(ROS_ENV) python -m pytest test $(ARGS)

bench: setup  ## SpotBench, the quick set; FULL=1 for the whole
	@$(SPOTVLM) bench $(if $(FULL),--full) $(ARGS)

perf: setup  ## overhead, throughput, latency against the baselines
	@$(SPOTVLM) perf $(ARGS)

lint: setup  ## ament-style flake8 and pep257, mypy, XML, licence headers
	@$(ROS_ENV) python test/lint.py

clean:  ## remove what was built and written, keep .venv
	rm -rf build install log out .pytest_cache .mypy_cache .hypothesis
	find spotvlm_ros test launch -name __pycache__ -prune -exec rm -rf {} +

distclean: clean  ## remove .venv too: as after git clone
	rm -rf .venv
