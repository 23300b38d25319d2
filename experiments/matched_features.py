#!/usr/bin/env python3
# Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
"""Maps of matched features, and images found in them without a prior, hloc's way: retrieval, matching, PnP.

Run by an interpreter with the benchmark harness's packages (torch, pycolmap, poselib, h5py, ...); `map_sizes.py` and
`cold_start.py` call it. The harness gives features, matcher, triangulation against the known poses and PnP. Global
descriptors need no download: VLAD of the rival's own local features, its words learned on the map's images; the nearest map
images are matched one by one, PnP takes all matches together.

Writes JSON: what the map holds, takes and took; with --queries also one entry a query image: error against the truth,
inliers, processor seconds. Queries that the file holds already are kept, the map stays in --cache: a stopped run continues.

    ~/rivals/bin/python experiments/matched_features.py ../shared/tools/peers ../shared/data/fox -o fox.json
    ~/rivals/bin/python experiments/matched_features.py ../shared/tools/peers ../shared/data/fox -o fox.json --queries 0002.jpg
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

WORDS = 32
"""Of the VLAD."""
GLOBAL_NUMBERS = 4096
"""Of NetVLAD, hloc's default for retrieval: what is counted for it in sizes."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("harness", type=Path, help="folder of the harness")
    parser.add_argument("scene", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--peer", default="aliked_lg", help="features: aliked_lg, disk_lg, sift or orb (default aliked_lg)")
    parser.add_argument("--keypoints", type=int, default=1024, help="an image's at most, with LightGlue (default 1024)")
    parser.add_argument("--queries", nargs="*", default=[], metavar="NAME", help="images to look for")
    parser.add_argument("--nearest", type=int, default=5, metavar="K", help="map images that a query is matched with")
    parser.add_argument("--cache", type=Path, default=Path("out/matched"), help="folder of the maps")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    sys.path.insert(0, str(args.harness))
    import features
    import scene
    import torch

    cv2.setNumThreads(args.threads)
    torch.set_num_threads(args.threads)
    peer = (
        features.OpenCVPeer(args.peer)
        if args.peer in ("sift", "orb")
        else features.LightGluePeer(args.peer.split("_")[0], args.keypoints)
    )
    loaded = scene.load_scene(args.scene)
    refs, counts = matched_map(loaded, peer, args.cache / f"{args.scene.name}_{args.peer}_{args.keypoints}")
    result = {"peer": args.peer, "keypoints": args.keypoints, "nearest": args.nearest, "map": counts, "queries": []}
    if args.output.is_file():
        before = json.loads(args.output.read_text())
        if all(before[key] == result[key] for key in ("peer", "keypoints", "nearest")):
            result["queries"] = before["queries"]
    done = {entry["query"] for entry in result["queries"]}
    write_json(args.output, result)
    for entry in find_all(loaded, peer, refs, [name for name in args.queries if name not in done], args.nearest):
        result["queries"].append(entry)
        write_json(args.output, result)
    return 0


def write_json(path: Path, result: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".writing.{path.name}")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(path)


def matched_map(loaded, peer, folder: Path) -> tuple[list, dict]:
    """The harness's map of a scene, from the folder if it is there; what it holds, its bytes as hloc stores it, seconds."""
    import mapping

    stored, summary = folder / "map.npz", folder / "map.json"
    if not summary.is_file():
        peer.match(*[peer.extract(loaded.image(f)) for f in loaded.refs[:2]])  # the first call of everything is slow
        begin = time.process_time()
        refs = mapping.build_map(loaded, peer)
        seconds = time.process_time() - begin
        mapping.save_map(stored, refs)
        seen = [r.track[np.isfinite(r.xyz[:, 0])] for r in refs]
        counts = {
            "keyframes": len(refs),
            "features": sum(len(r.kp) for r in refs),
            "seconds": seconds,
            "observations": int(sum(map(len, seen))),
            "points": round(sum((1 / np.maximum(s, 1)).sum() for s in seen)),
        }
        summary.write_text(json.dumps(counts | {"bytes": stored_bytes(refs, counts, folder)}))
    return mapping.load_map(stored), json.loads(summary.read_text())


def stored_bytes(refs: list, counts: dict, folder: Path) -> dict[str, int]:
    """hloc's files: local features (half precision, HDF5), a global descriptor an image, COLMAP's binary model."""
    import h5py

    path = folder / "features.h5"
    with h5py.File(path, "w") as file:
        for k, ref in enumerate(refs):
            group = file.create_group(f"{k:06d}.png")
            group["keypoints"] = ref.kp.astype(np.float16)
            group["descriptors"] = ref.desc.T.astype(np.float16)
            group["scores"] = np.zeros(len(ref.kp), np.float16)
            group["image_size"] = ref.size
    # COLMAP's binary model: 24 bytes a keypoint and 64 and a name an image; 51 bytes a point and 8 for each of its observations.
    model = 24 * counts["features"] + 72 * len(refs) + 51 * counts["points"] + 8 * counts["observations"]
    return {"features": path.stat().st_size, "global": len(refs) * 2 * GLOBAL_NUMBERS, "model": model}


def find_all(loaded, peer, refs: list, names: list[str], nearest: int) -> Iterator[dict]:
    """One entry a query: errors, inliers, seconds of processor and clock."""
    import metrics

    words = learn_words(refs)
    described = np.stack([vlad(ref.desc, words) for ref in refs])
    by_name = {q.name: q for q in loaded.queries}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise SystemExit(f"{loaded.name} has no query {unknown[0]}")
    for k, name in enumerate(names):
        query, image = by_name[name], loaded.image(by_name[name])
        cpu, wall = time.process_time(), time.perf_counter()
        pose, inliers, matches = find(query, image, peer, refs, words, described, nearest)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        print(f"{loaded.name}: {k + 1} of {len(names)}", file=sys.stderr, flush=True)
        yield metrics.score(query, pose) | {"inliers": inliers, "matches": matches, "cpu_s": cpu, "wall_s": wall}


def find(query, image: np.ndarray, peer, refs: list, words: np.ndarray, described: np.ndarray, nearest: int):
    """Pose or None, inliers and matches of an image."""
    import mapping

    found = peer.extract(image)
    ranked = np.argsort(-(described @ vlad(found.desc, words)), kind="stable")[:nearest]
    pixels, xyz = [np.empty((0, 2))], [np.empty((0, 3))]
    for index in ranked.tolist():
        pairs = peer.match(found, refs[index])
        pairs = pairs[np.isfinite(refs[index].xyz[pairs[:, 1], 0])]
        pixels.append(found.kp[pairs[:, 0]])
        xyz.append(refs[index].xyz[pairs[:, 1]])
    pixels, xyz = np.concatenate(pixels), np.concatenate(xyz)
    pose = mapping.solve_pnp(pixels, xyz, query.camera)
    if pose is None:
        return None, 0, len(pixels)
    camera = query.camera
    limit = max(2.0, 4.0 * max(camera.width, camera.height) / 640)  # the harness's
    inside = pose(xyz)
    front = inside[:, 2] > 0
    away = np.linalg.norm(camera.img_from_cam(inside[front]) - pixels[front], axis=1)
    # A feature that several map images see counts once.
    return pose, len(np.unique(pixels[front][away < limit], axis=0)), len(pixels)


def learn_words(refs: list) -> np.ndarray:
    """Cluster centres [WORDS, D] of the map's descriptors."""
    samples = np.concatenate([np.asarray(ref.desc, np.float32) for ref in refs])
    cv2.setRNGSeed(0)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 25, 1e-4)
    return cv2.kmeans(samples, min(WORDS, len(samples)), None, criteria, 1, cv2.KMEANS_PP_CENTERS)[2]


def vlad(descriptors: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Sums of what descriptors [N, D] differ from their nearest word, each brought to unit length, then all together."""
    descriptors = np.asarray(descriptors, np.float32)
    if not len(descriptors):
        return np.zeros(words.size, np.float32)
    nearest = (2 * descriptors @ words.T - (words**2).sum(1)).argmax(1)
    sums = np.zeros_like(words)
    np.add.at(sums, nearest, descriptors - words[nearest])
    sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    return (sums / max(float(np.linalg.norm(sums)), 1e-12)).ravel()


if __name__ == "__main__":
    sys.exit(main())
