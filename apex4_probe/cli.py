"""The command line. Each verb is one thin function: it turns options into a call that Python can make as well.

Nothing heavy is imported at the top, so that ``--help`` answers at once; ``cli_frame`` has what the verbs share.
"""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from apex4_probe.cli_frame import (
    CHECK_FAILED,
    INTERRUPTED,
    NAME,
    ForceOption,
    FormatChoice,
    FormatOption,
    JsonOption,
    ModelOption,
    QualityOption,
    QuietOption,
    ShardsOption,
    SpeedupOption,
    WorkloadOption,
    command_line,
    console,
    display,
    one_sentence,
    profile_path,
)
from apex4_probe.errors import ApexError

app = typer.Typer(
    name=NAME,
    help="Does 4-bit LLM inference pay on this GPU, at which granularity, and why.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Tiles(str, Enum):
    default = "default"
    best = "best"
    all = "all"


class BenchMethod(str, Enum):
    interleaved = "interleaved"
    sustained = "sustained"
    both = "both"


class ShowFormat(str, Enum):
    table = "table"
    md = "md"
    csv = "csv"
    json = "json"


def _version(wanted: bool) -> None:
    if wanted:
        from apex4_probe import __version__

        print(f"{NAME} {__version__}")
        raise typer.Exit()


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
@one_sentence
def run(
    model: ModelOption = "llama-3-8b",
    workload: WorkloadOption = "decode:16,prefill:2048",
    format: FormatOption = FormatChoice.auto,
    max_quality_loss: QualityOption = 0.15,
    min_speedup: SpeedupOption = 1.2,
    tp: ShardsOption = 1,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Folder for profile.yaml, report.html and plots; {device} and {date} are filled in. "
            "Default: a new apex4-{device}-{date}.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help='Which GPUs, as CUDA numbers them: "0", "0,1" or "all".')] = "0",
    full: Annotated[
        bool, typer.Option("--full", help="Measure everything (5 minutes rather than 90 seconds).")
    ] = False,
    together: Annotated[
        bool, typer.Option("--together", help="Also load all of them at once: power, heat and host links are shared.")
    ] = False,
    like: Annotated[
        str | None, typer.Option(metavar="NAME", help='Predict another GPU from its datasheet, e.g. "RTX 3090".')
    ] = None,
    require_gpu: Annotated[
        bool, typer.Option("--require-gpu", help="Without a GPU exit with 2 rather than predict.")
    ] = False,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure this GPU, decide which 4-bit format and granularity pay, and write the deployment profile.

    Without a GPU it says so and predicts from datasheets instead: every figure is then marked predicted. Several GPUs
    get a profile each and a table that names the odd one out; it exits with 1 when one of them could not be measured.
    """
    from apex4_probe.emit import as_json
    from apex4_probe.flow import Request
    from apex4_probe.run_job import run_job

    request = Request(
        model=model,
        workload=workload,
        format=format.value,
        max_quality_loss=max_quality_loss,
        min_speedup=min_speedup,
        tensor_parallel=tp,
        device=device,
        full=full,
        together=together,
        like=like,
        require_gpu=require_gpu,
        command=command_line(),
    )
    answer = run_job(request, out, force=force, display=display(quiet, json))
    if json:
        print(as_json(answer.profiles.items(), answer.host))
    if not answer.complete:
        raise typer.Exit(CHECK_FAILED)


@app.command()
@one_sentence
def predict(
    device: Annotated[
        str | None,
        typer.Argument(
            metavar="[DEVICE|FILE.yaml]",
            help='A known device, e.g. "RTX 3090", or a file with one entry as profiles/datasheets.yaml has them.',
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every known device: one table, and one file each.")] = False,
    listed: Annotated[bool, typer.Option("--list", help="Print the names of all known devices.")] = False,
    model: ModelOption = "llama-3-8b",
    workload: WorkloadOption = "decode:16,prefill:2048",
    format: FormatOption = FormatChoice.auto,
    max_quality_loss: QualityOption = 0.15,
    min_speedup: SpeedupOption = 1.2,
    tp: ShardsOption = 1,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Also write the profile, its report and plots there (with --all: a profile a device); {device} and "
            "{date} are filled in. Default: print, write nothing.",
        ),
    ] = None,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Predict a GPU that is not here, from its datasheet and the balance model.

    Nothing is measured and nothing is marked measured. Times and speed-ups carry the interval between full overlap of
    the pipes and none; the notes say what is assumed.
    """
    from apex4_probe import predict_job as job
    from apex4_probe.emit import as_json
    from apex4_probe.flow import Request

    job.require_one_question(device, every, listed)
    if listed:
        if json:
            print(job.list_json())
        else:
            job.print_list(console())
        return
    if quiet and out is None and not json:
        raise ApexError("predict: --quiet without --out or --json would answer nowhere: add one of them")
    request = Request(
        model=model,
        workload=workload,
        format=format.value,
        max_quality_loss=max_quality_loss,
        min_speedup=min_speedup,
        tensor_parallel=tp,
        command=command_line(),
    )
    answers = job.predict_job(device, request, out, force=force, display=display(quiet, json))
    if json:
        print(as_json(answers))


@app.command()
@one_sentence
def show(
    profile: Annotated[Path, typer.Argument(help="A profile.yaml, or the folder that holds it.")],
    format: Annotated[
        ShowFormat | None,
        typer.Option(help="table: for a person (default); md: for an issue; csv: one measurement a line; json."),
    ] = None,
    describe: Annotated[
        bool, typer.Option("--describe", help="Say in one sentence each what the profile's numbers measure.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Same as --format json.")] = False,
) -> None:
    """Print a deployment profile: for a person, for an issue, or for a program."""
    from apex4_probe.profile_file import load_profile
    from apex4_probe.show_job import show_job

    if json and format is not None and format is not ShowFormat.json:
        raise ApexError(f"show: --json and --format {format.value} exclude each other: choose one")
    chosen = ShowFormat.json if json else format or ShowFormat.table
    show_job(load_profile(profile_path(profile)), chosen.value, describe, console())


@app.command()
@one_sentence
def compare(
    profiles: Annotated[
        list[str] | None,
        typer.Argument(
            help="profile.yaml files, folders that hold one, or names of known devices.", metavar="PROFILE..."
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="And all known devices: measured where a profile ships, and every datasheet.")
    ] = False,
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Folder for compare.html, .csv, .json and figures. Default: a new one."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Plan all of them for this model. Default: the one they share, else llama-3-8b.")
    ] = None,
    workload: Annotated[str | None, typer.Option(help="As for run. Default: the one they share.")] = None,
    format: Annotated[FormatChoice | None, typer.Option(help="As for run. Default: auto.")] = None,
    max_quality_loss: Annotated[float | None, typer.Option(help="As for run. Default: 0.15.")] = None,
    min_speedup: Annotated[float | None, typer.Option(help="As for run. Default: 1.2.")] = None,
    tp: Annotated[int | None, typer.Option(help="As for run. Default: the one they share.")] = None,
    price: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=USD_PER_HOUR", help="Price of a GPU, for cost per million tokens; repeatable."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON on stdout.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Put GPUs side by side: a table, one page with figures, CSV and JSON; measured and predicted never mixed."""
    from apex4_probe import compare_job as job

    wishes = job.Wishes(
        profiles=tuple(profiles or ()),
        every=every,
        model=model,
        workload=workload,
        format=format.value if format else None,
        max_quality_loss=max_quality_loss,
        min_speedup=min_speedup,
        tensor_parallel=tp,
        prices=tuple(price or ()),
        command=command_line(),
    )
    figures, remarks = console(quiet=quiet or json), console(quiet=quiet, stderr=json)
    comparison = job.compare_job(wishes, out, figures=figures, remarks=remarks)
    if json:
        print(job.as_json(comparison))


@app.command()
@one_sentence
def verify(
    profile: Annotated[Path, typer.Argument(help="A profile.yaml, or the folder that holds it.")],
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure a handful of figures again and say what drifted.")
    ] = False,
    device: Annotated[str, typer.Option(help="Which GPU, as CUDA numbers it.")] = "0",
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Does this profile still hold on this machine? Exits with 1 when it does not."""
    from apex4_probe import verify_job as check

    outcome = check.verify(profile_path(profile), device=device, measure=measure)
    if json:
        print(check.as_json(outcome))
    else:
        check.print_outcome(outcome, console())
    if not outcome.holds:
        raise typer.Exit(CHECK_FAILED)


@app.command()
@one_sentence
def bench(
    context: typer.Context,
    model: ModelOption = "llama-3-8b",
    shapes: Annotated[
        str | None,
        typer.Option(metavar="NxK,…", help="Weight shapes instead of a model's, e.g. 4096x14336,28672x4096."),
    ] = None,
    m: Annotated[str, typer.Option("--m", help="Numbers of tokens, joined by commas.")] = "1,8,16,64,256,1024,4096",
    variants: Annotated[
        str,
        typer.Option(
            metavar="GLOB,…",
            help='Which catalogue variants, e.g. "w4a8.small.*,*.g128i", and peers, where some are named.',
        ),
    ] = "*",
    tiles: Annotated[
        Tiles, typer.Option(help="default: each variant's own choice; best: its fastest tile; all: every tile.")
    ] = Tiles.default,
    method: Annotated[
        BenchMethod,
        typer.Option(help="interleaved: all in turn, for ratios; sustained: each back to back, as under load."),
    ] = BenchMethod.interleaved,
    peers: Annotated[
        bool, typer.Option("--peers", help="Also other libraries' 4-bit GEMMs that are installed.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Compare every output with the exact reference.")] = False,
    device: Annotated[str, typer.Option(help="Which GPU, as CUDA numbers it.")] = "0",
    sass: Annotated[
        bool,
        typer.Option(
            "--sass",
            help="Time nothing: count each kernel's machine code, and what it costs every pipe. Needs no GPU.",
        ),
    ] = False,
    arch: Annotated[
        str | None,
        typer.Option(metavar="SM_80,…", help="With --sass: which architectures. Default: sm_80,sm_86,sm_89."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Folder for bench.json, .csv and .png, with --sass sass.json, …; {device} and {date} are filled in. "
            "Default: a new one.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print what the JSON file holds on stdout.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Time every kernel variant against torch's FP16, FP8 and INT8 on the layer shapes of a model. Needs a GPU.

    With --check it exits with 1 where an output is wrong. With --sass nothing is run: it compiles the variants and says
    what their hot loops execute.
    """
    if sass:
        timing = {"--m": "m", "--model": "model", "--shapes": "shapes", "--method": "method", "--peers": "peers"}
        _refuse_given(context, {**timing, "--check": "check", "--device": "device"}, "--sass: it times nothing")
        if tiles is Tiles.best:
            raise ApexError("bench --sass --tiles best: which tile is fastest only a GPU tells; give default or all")
        _bench_sass(arch, variants, tiles, out, json, quiet)
        return
    if arch is not None:
        raise ApexError("bench: --arch belongs to --sass; without it the GPU that is here is timed")
    if shapes is not None:
        _refuse_given(context, {"--model": "model"}, "--shapes: it says what is timed instead")
    from apex4_probe import bench_job as job
    from apex4_probe.bench_plan import BenchRequest
    from apex4_probe.bench_records import bench_json

    request = BenchRequest(
        model=model,
        shapes=shapes,
        tokens=m,
        variants=variants,
        tiles=tiles.value,
        method=method.value,
        peers=peers,
        check=check,
        device=device,
        command=command_line(),
    )
    timed = job.bench_job(request, out, display=display(quiet, json))
    if json:
        print(bench_json(timed))
    if job.wrong(timed):
        raise typer.Exit(CHECK_FAILED)


def _bench_sass(arch: str | None, variants: str, tiles: Tiles, out: str | None, json: bool, quiet: bool) -> None:
    from apex4_probe import sass_job as job
    from apex4_probe.sass_records import sass_json

    request = job.SassRequest(
        architectures=job.DEFAULT_ARCHITECTURES if arch is None else arch,
        variants=variants,
        tiles="all" if tiles is Tiles.all else "default",
        command=command_line(),
    )
    report = job.sass_job(request, out, display=display(quiet, json))
    if json:
        print(sass_json(report))


@app.command()
@one_sentence
def doctor(json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """What is installed here, what is missing, and the command that mends it.

    Exits with 1 when a GPU is here and could not be measured.
    """
    from apex4_probe import doctor as clinic

    findings = clinic.examine()
    if json:
        print(clinic.as_json(findings))
    else:
        clinic.print_findings(findings, console())
    if not clinic.healthy(findings):
        raise typer.Exit(CHECK_FAILED)


def _refuse_given(context: typer.Context, options: dict[str, str], why: str) -> None:
    """Raise ApexError where one of ``options`` (as typed: its parameter) was given. ``why``: --other …"""
    for option, parameter in options.items():
        source = context.get_parameter_source(parameter)
        if source is not None and source.name == "COMMANDLINE":
            raise ApexError(f"bench: {option} does not go with {why}")


def main() -> None:
    """The console script."""
    try:
        app(prog_name=NAME)
    except KeyboardInterrupt:  # outside a verb: while importing or parsing
        sys.exit(INTERRUPTED)
