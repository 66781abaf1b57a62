"""`everlearn doctor`: versions, devices, what is missing, and mending a cache."""

from __future__ import annotations

import argparse
import os
import shutil
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from everlearn.visible import tell

OPTIONAL = {
    "sentence_transformers": "embeddings by a sentence-transformers model: pip install 'everlearn[embeddings]'",
    "tensorboard": "training curves in TensorBoard: pip install 'everlearn[tracking]'",
}


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = commands.add_parser("doctor", help="show versions and devices, and say what is missing")
    parser.add_argument(
        "--cache", metavar="FOLDER", help="remove the corrupt artifacts of a cache, or of a run folder and its cache"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the findings; exit code 1 when a required part is missing."""
    if args.cache:
        return _mend(Path(args.cache))
    missing = []
    for requirement in metadata.requires("everlearn") or []:
        if "extra ==" in requirement:
            continue
        name = requirement.split(">")[0].split("=")[0].strip()
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(requirement)
    if missing:
        tell("missing: " + ", ".join(missing) + " - pip install everlearn again")
        return 1
    from everlearn.models.embedded_base import embedded_base_path
    from everlearn.runs.environment import machine, versions

    for name, version in versions().items():
        tell(f"{name:14} {version}")
    tell()
    for name, value in machine().items():
        tell(f"{name:14} {value}")
    import torch

    accelerators = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if not accelerators and hasattr(torch.backends, "mps") and torch.backends.mps.is_available():
        accelerators = ["Apple GPU (mps)"]
    tell(f"{'accelerators':14} {', '.join(accelerators) or 'none: training and generation run on the CPU'}")
    tell(f"{'free disk':14} {shutil.disk_usage(os.getcwd()).free / 2**30:.1f} GiB here")
    tell(f"{'embedded base':14} {embedded_base_path()}")
    for module, purpose in OPTIONAL.items():
        if find_spec(module) is None:
            tell(f"{'optional':14} not installed: {purpose}")
    return 0


def _mend(folder: Path) -> int:
    from everlearn.errors import RunError
    from everlearn.runs.store import remove_corrupt

    if not folder.is_dir():
        raise RunError(f"no folder {folder}: give the cache (runs/.cache) or a run folder.")
    removed = remove_corrupt(folder)
    for path in removed:
        tell(f"removed {path}")
    tell(f"{len(removed)} corrupt artifacts removed; 'everlearn resume' makes them again.")
    return 0
