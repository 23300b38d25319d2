# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""`pixloc weights`: import published weights, or look into a weights file.

Weights files are safetensors with a card: architecture, data, licence.

examples:
  pixloc weights import checkpoint_best.tar -o vgg.safetensors
  pixloc weights show vgg.safetensors
  pixloc weights plot vgg.safetensors -o learned.png
"""

import argparse
import itertools
import json
import sys
import textwrap

from ..errors import InputError
from ..io.files import write_bytes
from .arguments import add_verb, flag, path
from .lazy import alignment, features, pixloc, report, tracking

DEGREES_OF_FREEDOM = ("t_x", "t_y", "t_z", "R_x", "R_y", "R_z")
_OUTPUT_WIDTH, _CUE_WIDTH = 24, 16


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
    parser.add_argument("weights", metavar="FILE", help="a .safetensors file, or the name of a shipped network")
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
    """`pixloc weights show`: card, parameters and what the optimizer learned, of a weights file.

    Prints the card, the number of parameters, and what of this the file holds: the learned damping per level and degree of
    freedom of the query camera (t along, R about its axes), where large values hold a motion back; what is believed on each
    level: its robust scale, residual variance, hold to the coarser levels and trust in the prior, each with its slopes; and the
    judge: what the statistics of an alignment say of its pose.

    example:
      pixloc weights show compact
    """
    summary = _summary(args.weights)
    print(json.dumps(summary, indent=2) if args.json else _table(summary))
    return 0


def run_plot(args: argparse.Namespace) -> int:
    """`pixloc weights plot`: what the optimizer learned as a picture.

    Draws the learned damping per level and degree of freedom of the camera, and what is believed on each level against each of
    the cues that it depends on: whichever of the two the file holds.

    example:
      pixloc weights plot vgg.safetensors -o learned.png
    """
    report.style.check_suffix(args.output, (".png",))
    extractor = pixloc.load_extractor(args.weights)
    damping, levels = _learned(extractor)
    if damping is None and levels is None:
        raise InputError(
            f"{args.weights} holds nothing that the optimizer learned: it adapts its own damping and uses constants. "
            "Import the authors' weights, or train some"
        )
    write_bytes(args.output, report.curves.plot_learned(damping, levels, extractor.strides))
    print(args.output)
    return 0


def _learned(extractor) -> tuple:
    """Damping and `LevelWeights`, None where the file holds none."""
    source = f"weights '{extractor.name}'"
    return alignment.damping_of(extractor), alignment.LevelWeights.of(extractor.companions, len(extractor.strides), source)


def _summary(weights: str) -> dict:
    """Everything `show` prints; loading the network checks that the file is complete."""
    extractor = pixloc.load_extractor(weights)
    damping, levels = _learned(extractor)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in extractor.network.named_children()}
    if damping is not None:
        damping = [dict(zip(DEGREES_OF_FREEDOM, damping(k).tolist())) for k in range(len(extractor.strides))]
    if levels is not None:
        outputs, cues = alignment.level_weights.OUTPUTS, alignment.level_weights.CUES
        levels = [
            {name: {"constant": 10 ** row[0], "slopes": dict(zip(cues, row[1:]))} for name, row in zip(outputs, table)}
            for table in levels.table.tolist()
        ]
    return {
        "name": extractor.name,
        "fingerprint": extractor.fingerprint,
        "card": features.weights.Weights.open(weights).card,
        "strides": list(extractor.strides),
        "channels": list(extractor.channels),
        "parameters": {**counts, "total": sum(counts.values())},
        "damping": damping,
        "levels": levels,
        **_judge(extractor),
    }


def _judge(extractor) -> dict:
    module = tracking.alignment_judge
    if not any(name.startswith(module.TENSORS) for name in extractor.companions):
        return {"judge": None, "judge_elsewhere": None}
    judge = module.AlignmentJudge.of(extractor.companions, f"weights '{extractor.name}'")
    odds = {f"log odds, {prior}": row for prior, row in zip(module.PRIORS, judge.log_odds)}
    numbers = odds | {"noise": judge.noise, "turn": judge.turn, "shift": judge.shift}
    numbers = {name: values.tolist() for name, values in numbers.items()}
    rows = {name: {"constant": row[0], "slopes": dict(zip(module.STATISTICS, row[1:]))} for name, row in numbers.items()}
    return {"judge": rows, "judge_elsewhere": judge.elsewhere}


def _table(summary: dict) -> str:
    facts = {"name": summary["name"], "fingerprint": summary["fingerprint"], **summary["card"]}
    width = max(map(len, facts))
    lines = [f"{name:<{width}}  {fact if isinstance(fact, str) else json.dumps(fact)}" for name, fact in facts.items()]
    lines.append("\nparameters")
    lines += [f"  {name:<18}{count:>12,}" for name, count in summary["parameters"].items()]
    heads = "".join(f"{name:>10}" for name in DEGREES_OF_FREEDOM)
    lines.append(f"\nlevels, coarse to fine, and the damping learned for them\n{'stride':>8}{'channels':>10}{heads}")
    for k, (stride, channels) in enumerate(zip(summary["strides"], summary["channels"])):
        factors = [f"{x:.3g}" for x in summary["damping"][k].values()] if summary["damping"] else ["-"] * 6
        lines.append(f"{stride:>8}{channels:>10}" + "".join(f"{text:>10}" for text in factors))
    return "\n".join(
        lines + _level_lines(summary["strides"], summary["levels"]) + _judge_lines(summary["judge"], summary["judge_elsewhere"])
    )


def _level_lines(strides: list[int], levels: list[dict] | None) -> list[str]:
    """A table of what is believed on each level; nothing where nothing was learned."""
    if levels is None:
        return []
    cues = next(iter(levels[0].values()))["slopes"]
    heads = [["constant"], *(textwrap.wrap(cue, _CUE_WIDTH - 2) for cue in cues)]
    lines = ["\nwhat is believed on each level: the constant, times 10 to the power of each slope times its cue"]
    for row in itertools.zip_longest(*heads, fillvalue=""):
        words = " " * _OUTPUT_WIDTH + f"{row[0]:>10}" + "".join(f"{word:>{_CUE_WIDTH}}" for word in row[1:])
        lines.append(words.rstrip())
    for stride, outputs in zip(strides, levels):
        lines.append(f"stride {stride}")
        for name, output in outputs.items():
            slopes = "".join(f"{slope:>{_CUE_WIDTH}.2f}" for slope in output["slopes"].values())
            lines.append(f"  {name:<{_OUTPUT_WIDTH - 2}}{output['constant']:>10.3g}{slopes}")
    return lines


def _judge_lines(judge: dict | None, elsewhere: float | None) -> list[str]:
    if judge is None:
        return []
    title = "the judge: log odds of a right pose, prior narrow or wide; log10 of noise, turn and shift; constants, slopes"
    heads = itertools.zip_longest(*(textwrap.wrap(name, _CUE_WIDTH - 2) for name in judge), fillvalue="")
    lines = [f"\n{title}"]
    lines += [(" " * _OUTPUT_WIDTH + "".join(f"{word:>{_CUE_WIDTH}}" for word in row)).rstrip() for row in heads]
    rows = [("constant", [row["constant"] for row in judge.values()])]
    rows += [(name, [row["slopes"][name] for row in judge.values()]) for name in next(iter(judge.values()))["slopes"]]
    end = [f"published covariances: times {elsewhere:.2f}, since other places are less well known"]
    lines += [f"  {name:<{_OUTPUT_WIDTH - 2}}" + "".join(f"{x:>{_CUE_WIDTH}.2f}" for x in row) for name, row in rows]
    return lines + end
