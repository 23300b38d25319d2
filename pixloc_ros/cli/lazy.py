# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""The package's folders for the verbs (`io.bags.BagReader`), imported when something of them is first used: help and usage errors
come at once."""

import importlib


class Package:
    """A package whose attributes and modules are loaded when they are asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str):
        package = importlib.import_module(self._name)
        if not hasattr(package, name):
            importlib.import_module(f"{self._name}.{name}")
        found = getattr(package, name)
        return Package(found.__name__) if hasattr(found, "__path__") else found


pixloc = Package("pixloc_ros")
_FOLDERS = "alignment datasets evaluation features geometry io mapping node report rig tracking training"
alignment, datasets, evaluation, features, geometry, io, mapping, node, report, rig, tracking, training = (
    Package(f"pixloc_ros.{folder}") for folder in _FOLDERS.split()
)
