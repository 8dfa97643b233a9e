"""`mssync eval`: measures of models and of the videos they make."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mssync.cli.common import (
    ModelOption,
    SplitOption,
    SyncersOption,
    check_files,
    check_prepared,
    eval_app,
    need,
    without_nan,
    write_csv,
    write_json,
)
from mssync.errors import InputError, written_whole


@eval_app.command("picture")
def eval_picture(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE…",
            help="Videos of one person each: a manifest.csv with the columns file, split, identity, or a folder.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="DIR", help="Folder for figures and sheets.", show_default=False),
    ],
    split: SplitOption = "test",
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|PATH",
            help="As for `animate`, or copy: the portrait unmoved. Give several to compare them; compact unless given.",
            show_default=False,
        ),
    ] = None,
    min_size: Annotated[int, typer.Option(metavar="PIXELS", min=0, help="Leave out smaller videos.")] = 0,
    people: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="At most N people, one video of each; all.", show_default=False),
    ] = None,
    size: Annotated[int, typer.Option(metavar="PIXELS", min=128, max=1024, help="Side of the frames.")] = 512,
    frames: Annotated[int, typer.Option(metavar="N", min=3, help="Frames that are measured of a video.")] = 60,
    portraits: Annotated[
        list[Path] | None,
        typer.Option(metavar="IMAGE|DIR", help="Also show these portraits, twelve of a folder, under others' motion."),
    ] = None,
    driving: Annotated[int, typer.Option(metavar="N", min=1, help="Videos that drive --portraits.")] = 1,
) -> None:
    """Draw people's videos again from their first frame, under their own motion: how good are the pictures?

    Measured by region (face, mouth, eyes, hair): the error over that of copying the portrait, and sharpness over the
    real frames'; tint of the skin, steadiness of teeth, flicker, identity beside those of the real frames; and whether
    mouth, lids and gaze follow. The folder gets figures.csv (a row a video and model), summary.json (what the table
    shows) and contact sheets to look at, VIDEO.png and, with --portraits, portraits_VIDEO_MODEL.png.
    """
    need("scipy", "eval")
    from dataclasses import asdict

    from rich.console import Console

    from mssync.metrics import picture
    from mssync.metrics.drawers import load_pipelines
    from mssync.metrics.footage import find_jobs, find_portraits

    jobs, pictures = find_jobs(sources, split, min_size, people), find_portraits(portraits or [], most=12)
    pipelines = load_pipelines(model or ["compact"])
    output.mkdir(parents=True, exist_ok=True)
    if pictures:  # first, as a portrait may turn out to have no face
        picture.show_portraits(pipelines, pictures, jobs, driving, output, size)
    results = picture.measure(pipelines, jobs, output, size, frames)
    write_csv(output / "figures.csv", [{"model": m, **asdict(row)} for m, rows in results.items() for row in rows])
    estimates = {m: {n: asdict(e) for n, e in picture.summary(rows).items()} for m, rows in results.items()}
    about = {"split": split, "min_size": min_size, "size": size, "frames": frames}
    write_json(output / "summary.json", {**about, "models": without_nan(estimates)})
    count = len(next(iter(results.values())))
    Console().print(picture.table(results, f"{split}: {count} videos, 95 % intervals over people; sheets in {output}"))


@eval_app.command("animation")
def eval_animation(
    images: Annotated[list[Path], typer.Option("--image", metavar="IMAGE", help="A portrait; give several.")],
    recordings: Annotated[list[Path], typer.Option("--audio", metavar="AUDIO", help="Speech; give several.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Videos, sheets and figures.csv.")],
    model: ModelOption = "compact",
) -> None:
    """Animate every portrait with every recording; measure mouth, head and background on the videos."""
    check_files([*images, *recordings], [])
    from dataclasses import asdict

    from mssync.animate import load
    from mssync.metrics.animation import evaluate_all, summary

    figures = evaluate_all(load(model), images, recordings, output)
    write_csv(output / "figures.csv", [asdict(row) for row in figures])
    print_figures(f"{len(figures)} videos in {output}", summary(figures))


ModelsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[=PATH]", help="A generator: compact, or LABEL=FILE|DIR. Give several.", show_default=False
    ),
]
LiveOption = Annotated[bool, typer.Option("--live", help="Generators that hear speech do so as in a live session.")]
MOTION_ROWS = {
    "mouth_r": "r of mouth opening with the real one ↑",
    "opening": "its deviation over the real one",
    "width_r": "r of mouth width ↑",
    "lag": "lips late by, frames, 0 is right",
    "timely": "at most one frame ↑",
    "met": "contacts of the lips met ↑",
    "false": "contacts that are false ↓",
    "lips": "lips from the real ones, pixels of 256 ↓",
    "shape": "shape of the face from the real one, pixels ↓",
    "speed": "speed of the head, °/s",
    "yaw": "range of yaw, °",
    "pitch": "range of pitch, °",
    "roll": "range of roll, °",
    "place": "range of place, eye distances",
    "blinks": "blinks a minute",
    "jitter": "jitter over the real one",
    "gaze": "deviation of gaze to the side, % of an eye",
    "viewer": "share of frames at the viewer",
    "saccades": "saccades a minute",
}


@eval_app.command("sync")
def eval_sync(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Prepared folder with motion (`mssync extract`).")],
    split: SplitOption = "val",
    model: ModelsOption = None,
    syncers: SyncersOption = None,
    min_seconds: Annotated[float, typer.Option(metavar="F", min=1, help="Leave out shorter clips.")] = 3.0,
    live: LiveOption = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE.csv", help="One row a clip.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE.json", help="The table, for machines.")
    ] = None,
) -> None:
    """Offsets and confidences at every time scale: real motion, other people's sound, moved sound, generated motion."""
    check_prepared(data)
    check_files([], [(output, ".csv"), (json_file, ".json")])
    need("scipy", "eval")
    from dataclasses import asdict

    from mssync.data.sequences import generator_sequences, read_sequences
    from mssync.metrics import synchrony
    from mssync.syncer import SyncerPyramid
    from mssync.video import FPS

    judges = SyncerPyramid.load(syncers)
    generators = _generators(model or ["compact"], live)
    clips = read_sequences(data, split, round(min_seconds * FPS))
    judges.check_space(clips[0].space)
    scores = [*synchrony.conditions(judges, clips), *synchrony.baselines(judges, clips)]
    for label, (generator, hear) in generators.items():
        minimum = round(min_seconds * FPS)
        heard = generator_sequences(generator.config, hear, data, split, minimum) if hear else clips
        scores += synchrony.generated(judges, generator, heard, label)
    lines = synchrony.lines(scores)
    if output is not None:
        write_csv(output, [asdict(s) for s in scores])
    if json_file is not None:
        write_json(json_file, {"split": split, "clips": len(clips), "lines": [asdict(line) for line in lines]})
    _print_lines(lines, f"{split}: {len(clips)} clips, 95 % intervals over clips")


def _generators(models: list[str], live: bool) -> dict[str, tuple[Any, Any]]:
    """Generators by label, of `LABEL=PATH`, the name of a shipped model, or a path; and what they hear (`Hear`)."""
    from mssync.animate import model_files
    from mssync.data.sequences import listening
    from mssync.speech import FILE, FILE_AHEAD, LIVE_AHEAD
    from mssync.weights import load_model

    found = {}
    for model in models:
        label, _, path = model.rpartition("=")
        file = Path(path) if Path(path).is_file() else model_files(path)[1]
        if file is None:
            raise InputError(f"{path} has no generator; give a folder with generator.safetensors, or the file")
        generator: Any = load_model(file, kinds=("generator",))[0]
        ahead = LIVE_AHEAD if live else FILE_AHEAD
        found[label or path] = generator, listening(generator.config, file.parent / FILE, (ahead,))
    return found


def _print_lines(lines: Any, title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("system", "scale", title=title, title_justify="left")
    for column in (
        "|AV-Off|, frames of the level ↓",
        "AV-Conf ↑",
        "score ↑",
        "moved sound found ↑",
        "p (|AV-Off|)",
        "p (AV-Conf)",
    ):
        table.add_column(column, justify="right")
    for line in lines:
        figures = (line.offset, line.confidence, line.similarity, line.recovered)
        cells = [f"{e.value:.2f} ({e.low:.2f} to {e.high:.2f})" if e.clips else "" for e in figures]
        ps = ["" if p != p else f"{p:.2g}" for p in (line.p_offset, line.p_confidence)]
        table.add_row(line.system, f"{line.milliseconds} ms", *cells, *ps)
    Console().print(table)


@eval_app.command("motion")
def eval_motion(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Prepared folder with motion (`mssync extract`).")],
    split: SplitOption = "val",
    model: ModelsOption = None,
    min_seconds: Annotated[float, typer.Option(metavar="F", min=1, help="Leave out shorter clips.")] = 3.0,
    live: LiveOption = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE.json", help="The table, for machines.")
    ] = None,
) -> None:
    """Lips, shape of the face and head of generated motion against the real one, before a picture is drawn."""
    check_prepared(data)
    check_files([], [(json_file, ".json")])
    need("scipy", "eval")
    from dataclasses import asdict

    from mssync.data.sequences import generator_sequences, read_sequences
    from mssync.face1 import GAZE, SPACE
    from mssync.metrics import motions
    from mssync.metrics.synchrony import REAL, rolled_out, seen
    from mssync.video import FPS

    generators = _generators(model or ["compact"], live)
    minimum = round(min_seconds * FPS)
    clips = read_sequences(data, split, minimum, faces=True)
    made, gazes = {}, {REAL: [clip.faces[0].motion[:, GAZE] for clip in clips if clip.faces]}
    for label, (generator, hear) in generators.items():
        heard = generator_sequences(generator.config, hear, data, split, minimum) if hear else clips
        own = [rolled_out(generator, clip) for clip in heard]
        made[label] = [seen(clip, motion) for clip, motion in zip(heard, own, strict=True)]
        if generator.config.space == SPACE:
            gazes[label] = [motion[:, GAZE] for motion in own]
    systems = motions.compare(clips, made, gazes)
    if json_file is not None:
        write_json(json_file, {"split": split, "clips": len(clips), "systems": [asdict(system) for system in systems]})
    _print_systems(systems, f"{split}: {len(clips)} clips, 95 % intervals over clips")


def _print_systems(systems: Any, title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", *(system.name for system in systems), title=title, title_justify="left")
    for name in systems[0].figures:
        cells = [system.figures[name] for system in systems]
        table.add_row(
            MOTION_ROWS[name], *(f"{e.value:.2f} ({e.low:.2f} to {e.high:.2f})" if e.clips else "" for e in cells)
        )
    table.add_row("Fréchet distance of head poses ↓", *(f"{system.pose_distance:.1f}" for system in systems))
    Console().print(table)


@eval_app.command("drift")
def eval_drift(
    audio: Annotated[Path, typer.Option(metavar="AUDIO", help="Speech; repeated where it is too short.")],
    image: Annotated[Path, typer.Option(metavar="IMAGE", help="The portrait.")],
    minutes: Annotated[float, typer.Option(metavar="F", min=1, help="How long to speak.")] = 5.0,
    model: ModelOption = "compact",
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE.csv", help="One row a minute.")] = None,
) -> None:
    """Speak for minutes on end: is the last minute of the motion like the first?"""
    check_files([audio, image], [(output, ".csv")])
    from dataclasses import asdict

    import numpy as np
    import torch

    from mssync.animate import load
    from mssync.audio import SAMPLE_RATE, features, load_audio
    from mssync.metrics import synchrony
    from mssync.syncer import SyncerPyramid

    talker = load(model)
    sound = np.resize(load_audio(audio), round(minutes * 60 * SAMPLE_RATE))
    portrait = talker.portrait(image)
    made = talker.animate(portrait, sound, sample_rate=SAMPLE_RATE).motion
    motion = torch.from_numpy(talker.shown(portrait, made)[0] if made.ndim == 2 else made).flatten(1)
    heard = features(torch.from_numpy(sound), n_video_frames=len(motion))
    judges = SyncerPyramid.load()
    rows = [asdict(row) for row in synchrony.minutes(judges, motion, heard, talker.reenactor.needs_landmarks)]
    for row in rows:
        row |= {f"confidence_{200 * 2**n}": value for n, value in enumerate(row.pop("confidences"))}
        row |= {f"head_{name}": value for name, value in (row.pop("head") or {}).items()}
    if output is not None:
        write_csv(output, rows)
    for row in rows:
        print_figures(f"minute {row.pop('minute') + 1}", row)


@eval_app.command("meter")
def eval_meter(
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder that `mssync preprocess` made.", show_default=False)
    ] = None,
    split: SplitOption = "val",
    videos: Annotated[
        list[Path] | None,
        typer.Option(metavar="VIDEO|DIR", help="Videos to encode again under other frame rates, shift and mend."),
    ] = None,
    meter: Annotated[str, typer.Option(metavar="NAME|PATH", help="The meter's model file.")] = "meter",
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE.csv", help="One row a trial.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE.json", help="What the tables show, for machines.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Measured offsets by shift (needs --data).")
    ] = None,
) -> None:
    """Shift the sound of clips by -8 to 8 frames and count how often the sync meter finds out."""
    check_files([], [(output, ".csv"), (json_file, ".json"), (plot, ".png")])
    if not data and not videos:
        raise InputError("give clips with --data, videos with --videos, or both")
    if plot is not None:
        need("matplotlib", "eval")
    from dataclasses import asdict

    from mssync.data.clips import read_clips
    from mssync.meter import SyncMeter
    from mssync.metrics import recovery
    from mssync.sync.score import find_videos

    loaded, trials, tables = SyncMeter.load(meter), [], {}
    if data:
        trials = list(recovery.recover(loaded, read_clips(data, split)))
        tables[f"{split}: sound shifted by -8 to 8 frames"] = recovery.summary(trials)
    if plot is not None and trials:
        with written_whole(plot, ".png") as temporary:
            recovery.plot_confusion(trials, temporary)
    if videos:
        pairs = list(recovery.recover_files(loaded, find_videos(videos)))
        tables["videos, encoded again and shifted"] = recovery.summary([trial for trial, _ in pairs])
        tables["videos, mended"] = {"all": recovery.mending(pairs)}
        trials += [trial for pair in pairs for trial in pair if trial]
    if output is not None:
        write_csv(output, [asdict(trial) for trial in trials])
    if json_file is not None:
        write_json(
            json_file, {t: {g: {n: asdict(e) for n, e in f.items()} for g, f in tables[t].items()} for t in tables}
        )
    for title, groups in tables.items():
        print_estimates(title, groups)


@eval_app.command("speech")
def eval_speech(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder that `mssync preprocess` made.")],
    split: SplitOption = "val",
    model: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A speech encoder; give several to compare them.", show_default=False),
    ] = None,
    lookahead: Annotated[
        list[int] | None,
        typer.Option(metavar="MS", help="How far encoders may look ahead, 0 to 640; give several. 160 and 640."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Labels of the same videos: also the teacher.", show_default=False),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE.csv", help="One row a clip.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE.json", help="What the tables show, for machines.")
    ] = None,
) -> None:
    """How well a small network reads the opening of the mouth from log energies, speech encoders and their teacher.

    With --labels also how much of the teacher's features encoders explain, by language.
    """
    check_prepared(data)
    check_files([*(model or [])], [(output, ".csv"), (json_file, ".json")])
    from dataclasses import asdict

    from mssync.metrics import speech
    from mssync.speech import SpeechEncoder

    heard: dict[str, Any] = {"log energies": speech.log_energies, "log mel": speech.mel_energies}
    files = model or []
    encoders = {"encoder" if len(files) == 1 else str(path): SpeechEncoder.load(path) for path in files}
    aheads = lookahead or [160, 640]
    for name, encoder in encoders.items():
        heard |= {f"{name}, {ahead} ms": speech.student(encoder, ahead) for ahead in aheads}
    if labels is not None:
        heard["teacher"] = speech.teacher(labels)
    results = {name: speech.lips(hear, data, split) for name, hear in heard.items()}
    tables = {f"{split}: r of the mouth's opening": speech.summary(results)}
    if labels is not None:
        for name, encoder in encoders.items():
            tables[f"{split}: {name}, by language"] = speech.languages(encoder, labels, split, aheads)
    if output is not None:
        write_csv(output, [{"heard": name, "clip": clip, "r": r} for name, rows in results.items() for clip, r in rows])
    if json_file is not None:
        content = {t: {g: {n: asdict(e) for n, e in f.items()} for g, f in tables[t].items()} for t in tables}
        write_json(json_file, without_nan(content))
    for title, groups in tables.items():
        print_estimates(title, groups)


def print_estimates(title: str, groups: dict[str, dict[str, Any]]) -> None:
    """A table of figures (columns) by group (rows), with 95 % intervals over clips."""
    from rich.console import Console
    from rich.table import Table

    names = list(dict.fromkeys(name for figures in groups.values() for name in figures))
    table = Table("", "clips", *names, title=f"{title}; 95 % intervals over clips", title_justify="left")
    for group, figures in groups.items():
        cells = [figures.get(name) for name in names]
        shown = ["" if e is None else f"{e.value:.2f} ({e.low:.2f} to {e.high:.2f})" for e in cells]
        table.add_row(group, str(max(e.clips for e in figures.values())), *shown)
    Console().print(table)


def print_figures(title: str, figures: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", "value", title=title, title_justify="left")
    for name, value in figures.items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table)
