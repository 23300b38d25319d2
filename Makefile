# Everything for a machine without ROS. On a ROS machine: colcon build.
.DEFAULT_GOAL := help
SHELL := /bin/bash
export PYTHON TORCH_INDEX
DATA ?=
# What to run: make test TESTS="test/test_se3.py -k near_pi"
TESTS ?= test

.PHONY: help setup test demo docs lint clean

help:  ## this text
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  Variables: PYTHON=python3.12 (3.10-3.12)  TORCH_INDEX=URL (index with the CPU or CUDA build of torch)"
	@echo "             DATA=DIR (demo on a recorded sequence)  TESTS=\"FILES OPTIONS\" (some tests only)"

setup:  ## virtual environment with ROS 2 in .venv; takes seconds the second time
	@scripts/setup.sh

test: setup  ## run the tests
	@ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST ROS_DOMAIN_ID=$$(( $$$$ % 80 + 10 )) .venv/bin/python -m pytest $(TESTS)

demo: setup  ## track a simulated drive through real ROS 2 (DATA=DIR: a recorded one), report in out/demo
	@.venv/bin/pixloc demo $(if $(DATA),--data "$(DATA)")

docs: setup  ## the documentation as a site, in out/site; opens without a server
	@.venv/bin/python -m pixloc_ros.node.parameters
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict
	@echo "documentation: out/site/index.html"

lint: setup  ## style and simple errors
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .

clean:  ## remove .venv and everything built
	rm -rf .venv build install log out *.egg-info .pytest_cache .hypothesis .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
