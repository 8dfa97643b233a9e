"""The studio: `mssync serve`'s page (Gradio) with the tabs Animate, Reenact, Score and Live, and the same as an API.

Its functions are the API: /animate, /reenact, /score and /mend, for `gradio_client` or any HTTP client
(docs/studio.md). Each hands its job to the queue of `mssync.app.jobs`; `mssync.app.guard` stands before all of it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount, Route

from mssync import __version__
from mssync.animate import check_options
from mssync.app.guard import Guard, Heartbeat, download, in_a_line
from mssync.app.jobs import AT_ONCE, LIMIT, WAITING, Jobs
from mssync.app.limits import MAX_SECONDS, in_words, with_picture
from mssync.app.place import KEEP, Place
from mssync.app.server import create_app
from mssync.app.uploads import Uploads, cannot_store
from mssync.app.visitors import Visitor, address
from mssync.app.work import DEMO_PORTRAIT, DEMO_SPEECH
from mssync.errors import InputError, PathLike
from mssync.meter import FRAME_MS
from mssync.syncer import MAX_OFFSET

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is there: nothing is sent, nothing is looked up
os.environ["HF_HUB_OFFLINE"] = "1"

import gradio as gr
import pandas as pd
from fastapi import FastAPI

if TYPE_CHECKING:
    from mssync.animate import Pipeline

log = logging.getLogger(__name__)

THREADS = 8 + WAITING + AT_ONCE  # what Gradio lets happen at once: waiting is done in our own queue
CURVES = 1000  # ms to both sides that the curves are drawn for
REACH = MAX_OFFSET * FRAME_MS  # ms to both sides in which an offset is looked for
INTRODUCTION = """# MS-Sync

A portrait speaks what you give it. Every video is marked as synthetic; animate only people who agreed to it."""

LIVE = '<iframe class="live" src="live/" allow="microphone" title="Live: speak, and a portrait talks"></iframe>'

STYLE = """
footer { display: none !important; }
.gradio-container { max-width: 70rem !important; margin: 0 auto !important; }
.live { display: block; width: 100%; height: 46rem; border: 0; }  /* its page sets another height */
:focus-visible { outline: 3px solid var(--color-accent) !important; outline-offset: 1px; }
@media (max-width: 600px) {
  .gradio-container { padding: 0.5rem !important; }
  .tab-container button { padding: 0 0.6rem !important; }  /* all tabs have room, whatever font they are measured in */
}
"""


def create_studio(
    pipeline: Pipeline,
    portrait: PathLike | np.ndarray | None = None,
    *,
    model: str = "compact",
    device: str = "cpu",
    token: str | None = None,
    sessions: int = 4,
    jobs: int = AT_ONCE,
    live_size: int | None = None,
) -> Starlette:
    """Make the studio: an application for any ASGI server, with the live page and its WebSocket at /live/ and /live/ws.

    A private folder is made at once and removed when the application ends.

    Args:
        pipeline: of `mssync.load(live=True)`, for live sessions and previews
        portrait: who speaks live for visitors without a picture
        model: as `mssync.load`, for the processes that do the jobs
        device: likewise
        token: what visitors must give, as in `mssync.app.server.create_app`
        sessions: how many may speak live at once
        jobs: how many at once
        live_size: pixels of live frames, as `size` of `create_app`

    Raises InputError as `mssync.app.server.create_app`.
    """
    live = create_app(pipeline, portrait, token=token, sessions=sessions, size=live_size)
    place = Place()
    uploads = Uploads(place)
    queue = Jobs(place, model, device, pipeline.reenactor.precision, jobs)
    try:
        page = _mounted(_page(queue, _Previewer(pipeline)))
    except BaseException:
        place.close()
        raise

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        queue.start()
        sweeping = asyncio.create_task(queue.sweep())
        try:
            async with live.router.lifespan_context(live), page.router.lifespan_context(page):
                page.get_blocks().run_startup_events()
                yield
        finally:
            sweeping.cancel()
            queue.stop()
            place.close()

    routes = [
        Mount("/live", live),
        Route("/gradio_api/upload", uploads.take, methods=["POST"]),
        Route("/gradio_api/upload_progress", uploads.progress),
        Route("/gradio_api/file={alias:path}", download(place)),
        Route("/gradio_api/heartbeat/{session}", Heartbeat(queue)),
        Mount("/", page),
    ]
    return Starlette(routes=routes, middleware=[Middleware(Guard, place=place, token=token)], lifespan=lifespan)


def _mounted(blocks: gr.Blocks) -> Any:
    """Gradio's application of a page. It sends nothing to anyone, shows no errors but ours, and keeps no history."""
    blocks.max_threads = blocks._queue.max_thread_count = THREADS
    parent = FastAPI()
    gr.mount_gradio_app(
        parent,
        blocks,
        "/",
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        css=STYLE,
        theme=gr.themes.Default(primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(
            block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300"
        ),
    )
    return next(route.app for route in parent.routes if isinstance(route, Mount))


class _Previewer:
    """Looks at pictures at once, while jobs wait: in the server, with a face finder of its own."""

    def __init__(self, pipeline: Pipeline) -> None:
        from mssync.animate import Pipeline as Own

        self.talker = Own(pipeline.reenactor, None, name=pipeline.name, device=pipeline.device)

    async def __call__(self, path: Path) -> np.ndarray:
        from mssync.app.overlay import preview

        return await with_picture(path, path.name, partial(preview, self.talker))


class _Answering(gr.Blocks):
    """A page of which every call is answered with a line that says what is wrong: none with null, none with a path."""

    async def preprocess_data(self, block_fn: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().preprocess_data(block_fn, *arguments, **options)
        except gr.Error:
            raise
        except Exception as error:
            line = f"wrong arguments for /{block_fn.api_name}: {in_a_line(error)}"
            log.warning("%s", line)
            raise gr.Error(line, title="This cannot be done", print_exception=False) from None

    async def process_api(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().process_api(*arguments, **options)
        except gr.Error as error:
            error.print_exception = False
            raise
        except InputError as error:
            raise gr.Error(str(error), title="This cannot be done", print_exception=False) from None
        except OSError as error:
            log.error("a call cannot be done: %s", error.strerror or error)
            raise gr.Error(cannot_store(error), title="This cannot be done", print_exception=False) from None
        except Exception:
            log.exception("a call broke")
            raise gr.Error("this broke; the server's messages tell why", print_exception=False) from None


def _page(queue: Jobs, previewer: _Previewer) -> gr.Blocks:
    """The page and its functions."""
    os.environ["GRADIO_TEMP_DIR"] = str(queue.place.root)  # Gradio asks for it whenever it handles a file
    # For an editor, which is closed here, it makes a folder as soon as there is a page.
    gr.routes.DEFAULT_TEMP_DIR = str(queue.place.root)
    with _Answering(title="MS-Sync", analytics_enabled=False) as blocks:
        gr.Markdown(INTRODUCTION)
        with gr.Tab("Animate"):
            _animate_tab(queue, previewer)
        with gr.Tab("Reenact"):
            _reenact_tab(queue, previewer)
        with gr.Tab("Score"):
            _score_tab(queue)
        with gr.Tab("Live"):
            gr.HTML(LIVE)
        gr.Markdown(
            f"At most {MAX_SECONDS / 60:.0f} minutes of speech or video and {in_words(LIMIT)} a job. Files go when "
            f"this page is closed, and {in_words(KEEP)} after their last use at the latest. MS-Sync {__version__}."
        )
        blocks.unload(lambda: None)  # makes the page keep its heartbeat open, by which the server knows of its end
    return blocks


# Tabs


def _animate_tab(queue: Jobs, previewer: _Previewer) -> None:
    with gr.Row():
        with gr.Column():
            picture = _portrait_input(queue, previewer, "animate")
            speech = gr.Audio(
                label="Speech", sources=["upload", "microphone"], type="filepath", buttons=[], elem_id="speech"
            )
            example = gr.Button("Use the example portrait and speech", size="sm")
            with gr.Accordion("Head motion, expression and more", open=False):
                head_motion = gr.Slider(0, 2, 1, step=0.05, label="Head motion", info="0: still, 1: as generated")
                expression = gr.Slider(0, 2, 1, step=0.05, label="Expression", info="0: none, 1: as generated")
                smooth = gr.Slider(0, 25, 0, step=0.5, label="Smoothing", info="in frames; 0: off")
                paste_back, badge, motion = _options()
                for slider in (head_motion, expression, smooth):
                    _as_given(slider)
                seed = gr.Number(0, label="Seed", info="Another one: the head turns elsewhere.", precision=0, minimum=0)
                _as_given(seed)
        video, says, make, cancel = _outputs("Make the video", "animate")

    async def animate(
        request: gr.Request,
        picture: str,
        speech: str,
        head_motion: float = 1,
        expression: float = 1,
        smooth: float = 0,
        seed: int = 0,
        paste_back: bool = False,
        badge: bool = False,
        motion: bool = False,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> tuple[str, str]:
        """Make a portrait speak: a picture and a recording in, a talking video and what was done out."""
        files = _needed(picture=(picture, "a portrait"), speech=(speech, "some speech"))
        options = _numbers(head_motion=head_motion, expression=expression, smooth=smooth)
        options |= _numbers(whole=True, seed=seed)
        check_options(**options)  # before it waits
        options |= _switches(paste_back=paste_back, badge=badge, motion=motion)
        return _video_answer(await _run(queue, "animate", request, progress, files, **options))

    async def use_example(request: gr.Request) -> tuple[str, str]:
        return tuple(_copied(queue, path, request) for path in (DEMO_PORTRAIT, DEMO_SPEECH))  # type: ignore[return-value]

    example.click(use_example, None, [picture, speech], api_visibility="private", show_progress="hidden")
    inputs = [picture, speech, head_motion, expression, smooth, seed, paste_back, badge, motion]
    _job(make, cancel, animate, inputs, [video, says], "animate")


def _reenact_tab(queue: Jobs, previewer: _Previewer) -> None:
    with gr.Row():
        with gr.Column():
            picture = _portrait_input(queue, previewer, "reenact")
            driving = gr.Video(label="Driving video", sources=["upload", "webcam"], elem_id="driving", buttons=[])
            example = gr.Button("Use the example portrait and video", size="sm")
            with gr.Accordion("Pose, whole picture and more", open=False):
                absolute = gr.Checkbox(False, label="Take over pose and proportions too")
                best_frame = gr.Checkbox(True, label="Count changes from the frame most like the portrait")
                paste_back, badge, motion = _options()
        video, says, make, cancel = _outputs("Move the portrait", "reenact")

    async def reenact(
        request: gr.Request,
        picture: str,
        video: str,
        absolute: bool = False,
        best_frame: bool = True,
        paste_back: bool = False,
        badge: bool = False,
        motion: bool = False,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> tuple[str, str]:
        """Move a portrait like the face in a video: a picture and a video in, a video and what was done out."""
        files = _needed(picture=(picture, "a portrait"), video=(video, "a driving video"))
        options = _switches(absolute=absolute, best_frame=best_frame)
        options |= _switches(paste_back=paste_back, badge=badge, motion=motion)
        return _video_answer(await _run(queue, "reenact", request, progress, files, **options))

    async def use_example(request: gr.Request, progress: Any = gr.Progress()) -> tuple[str, str]:  # noqa: B008
        made = await _run(queue, "example", request, progress, {}, late=False)
        return _copied(queue, DEMO_PORTRAIT, request), made["video"]

    example.click(use_example, None, [picture, driving], api_visibility="private", show_progress_on=driving)
    inputs = [picture, driving, absolute, best_frame, paste_back, badge, motion]
    _job(make, cancel, reenact, inputs, [video, says], "reenact")


def _score_tab(queue: Jobs) -> None:
    with gr.Row():
        with gr.Column():
            given = gr.Video(label="Video of a speaker", sources=["upload", "webcam"], buttons=[], elem_id="scored")
            example = gr.Button("Use the example: a video whose sound is late", size="sm")
            measure = gr.Button("Measure", variant="primary")
            cancel = gr.Button("Cancel", interactive=False)
            mend = gr.Button("Mend: move the sound into place")
            cancel_mend = gr.Button("Cancel mending", interactive=False)
        with gr.Column():
            says = gr.Textbox(label="Lips and sound", interactive=False, lines=2)
            curves = gr.LinePlot(
                label="Curves",
                show_label=False,
                x="offset in ms",
                y="distance",
                color="window",
                title="Lips against sound, by time scale",
                height=260,
            )
            over_time = gr.LinePlot(
                label="Over time",
                show_label=False,
                x="second",
                y="offset in ms",
                title="Offset over time",
                height=200,
                y_lim=[-REACH, REACH],
            )
            mended = gr.Video(label="Mended video", interactive=False, buttons=["download"], elem_id="mended")
            with gr.Accordion("All numbers", open=False):
                numbers = gr.JSON(label="Numbers", show_label=False)

    async def score(
        request: gr.Request,
        video: str,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> tuple[str, pd.DataFrame, pd.DataFrame, dict[str, Any]]:
        """Measure by how much lips and sound are apart: the verdict, curves, the offset over time, all numbers."""
        found = await _run(queue, "score", request, progress, _needed(video=(video, "a video")))
        verdict = found["says"]
        if found["can_tell"]:
            verdict += f" (probability {found['probability']:.2f}); {found['over_time_says']}"
        lines = [
            {
                "offset in ms": frames * level["frame_ms"],
                "distance": value,
                "window": f"{level['window_ms'] / 1000:g} s",
            }
            for level in found["lips"]
            for frames, value in zip(level["offsets_frames"], level["curve"], strict=True)
            if abs(frames * level["frame_ms"]) <= CURVES
        ]
        at = [{"second": part["second"], "offset in ms": part["offset_ms"]} for part in found["over_time"]]
        return verdict, pd.DataFrame(lines), pd.DataFrame(at), found

    async def mended_video(
        request: gr.Request,
        video: str,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> tuple[str, str]:
        """Move a video's sound by the measured offset; refuses when it cannot tell. A video, and what was done, out."""
        return _video_answer(await _run(queue, "mend", request, progress, _needed(video=(video, "a video"))))

    async def use_example(request: gr.Request, progress: Any = gr.Progress()) -> str:  # noqa: B008
        return (await _run(queue, "example", request, progress, {}, late=True))["video"]

    example.click(use_example, None, given, api_visibility="private")
    _job(measure, cancel, score, [given], [says, curves, over_time, numbers], "score")
    _job(mend, cancel_mend, mended_video, [given], [mended, says], "mend")


# Parts of tabs


def _portrait_input(queue: Jobs, previewer: _Previewer, tab: str) -> gr.Image:
    """The portrait, and below it what is found in it as soon as it is there."""

    picture = gr.Image(
        label="Portrait",
        sources=["upload", "webcam"],
        type="filepath",
        height=280,
        buttons=[],
        elem_id=f"{tab}-portrait",
    )
    # The file goes to jobs as it was sent: they say what is wrong with it better than Gradio's decoding would.
    picture.preprocess = lambda payload: payload.path if payload else None  # type: ignore[method-assign, unused-ignore]
    shown = gr.Image(
        label="Crop, face and keypoints",
        interactive=False,
        visible=False,
        height=280,
        buttons=[],
        elem_id=f"{tab}-preview",
    )

    async def look(path: str | None, request: gr.Request) -> Any:
        if not path:
            return gr.update(value=None, visible=False)
        file = queue.place.given(path, str(request.session_hash))
        try:
            pixels = await previewer(file)
        except InputError as error:
            gr.Warning(str(error), title="This portrait cannot be used")
            return gr.update(value=None, visible=False)
        return gr.update(value=await asyncio.to_thread(_saved, queue, pixels, str(request.session_hash)), visible=True)

    picture.change(look, picture, shown, api_visibility="private", show_progress="hidden")
    return picture


def _saved(queue: Jobs, pixels: np.ndarray, session: str) -> str:
    from PIL import Image

    path = queue.place.new(session) / "preview.jpg"
    Image.fromarray(pixels).save(path, quality=88)
    return str(path)


def _options() -> tuple[gr.Checkbox, gr.Checkbox, gr.Checkbox]:
    paste_back = gr.Checkbox(False, label="Put the face back into the whole picture")
    badge = gr.Checkbox(False, label="Draw a small mark, AI, into the corner")
    motion = gr.Checkbox(False, label="Draw the motion over the video")
    return paste_back, badge, motion


def _outputs(action: str, tab: str) -> tuple[gr.Video, gr.Textbox, gr.Button, gr.Button]:
    with gr.Column():
        make = gr.Button(action, variant="primary")
        cancel = gr.Button("Cancel", interactive=False)
        video = gr.Video(label="Result", interactive=False, buttons=["download"], height=400, elem_id=f"{tab}-result")
        says = gr.Textbox(label="About it", interactive=False, lines=2)
    return video, says, make, cancel


def _job(
    button: gr.Button, cancel: gr.Button, function: Callable[..., Any], inputs: list[Any], outputs: list[Any], name: str
) -> None:
    """Run a function by one button, end it by another one that is there meanwhile."""
    aside: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}

    def busy() -> tuple[Any, ...]:  # what was made before is not what is being made, even if this fails
        return gr.update(interactive=False), gr.update(interactive=True), *(None for _ in outputs)

    button.click(busy, None, [button, cancel, *outputs], **aside)
    running = button.click(
        function,
        inputs,
        outputs,
        api_name=name,
        concurrency_limit=None,
        trigger_mode="once",
        show_progress_on=outputs[0],
    )

    def idle() -> tuple[Any, Any]:
        return gr.update(interactive=True), gr.update(interactive=False)

    running.then(idle, None, [button, cancel], **aside)
    cancel.click(idle, None, [button, cancel], cancels=[running], **aside)


def _needed(**given: tuple[str | None, str]) -> dict[str, str]:
    for path, what in given.values():
        if not path:
            raise gr.Error(f"Give {what} first.", title="Something is missing", print_exception=False)
    return {name: str(path) for name, (path, _) in given.items()}


def _as_given(component: Any) -> None:
    """Let a function have what was sent: it says what is wrong with it, and of which argument."""
    component.preprocess = lambda payload: payload


def _numbers(whole: bool = False, **given: Any) -> dict[str, Any]:
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or (whole and value != int(value)):
            raise InputError(f"{name} must be a {'whole ' * whole}number, not {value!r:.40}")
    return {name: int(value) if whole else value for name, value in given.items()}


def _switches(**given: Any) -> dict[str, Any]:
    for name, value in given.items():
        if not isinstance(value, bool):
            raise InputError(f"{name} must be true or false, not {value!r:.40}")
    return given


async def _run(
    queue: Jobs, name: str, request: gr.Request, progress: Any, files: dict[str, str], **options: Any
) -> dict[str, Any]:
    """Do a job, tell the page how far it is; what is wrong with the input becomes a message."""

    def tell(share: float | None, words: str) -> None:
        progress(share, desc=words)

    begun, visitor = time.monotonic(), Visitor(address(request.client.host), str(request.session_hash))
    try:
        answer = await queue.run(name, visitor, files, tell, **options)
    except InputError as error:
        raise gr.Error(str(error), title="This cannot be done", print_exception=False) from None
    for warning in answer.pop("warnings"):
        gr.Warning(warning)
    answer["seconds_taken"] = round(time.monotonic() - begun, 1)
    return answer


def _video_answer(answer: dict[str, Any]) -> tuple[str, str]:
    return answer["video"], f"{answer['says']}. Done after {in_words(answer['seconds_taken'])}."


def _copied(queue: Jobs, path: Any, request: gr.Request) -> str:
    """A visitor's own copy of an example."""
    folder = queue.place.new(str(request.session_hash))
    return str(shutil.copy(path, folder))
