# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Under what terms the data sets come. Their own pages count; these notes say what to look for there."""

from __future__ import annotations

LICENCES = {
    "tum": "TUM RGB-D benchmark: CC BY 4.0. Cite Sturm et al., IROS 2012.",
    "7scenes": "7-Scenes: Microsoft Research licence, non-commercial use. Cite Shotton et al., CVPR 2013.",
    "cambridge": "Cambridge Landmarks: terms of the University's repository, non-commercial use. Cite Kendall et al., ICCV 2015.",
    "euroc": "EuRoC MAV: In Copyright - Non-Commercial Use Permitted (ETH Zurich). Cite Burri et al., IJRR 2016.",
    "kitti": "KITTI: CC BY-NC-SA 3.0, non-commercial. Cite Geiger et al., CVPR 2012.",
    "openloris": "OpenLORIS-Scene: terms on its download page, research use. Cite Shi et al., ICRA 2020.",
    "aachen": "Aachen Day-Night: terms in the archive's README, non-commercial research. Cite Sattler et al., CVPR 2018.",
    "cmu": "Extended CMU Seasons: terms in the archive's README, non-commercial research. Cite Sattler et al., CVPR 2018, and "
    "Badino et al., 2011.",
    "robotcar": "RobotCar Seasons: terms in the archive's README, non-commercial research. Cite Sattler et al., CVPR 2018, and "
    "Maddern et al., IJRR 2017.",
}
LICENCE_RULE = "The terms on the data set's own page count, also for maps and bags made of it."


def licence_note(name: str) -> str:
    """What to tell before a set is used."""
    return f"{LICENCES[name]} {LICENCE_RULE}"
