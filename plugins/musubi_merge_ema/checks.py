"""Everything that headers can tell about whether these files belong together."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

from musubi_cli import obstacle, show_path
from musubi_merge_ema.header import TensorInfo
from musubi_merge_ema.inputs import CheckpointFile

AVERAGED_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
KEPT_DTYPES = frozenset({"U64", "I64", "C64", "U32", "I32", "U16", "I16", "I8", "U8", "BOOL"})
"""Not floating point: taken from the first checkpoint."""

_RUN_KEYS = (
    "ss_output_name",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
    "ss_base_model_version",
    "ss_sd_model_name",
    "ss_sd_model_hash",
    "ss_min_timestep",
    "ss_max_timestep",
)
MOST_SHOWN = 3
_SCALES = (".scale_weight", ".weight_scale", ".comfy_quant", ".absmax", ".quant_map")


@dataclass(frozen=True)
class Finding:
    """Something the user should know before these files are merged.

    Attributes:
        code: what kind it is; what `--allow` takes where it may be overridden.
        severity: an `error` stops the merge.
        what: names the file and the tensor.
        way_out: what the user may do about it.
    """

    code: str
    severity: Literal["error", "warning"]
    what: str
    way_out: str = ""

    @property
    def message(self) -> str:
        """What is wrong and the way out."""
        return f"{self.what}; {self.way_out}" if self.way_out else self.what


def is_alpha(name: str) -> bool:
    """Whether a tensor is a LoRA's alpha: not averaged, and equal in all files."""
    return name.endswith(".alpha")


def check_merges(files: Sequence[CheckpointFile], output: Path) -> Iterator[Finding]:
    """The output, and earlier merges, among the inputs."""
    for file in files:
        if _same_file(file, output):
            way_out = (
                "--skip merges leaves it out" if file.is_merge else "choose another --output_file"
            )
            yield Finding("output", "error", f"{file.shown}: is the output", way_out)
        elif file.is_merge:
            yield Finding(
                "merges",
                "error",
                f"{file.shown}: is an earlier merge, not a checkpoint",
                "--skip merges leaves such files out, --allow merges averages it with the others",
            )
    for a, b in combinations(files, 2):
        if _derived(a, b) and not (a.is_merge or b.is_merge):
            yield Finding(
                "merges",
                "error",
                f"{a.shown} and {b.shown}: tell of one and the same save but hold different "
                "weights, so one was made from the other, perhaps by merging",
                "leave it out, or --allow merges",
            )


def check_duplicates(groups: Sequence[Sequence[CheckpointFile]]) -> Iterator[Finding]:
    """Weights that are there more than once."""
    way_out = "--skip duplicates counts them once, --allow duplicates as often as they are given"
    for group in groups[:MOST_SHOWN]:
        if len({file.identity for file in group}) == 1:
            told = f"{group[0].shown}: is given {len(group)} times"
        else:
            told = f"{', '.join(file.shown for file in group)}: hold the same weights"
        yield Finding("duplicates", "error", told, way_out)
    if len(groups) > MOST_SHOWN:
        told = f"and {len(groups) - MOST_SHOWN} more such groups"
        yield Finding("duplicates", "error", told, way_out)


def equal_by_header(files: Sequence[CheckpointFile]) -> list[list[CheckpointFile]]:
    """Groups of files that are one file, or whose headers give one hash of the weights."""
    groups: dict[object, list[CheckpointFile]] = {}
    key_of_inode: dict[tuple[int, int], object] = {}
    for file in files:
        key: object = file.identity
        if file.model_hash:
            key = (file.model_hash, file.header.data_bytes)
        key = key_of_inode.setdefault(file.identity, key)
        groups.setdefault(key, []).append(file)
    return [group for group in groups.values() if len(group) > 1]


def check_runs(files: Sequence[CheckpointFile]) -> Iterator[Finding]:
    """Files of another training run."""
    differing = [key for key in _RUN_KEYS if len(_values(files, key)) > 1]
    if differing:
        key, *others = differing
        usual, _ = _values(files, key).most_common(1)[0]
        odd = [f for f in files if f.header.metadata.get(key, usual) != usual]
        also = f" (also differing: {', '.join(others)})" if others else ""
        yield Finding(
            "other_run",
            "error",
            f"{', '.join(f.shown for f in odd)}: of another run: {key} is "
            f"{odd[0].header.metadata[key]!r:.60}, elsewhere {usual!r:.60}{also}",
            "leave it out, or --allow other_run",
        )
    sessions = {f.header.metadata.get("ss_session_id") for f in files} - {None}
    if len(sessions) > 1:
        yield Finding(
            "sessions",
            "warning",
            f"the files come from {len(sessions)} training sessions (ss_session_id), "
            "which is right only for a resumed run",
        )


def _values(files: Sequence[CheckpointFile], key: str) -> Counter[str]:
    return Counter(v for f in files if (v := f.header.metadata.get(key)) is not None)


def check_tensors(files: Sequence[CheckpointFile]) -> Iterator[Finding]:
    """Names, shapes and dtypes, which the first file decides."""
    first = files[0]
    for tensor in first.header.tensors.values():
        if tensor.dtype not in AVERAGED_DTYPES | KEPT_DTYPES:
            yield Finding(
                "dtype",
                "error",
                f"{first.shown}: tensor {tensor.name} is {tensor.dtype}, which cannot be averaged; "
                "merge the files before they are quantized",
            )
            break
    for name in first.header.tensors:
        if name == "scaled_fp8" or name.endswith(_SCALES):
            yield Finding(
                "quantized",
                "error",
                f"{first.shown}: tensor {name} shows quantized weights, and averages of codes and "
                "scales are not the average of the weights",
                "merge the files before they are quantized, or --allow quantized",
            )
            break
    for file in files[1:]:
        if file.header.tensors is first.header.tensors:
            continue
        yield from _names(first, file)
        yield from _shapes(first, file)


def _names(first: CheckpointFile, file: CheckpointFile) -> Iterator[Finding]:
    ours, theirs = first.header.tensors, file.header.tensors
    for lacking, having, names in (
        (file, first, [n for n in ours if n not in theirs]),
        (first, file, [n for n in theirs if n not in ours]),
    ):
        if names:
            yield Finding(
                "tensors",
                "error",
                f"{lacking.shown}: lacks tensor {names[0]}{_and_more(names)}, which {having.shown} "
                "has; only files of one network can be merged",
            )


def _shapes(first: CheckpointFile, file: CheckpointFile) -> Iterator[Finding]:
    common = [
        (ours, theirs)
        for name, theirs in file.header.tensors.items()
        if (ours := first.header.tensors.get(name))
    ]
    shapes = [(a, b) for a, b in common if a.shape != b.shape]
    if shapes:
        a, b = shapes[0]
        yield Finding(
            "shape",
            "error",
            f"{file.shown}: tensor {b.name} has shape {list(b.shape)}, in {first.shown} "
            f"{list(a.shape)}{_and_more(shapes)}; only files of one network can be merged",
        )
    dtypes = [(a, b) for a, b in common if a.dtype != b.dtype]
    foreign = [pair for pair in dtypes if not _both_averaged(*pair)]
    if dtypes:
        a, b = (foreign or dtypes)[0]
        told = f"{file.shown}: tensor {b.name} is {b.dtype}, in {first.shown} {a.dtype}"
        told += _and_more(foreign or dtypes)
        if foreign:
            told += "; integers and floats cannot be averaged"
            yield Finding("dtype", "error", told)
        else:
            yield Finding("dtype", "warning", f"{told}; the result has the latter's")


def _both_averaged(a: TensorInfo, b: TensorInfo) -> bool:
    return {a.dtype, b.dtype} <= AVERAGED_DTYPES


def _same_file(file: CheckpointFile, path: Path) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return file.identity == (status.st_dev, status.st_ino)


def _derived(a: CheckpointFile, b: CheckpointFile) -> bool:
    if a.checkpoint.saved is None or a.checkpoint.saved != b.checkpoint.saved:
        return False
    known = a.model_hash and b.model_hash
    return bool(known) and a.model_hash != b.model_hash and _trained(a) == _trained(b)


def _trained(file: CheckpointFile) -> dict[str, str]:
    return {k: v for k, v in file.header.metadata.items() if not k.startswith("sshs_")}


def _and_more(found: Sequence[object]) -> str:
    return f" (and {len(found) - 1} more)" if len(found) > 1 else ""


def check_output(output: Path, *, force: bool, needed: int) -> Iterator[Finding]:
    """Whether the output can be written.

    Args:
        output: the file to make.
        force: whether an existing file may be replaced.
        needed: its size in bytes.
    """
    problem = obstacle(output, needed)
    if problem:
        yield Finding("output", "error", f"{show_path(output)}: {problem}")
    elif os.path.lexists(output) and not force:
        yield Finding(
            "output", "error", f"{show_path(output)}: exists already; --force replaces it"
        )
    elif output.suffix != ".safetensors":
        yield Finding(
            "output",
            "warning",
            f"{show_path(output)}: will be in the safetensors format, whatever its name ends with",
        )
