# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""What makes the repository build and install: files that must agree, the environment's hook, a plain colcon build."""

import ast
import configparser
import importlib.util
import os
import re
import shutil
import site
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from test_layers import tree

import pixloc_ros

ROOT = Path(__file__).resolve().parents[1]
OURS = {"pixloc_ros", "pixloc_sim"}
BARE = (ROOT / "build" / "overlay" / "install").is_dir() and Path(sys.prefix) == ROOT / ".venv"
only_bare = pytest.mark.skipif(not BARE, reason="not the environment that `make setup` makes")
pytestmark = pytest.mark.skipif(not (ROOT / "package.xml").is_file(), reason="installed without the sources")


def load(path: Path):
    """A script as a module, without running it as the environment's hook."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def copy_sources(target: Path) -> None:
    """What git would hold, without what was built here."""
    made_here = ("build", "install", "log", "out", "shared")
    everywhere = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, target, ignore=lambda at, names: {*everywhere(at, names), *(made_here if Path(at) == ROOT else ())})


def imported(path: Path) -> set:
    """Top-level names of the packages that a module imports, at whatever depth."""
    nodes = list(ast.walk(tree(path)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.split(".")[0] for name in names}


def package_xml() -> ElementTree.Element:
    return ElementTree.parse(ROOT / "package.xml").getroot()


def test_one_version_and_licence():
    assert package_xml().findtext("version") == pixloc_ros.__version__
    assert package_xml().findtext("license") == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_every_requirement_is_pinned_exactly():
    for path in ROOT.glob("requirements*.txt"):
        for line in path.read_text().splitlines():
            assert not line or line.startswith("#") or re.fullmatch(r"[\w.-]+(\[\w+\])?==[\w.]+(; .+)?", line), line


PYTHON_KEYS = {
    "torch": {"python3-torch", "python3-pytorch-pip"},
    "numpy": {"python3-numpy"},
    "scipy": {"python3-scipy"},
    "cv2": {"python3-opencv"},
    "numba": {"python3-numba"},
    "rosbags": {"python3-rosbags-pip"},
    "ruamel": {"python3-ruamel.yaml"},
    "matplotlib": {"python3-matplotlib"},
    "mpl_toolkits": {"python3-matplotlib"},
}


def setup_cfg(section: str) -> list:
    """Requirements of a section of setup.cfg, all extras together."""
    packaging = pytest.importorskip("packaging.requirements")
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    options = config[section].values() if section.endswith("extras_require") else [config[section]["install_requires"]]
    return [packaging.Requirement(line) for value in options for line in value.split()]


def test_package_xml_names_what_is_imported():
    """Imports of all modules against the rosdep keys; what only an extra of setup.cfg needs has none."""
    optional = {requirement.name.removesuffix("-sdk") for requirement in setup_cfg("options.extras_require")}
    keys = {element.text for element in package_xml() if element.tag.endswith("depend")}
    for path in (path for package in OURS for path in (ROOT / package).rglob("*.py")):
        for name in imported(path) - sys.stdlib_module_names - optional - OURS:
            assert PYTHON_KEYS.get(name, {name}) <= keys, f"{path.name} imports {name}, which package.xml does not name"


@pytest.mark.parametrize("distribution", ["humble", "jazzy", "kilted"])
def test_package_xml_asks_only_for_what_a_distribution_has(distribution):
    """Ubuntu 22.04 has no PyTorch that is recent enough, 24.04 neither PyTorch nor Numba (docs/evidence/dependencies.md)."""
    catkin_pkg = pytest.importorskip("catkin_pkg.package")
    package = catkin_pkg.parse_package(str(ROOT / "package.xml"))
    package.evaluate_conditions({"ROS_DISTRO": distribution})
    build, run = ({d.name for d in depends if d.evaluated_condition} for depends in (package.build_depends, package.exec_depends))
    assert "python3-pytorch-pip" in run and "python3-torch" not in run
    assert ("python3-numba" in run) == (distribution == "humble")
    assert ("python3-numba" in run) != ("python3-pip" in build)  # CMakeLists.txt fetches it


def test_the_distributions_versions_are_recent_enough():
    """The table of docs/evidence/dependencies.md against setup.cfg."""
    from packaging.specifiers import SpecifierSet

    asked = setup_cfg("options")
    text = (ROOT / "docs" / "evidence" / "dependencies.md").read_text().split("## On a ROS machine")[1]
    rows = re.findall(r"^\| ([\w-]+) \| ([<>=]\S+) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    table = {name: cells for name, *cells in rows}
    assert {r.name.removesuffix("-python-headless") for r in asked} == set(table)
    for requirement in asked:
        bound, *shipped = table[requirement.name.removesuffix("-python-headless")]
        assert requirement.specifier == SpecifierSet(bound), requirement.name
        for text in shipped:
            version = re.match(r"\d[\d.]*\d$|.*fetches ([\d.]+) ", text)
            if version:
                assert (version.group(1) or version.group()) in requirement.specifier, (requirement.name, text)
            else:
                assert "key `python3-" in text


def test_status_constants_match_the_tracker():
    from pixloc_ros.tracking.types import TrackState

    text = (ROOT / "msg" / "LocalizationStatus.msg").read_text()
    assert dict(re.findall(r"^uint8 ([A-Z]+)=(\d)$", text, re.MULTILINE)) == {s.name: str(s.value) for s in TrackState}


def test_launchers_are_executable_and_name_existing_modules():
    for name in ("localization_node", "pixloc"):
        path = ROOT / "scripts" / name
        assert os.access(path, os.X_OK)
        module = re.search(r'from (pixloc_ros\.[\w.]+) import main|run_module\("(pixloc_ros\.[\w.]+)"', path.read_text())
        found = (module[1] or f"{module[2]}.__main__").replace(".", "/")
        assert (ROOT / f"{found}.py").is_file(), found


def test_fast_dds_profile_has_room_for_images():
    namespace = {"dds": "http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles"}
    profile = ElementTree.parse(ROOT / "config" / "fastdds.xml")
    assert int(profile.findtext(".//dds:segment_size", namespaces=namespace)) >= 16 * 640 * 480 * 3
    used = [e.text for e in profile.findall(".//dds:userTransports/dds:transport_id", namespace)]
    defined = [e.text for e in profile.findall(".//dds:transport_descriptor/dds:transport_id", namespace)]
    assert sorted(used) == sorted(defined) and len(used) == 2


def test_cmake_exports_are_adapted_to_this_python():
    patch = load(ROOT / "scripts" / "patch_ros_wheels.py").patch
    builder = "/opt/python/cp312-cp312"
    text = f'"{builder}/include/python3.12;{builder}/lib/python3.12/site-packages/numpy/_core/include"'
    include, numpy_include = patch(text).strip('"').split(";")
    assert Path(include, "Python.h").is_file() and Path(numpy_include, "numpy", "arrayobject.h").is_file()
    assert patch("nothing to patch") == "nothing to patch"


def test_the_wheel_works_without_the_sources(tmp_path):
    """`pip install .`: a wheel of a copy of the sources, in an environment that sees the dependencies but not the checkout."""
    copy_sources(tmp_path / "source")
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "AMENT_PREFIX_PATH")}

    def run(*command) -> str:
        done = subprocess.run([*map(str, command)], env=clean, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, tmp_path / "source")
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # A .pth file adds the folder itself, not what the .pth files in it name: an editable installation stays out of sight.
    (packages / "dependencies.pth").write_text("\n".join([*site.getsitepackages(), site.getusersitepackages()]))
    (wheel,) = tmp_path.glob("pixloc_ros-*.whl")
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel)
    shutil.rmtree(tmp_path / "source")

    assert run(packages.parents[2] / "bin" / "pixloc", "--version") == f"pixloc {pixloc_ros.__version__}\n"
    assert "fingerprint" in run(packages.parents[2] / "bin" / "pixloc", "weights", "show", "compact")
    code = """
import pixloc_ros as pixloc
from pixloc_ros.cli.main import main
from pixloc_ros.geometry import se3
main("simulate -o sim --seconds 1 --rate 2 --size 320x240 --texel 0.02".split())
main("map colmap --model sim/map --images sim/images -o sim.pixmap".split())
localizer = pixloc.Localizer.open("sim.pixmap")
name, pose = localizer.map.keyframe_names[0], localizer.map.map_from_keyframe[0]
camera = pixloc.Camera.parse_colmap_line(open("sim/map/cameras.txt").read().splitlines()[-1].split(maxsplit=1)[1])
found = localizer.locate(f"sim/images/{name}", camera, pose)
print(pixloc.__path__, found.success, float(se3.pose_difference(found.map_from_camera, pose)[0]) < 0.02)
"""
    assert run(python, "-c", code).splitlines()[-1] == f"{[str(packages / 'pixloc_ros')]} True True"


# ---- the environment that `make setup` makes


def in_environment(code: str, **variables: str) -> str:
    """Run code in a new interpreter that inherits nothing but what is given."""
    environment = {"PATH": os.defpath, "HOME": os.environ.get("HOME", "/tmp"), **variables}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@only_bare
def test_environment_needs_no_source():
    code = (
        "import rclpy, tf2_ros, cv_bridge, pixloc_ros; from pixloc_ros.msg import LocalizationStatus as S;"
        "from rclpy.serialization import serialize_message as s, deserialize_message as d;"
        "print(d(s(S(state=S.LOST, map_name='site')), S).map_name, pixloc_ros.__file__)"
    )
    assert in_environment(code) == f"site {ROOT / 'pixloc_ros' / '__init__.py'}"


@only_bare
def test_environment_wins_over_a_sourced_installation(tmp_path):
    (tmp_path / "rclpy").mkdir()
    (tmp_path / "rclpy" / "__init__.py").write_text("raise RuntimeError('the wrong rclpy')")
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "mine.py").write_text("x = 1")
    code = "import rclpy, mine, os; rclpy.init(); print(os.environ['AMENT_PREFIX_PATH'].endswith(':/opt/ros/other'))"
    sourced = {"PYTHONPATH": f"{tmp_path}:{tmp_path / 'good'}", "AMENT_PREFIX_PATH": "/opt/ros/other"}
    sourced |= {"LD_LIBRARY_PATH": "/opt/ros/other/lib", "RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}
    assert in_environment(code, **sourced, _ROS_WHEELS_BOOTSTRAP_COMPLETE="1") == "True"


@only_bare
def test_environment_keeps_arguments_and_the_users_profile():
    code = "import os, sys; print(sys.argv[1:], os.environ['FASTDDS_DEFAULT_PROFILES_FILE'])"
    environment = {"PATH": os.defpath, "FASTDDS_DEFAULT_PROFILES_FILE": "/mine.xml"}
    done = subprocess.run([sys.executable, "-c", code, "a b", "--c"], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "['a b', '--c'] /mine.xml"
    ours = in_environment("import os; print(os.environ['FASTDDS_DEFAULT_PROFILES_FILE'])")
    assert ours == str(ROOT / "config" / "fastdds.xml")


@only_bare
def test_plain_colcon_build_in_a_workspace(tmp_path):
    """What a robot's owner does. Afterwards the installed package stands alone: weights, launchers, messages."""
    source = tmp_path / "src" / "pixloc_ros"
    copy_sources(source)
    environment = {
        **os.environ,
        "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}",
        "AMENT_PREFIX_PATH": str(ROOT / ".venv"),
        "CMAKE_PREFIX_PATH": str(ROOT / ".venv"),
        "COLCON_HOME": str(tmp_path / "home"),
    }
    done = subprocess.run(["colcon", "build"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 package finished" in done.stdout  # the overlay is left alone

    prefix = tmp_path / "install" / "pixloc_ros"
    (installed,) = prefix.glob("lib/python3*/site-packages/pixloc_ros")
    modules = {path.relative_to(ROOT / "pixloc_ros") for path in (ROOT / "pixloc_ros").rglob("*.py")}
    weights = {path.relative_to(ROOT / "pixloc_ros") for path in (ROOT / "pixloc_ros/weights").glob("*.safetensors")}
    assert weights and all((installed / path).is_file() for path in modules | weights)
    assert os.access(prefix / "lib" / "pixloc_ros" / "localization_node", os.X_OK)
    assert (prefix / "share" / "pixloc_ros" / "config" / "fastdds.xml").is_file()
    assert {p.name for p in (ROOT / "launch").glob("*.py")} == {
        p.name for p in (prefix / "share" / "pixloc_ros" / "launch").glob("*.py")
    }
    # As in a robot's terminal.
    code = "import pixloc_ros; from pixloc_ros.msg import LocalizationStatus; print(pixloc_ros.__file__)"
    line = f'source install/setup.bash && python -c "{code}" && install/pixloc_ros/lib/pixloc_ros/pixloc --version'
    found = subprocess.run(["bash", "-c", line], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert found.stdout.split() == [str(installed / "__init__.py"), "pixloc", pixloc_ros.__version__], found.stderr
