"""The plan: everything that is decided about a merge, as a value to print, to compare or to run."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import click

from musubi_cli import InputError, Offer, PluginError, ScheduleSpec, clean_stdout, one_line
from musubi_merge_ema import checks
from musubi_merge_ema.checks import Finding
from musubi_merge_ema.encoding import encode, lay_out
from musubi_merge_ema.header import TensorInfo
from musubi_merge_ema.inputs import MERGE_SPACES, CheckpointFile, read_all
from musubi_merge_ema.order import Order, arrange, contradictions
from musubi_merge_ema.schedules import effective_count, weights

LONE = 0.95
"""A checkpoint with this share leaves nothing worth averaging to the others."""
HEAVY_FIRST = 1 / 3
"""From this share on the oldest checkpoint is said to weigh more than people expect."""


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        paths: the files, in the order of the command line.
        output: the file to make.
        schedule: which schedule, and whose.
        values: the values of its options by parameter name.
        sort: how to order; see `order.arrange`.
        allow: codes of findings that are to be warnings.
        skip: `merges`, `duplicates`: which files to leave out.
        force: whether an existing output may be replaced.
    """

    paths: Sequence[Path]
    output: Path
    schedule: Offer[ScheduleSpec]
    values: Mapping[str, Any]
    sort: str = "auto"
    allow: Collection[str] = ()
    skip: Collection[str] = ()
    force: bool = False


@dataclass(frozen=True)
class Plan:
    """A merge, decided to the end.

    Attributes:
        request: what was asked for.
        order: the files, oldest first, and why so.
        skipped: files left out, each with the reason.
        rates: N-1 decay rates for the N files.
        findings: errors and warnings; with an error among them the plan cannot be run.
    """

    request: Request
    order: Order
    skipped: tuple[tuple[CheckpointFile, str], ...]
    rates: tuple[float, ...]
    findings: tuple[Finding, ...]

    @property
    def files(self) -> tuple[CheckpointFile, ...]:
        """The files to merge, oldest first."""
        return self.order.files

    @property
    def output(self) -> Path:
        """The file to make."""
        return self.request.output

    @property
    def force(self) -> bool:
        """Whether an existing output may be replaced."""
        return self.request.force

    @cached_property
    def weights(self) -> tuple[float, ...]:
        """What each file contributes; they sum to 1."""
        return tuple(weights(self.rates))

    @property
    def effective_count(self) -> float:
        """How many equally weighted checkpoints would average as much."""
        return effective_count(self.weights)

    @property
    def metadata(self) -> dict[str, str]:
        """The output's metadata without its hashes: the newest checkpoint's."""
        return dict(self.files[-1].header.metadata)

    @property
    def input_bytes(self) -> int:
        """Bytes of tensors to read."""
        return sum(file.header.data_bytes for file in self.files)

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """The output's tensors where they will lie; the oldest file decides what they are."""
        return lay_out(self.files[0].header.tensors.values())

    def header(self, model_hash: str = "0" * 64, legacy_hash: str = "0" * 8) -> bytes:
        """The output's header; its length does not depend on the hashes."""
        hashes = {"sshs_model_hash": model_hash, "sshs_legacy_hash": legacy_hash}
        return encode(self.tensors, self.metadata | hashes, spaces=MERGE_SPACES)

    @cached_property
    def output_bytes(self) -> int:
        """Size of the output."""
        return len(self.header()) + self.files[0].header.data_bytes

    @property
    def errors(self) -> list[str]:
        """Messages of the findings that forbid the merge."""
        return [f.message for f in self.findings if f.severity == "error"]

    @property
    def warnings(self) -> list[str]:
        """Messages of the findings that the user should know."""
        return [f.message for f in self.findings if f.severity == "warning"]

    def allows(self, code: str) -> bool:
        """Whether `--allow code` was given."""
        return code in self.request.allow


@dataclass(frozen=True)
class Written:
    """What the output turned out to be.

    Attributes:
        model_hash: `sshs_model_hash`.
        legacy_hash: `sshs_legacy_hash`.
    """

    model_hash: str
    legacy_hash: str


def make_plan(request: Request, *, read_contents: bool) -> Plan:
    """Decide everything.

    Args:
        request: what was asked for.
        read_contents: whether to read a few kB of tensors, which finds equal weights without a
            hash and differing alphas; otherwise headers only.

    Raises:
        InputError: a file cannot be used at all, or fewer than two are left.
        PluginError: the schedule broke its contract.
    """
    files, merges = _without_merges(read_all(request.paths), request)
    order = arrange(files, request.sort)
    equal = _equal_files(order.files, read_contents=read_contents)
    copies: list[tuple[CheckpointFile, str]] = []
    if "duplicates" in request.skip:
        order, copies = _without_copies(order, equal)
        equal = []
    skipped = (*merges, *copies)
    if len(order.files) < 2:
        raise InputError(_too_few(order.files, skipped))
    rates = _rates(request, order.files)
    findings = [
        *checks.check_merges(files, request.output),
        *checks.check_duplicates(equal),
        *checks.check_runs(order.files),
        *checks.check_tensors(order.files),
        *_about_order(order),
        *_about_weights(order, weights(rates)),
    ]
    if read_contents:
        from musubi_merge_ema.contents import check_alphas

        findings += check_alphas(order.files)
    plan = Plan(request, order, skipped, rates, ())
    findings += checks.check_output(plan.output, force=plan.force, needed=plan.output_bytes)
    return replace(plan, findings=tuple(_allowed(findings, request.allow)))


def _equal_files(
    files: Sequence[CheckpointFile], *, read_contents: bool
) -> list[list[CheckpointFile]]:
    if not read_contents:
        return checks.equal_by_header(files)
    from musubi_merge_ema.contents import equal_files

    return equal_files(files)


def _about_order(order: Order) -> Iterable[Finding]:
    if order.surprising:
        yield Finding("order", "warning", f"ordered by {order.reason}")
    for text in contradictions(order):
        yield Finding("order", "warning", text)


def _about_weights(order: Order, shares: Sequence[float]) -> Iterable[Finding]:
    heaviest = max(range(len(shares)), key=lambda i: shares[i])
    share = f"{100 * shares[heaviest]:.3g} %"
    if shares[heaviest] >= LONE:
        name = order.files[heaviest].shown
        yield Finding("weights", "warning", f"{name} alone makes {share} of the result")
    elif heaviest == 0 and shares[0] >= HEAVY_FIRST:
        name = order.files[0].shown
        told = f"the oldest file, {name}, makes {share} of the result; --sigma_rel avoids that"
        yield Finding("weights", "warning", told)


def _allowed(findings: Iterable[Finding], allow: Collection[str]) -> Iterable[Finding]:
    for finding in findings:
        yield replace(finding, severity="warning", way_out="") if finding.code in allow else finding


def _without_merges(
    files: Sequence[CheckpointFile], request: Request
) -> tuple[list[CheckpointFile], list[tuple[CheckpointFile, str]]]:
    if "merges" not in request.skip:
        return list(files), []
    kept = [file for file in files if not file.is_merge]
    return kept, [(file, "an earlier merge") for file in files if file.is_merge]


def _without_copies(
    order: Order, equal: Sequence[Sequence[CheckpointFile]]
) -> tuple[Order, list[tuple[CheckpointFile, str]]]:
    """Keep the oldest of equal files, whose place in the run is the right one."""
    copies = [
        (file, f"the same weights as {group[0].shown}") for group in equal for file in group[1:]
    ]
    left_out = {id(file) for file, _ in copies}
    kept = tuple(file for file in order.files if id(file) not in left_out)
    return replace(order, files=kept), copies


def _too_few(files: Sequence[CheckpointFile], skipped: Sequence[tuple[CheckpointFile, str]]) -> str:
    left_out = f", {len(skipped)} left out by --skip" if skipped else ""
    named = f" ({files[0].shown})" if files else ""
    count = "1 file" if len(files) == 1 else "no file"
    return f"a merge needs two or more files, here is {count}{named}{left_out}"


def _rates(request: Request, files: Sequence[CheckpointFile]) -> tuple[float, ...]:
    offer = request.schedule
    checkpoints = tuple(file.checkpoint for file in files)
    try:
        with clean_stdout():
            rates = [float(rate) for rate in offer.value.rates(checkpoints, **request.values)]
    except click.ClickException:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"schedule {offer.value.name} failed with {one_line(error)}; "
            f"that is a bug in {offer.origin}"
        ) from error
    broken = None
    if len(rates) != len(files) - 1:
        broken = f"{len(rates)} rates for {len(files)} files instead of {len(files) - 1}"
    for rate in rates:
        if not (math.isfinite(rate) and 0.0 <= rate <= 1.0):
            broken = f"the rate {rate:g}, which is not in [0, 1]"
    if broken:
        raise PluginError(
            f"schedule {offer.value.name} gave {broken}; that is a bug in {offer.origin}"
        )
    return tuple(rates)
