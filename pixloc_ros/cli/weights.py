# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc weights`: import published weights, or look into a weights file.

Weights files are safetensors with a card: architecture, data, licence.

examples:
  pixloc weights import checkpoint_best.tar -o vgg.safetensors
  pixloc weights show vgg.safetensors
  pixloc weights plot compact -o prior.png
"""

import argparse
import json
import sys

from ..errors import InputError
from ..io.files import write_bytes
from .arguments import add_verb, flag, path
from .lazy import alignment, features, pixloc, report

DEGREES_OF_FREEDOM = ("t_x", "t_y", "t_z", "R_x", "R_y", "R_z")
BASE_DEGREES_OF_FREEDOM = ("forward", "left", "up", "roll", "pitch", "yaw")
"""Of a temporal prior, which acts along the axes of the robot's base."""


def add_parser(subparsers) -> None:
    actions = add_verb(subparsers, "weights", None, __doc__).add_subparsers(title="actions", metavar="ACTION", required=True)
    parser = add_verb(actions, "import", run_import, run_import.__doc__)
    path(parser, "checkpoint FILE.tar", "checkpoint_best.tar as published")
    path(parser, "-o --output FILE.safetensors")
    flag(parser, "--trust", "read the file even if it holds Python objects; this runs any code hidden in it")
    parser = add_verb(actions, "show", run_show, run_show.__doc__)
    parser.add_argument("weights", metavar="FILE", help="a .safetensors file, or the name of a shipped network")
    flag(parser, "--json", "print JSON instead of a table")
    parser = add_verb(actions, "plot", run_plot, run_plot.__doc__)
    parser.add_argument("weights", metavar="FILE", help="a .safetensors file with a learned damping, or a shipped name")
    path(parser, "-o --output FILE.png")


def run_import(args: argparse.Namespace) -> int:
    """`pixloc weights import`: a checkpoint of the PixLoc authors to a weights file.

    Reads what the authors' training saved, checks every tensor and setting, and writes the network and its damping as one file.
    The published weights carry no licence: they are for you to fetch, not for us to ship.

    example:
      pixloc weights import checkpoint_best.tar -o vgg.safetensors
    """
    if args.output.suffix != ".safetensors":
        raise InputError(f"{args.output} must end in .safetensors: weights files are written in that format")
    if args.trust:
        print(f"pixloc: warning: --trust lets {args.checkpoint} run code while it is read", file=sys.stderr)
    weights = features.checkpoint_import.import_checkpoint(args.checkpoint, args.trust)
    weights.save(args.output)
    network = f"{weights.card['architecture']}, trained on {weights.card['training_data']}"
    print(f"{args.output}: {network}; see 'pixloc weights show {args.output}'")
    return 0


def run_show(args: argparse.Namespace) -> int:
    """`pixloc weights show`: card, parameters and damping of a weights file.

    Prints the card, the number of parameters, and the optimizer's learned damping per level and degree of freedom (of the query
    camera: t along, R about its axes; of a temporal prior: of the robot's base, at a typical motion, with the trust in the prior
    factor). Large values hold a motion back.

    example:
      pixloc weights show compact
    """
    summary = _summary(args.weights)
    print(json.dumps(summary, indent=2) if args.json else _table(summary))
    return 0


def run_plot(args: argparse.Namespace) -> int:
    """`pixloc weights plot`: the learned damping and prior as a picture.

    Draws the learned damping per level and degree of freedom of the camera. Of a temporal prior: damping and trust in the prior
    factor, per degree of freedom of the robot's base, against the distance moved since the last frame, the turn, and the prior's
    uncertainty.

    example:
      pixloc weights plot compact -o prior.png
    """
    report.style.check_suffix(args.output, (".png",))
    extractor = pixloc.load_extractor(args.weights)
    damping = alignment.damping_of(extractor)
    if damping is None:
        raise InputError(
            f"{args.weights} holds no learned damping: the optimizer adapts its own. Import the authors' weights, "
            "or train a temporal prior (config/training/temporal.json)"
        )
    temporal, curves = isinstance(damping, alignment.TemporalPrior), report.curves
    draw = curves.plot_temporal_prior if temporal else curves.plot_constant_damping
    write_bytes(args.output, draw(damping, extractor.strides))
    print(args.output)
    return 0


def _summary(weights: str) -> dict:
    """Everything `show` prints; loading the network checks that the file is complete."""
    extractor = pixloc.load_extractor(weights)
    learned = alignment.damping_of(extractor)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in extractor.network.named_children()}
    damping = trust = None
    if isinstance(learned, alignment.TemporalPrior):
        predicted = learned.predict(alignment.damping.typical_cues())
        damping, trust = ([dict(zip(BASE_DEGREES_OF_FREEDOM, row)) for row in values.tolist()] for values in predicted)
    elif learned is not None:
        damping = [dict(zip(DEGREES_OF_FREEDOM, learned(k).tolist())) for k in range(len(extractor.strides))]
    return {
        "name": extractor.name,
        "fingerprint": extractor.fingerprint,
        "card": features.weights.Weights.open(weights).card,
        "strides": list(extractor.strides),
        "channels": list(extractor.channels),
        "parameters": {**counts, "total": sum(counts.values())},
        "damping": damping,
        "trust": trust,
    }


def _table(summary: dict) -> str:
    facts = {"name": summary["name"], "fingerprint": summary["fingerprint"], **summary["card"]}
    width = max(map(len, facts))
    lines = [f"{name:<{width}}  {fact if isinstance(fact, str) else json.dumps(fact)}" for name, fact in facts.items()]
    lines.append("\nparameters")
    lines += [f"  {name:<18}{count:>12,}" for name, count in summary["parameters"].items()]
    titles = {
        "damping": "levels, coarse to fine, and the damping learned for them",
        "trust": "trust in the prior factor: what its information is multiplied with",
    }
    for key, title in titles.items():
        values = summary[key]
        if key == "trust" and not values:
            continue
        names = values[0] if values else DEGREES_OF_FREEDOM
        lines.append(f"\n{title}\n{'stride':>8}{'channels':>10}" + "".join(f"{name:>10}" for name in names))
        for k, (stride, channels) in enumerate(zip(summary["strides"], summary["channels"])):
            factors = [f"{x:.3g}" for x in values[k].values()] if values else ["-"] * 6
            lines.append(f"{stride:>8}{channels:>10}" + "".join(f"{text:>10}" for text in factors))
    return "\n".join(lines)
