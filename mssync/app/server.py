"""Live sessions: an ASGI application with a WebSocket, and a page that plays them; a part of the studio.

The protocol, in this order (docs/live.md shows a client):

- the client sends text, ``{"type": "start", "portrait": true, "head_motion": 1, "expression": 1, "seed": 0}``; with
  `portrait` it then sends a picture file as one binary message, without it the server's own portrait speaks
- the server sends text, ``{"type": "ready", "fps": 25, "rate": 16000, "lookahead": 4, "latency": 0.16, "size": 256}``
- the client sends sound, binary messages of 16-bit little-endian samples, 16 kHz mono, and the text ``{"type": "end"}``
- the server sends frames, binary messages: the index t as uint32 and the time t / 25 in seconds as float64, both
  little-endian, then a JPEG; the client answers each with the text ``{"type": "seen", "index": t}``
- the server sends text, ``{"type": "end", "frames": 250}``, or at any time ``{"type": "error", "message": "…"}``, and
  closes

Frames belong to the sound by their time. One that the client is too slow for is left out: at most WINDOW frames are
under way, and of those that wait the newest are kept.
"""

from __future__ import annotations

import asyncio
import io
import ipaddress
import json
import struct
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from mssync.app.engine import Engine, Speaker
from mssync.app.guard import LOCAL, allowed
from mssync.audio import SAMPLE_RATE
from mssync.errors import InputError, PathLike
from mssync.reenact import SIZE
from mssync.stream import StreamingAnimator
from mssync.video import FPS

if TYPE_CHECKING:
    from mssync.animate import Pipeline, Portrait

PAGE = Path(__file__).parent / "page"
SESSIONS = 4  # at once: what two cores can draw at a rate that still looks like motion
MAX_PICTURE_BYTES = 10_000_000
MAX_TEXT = 1000  # characters of a text message
MAX_SOUND_BYTES = 2 * SAMPLE_RATE  # of a message: a second
AHEAD = 2.0  # seconds that sound may be ahead of the clock; then it is not read for a while
IDLE = 30.0  # seconds without a message after which a session is closed
FAREWELL = 5.0  # seconds that a client has to answer the last frames
WINDOW = 10  # frames that are sent and not yet seen
WAITING = 5  # frames that wait for a slow client; the oldest of more is left out
HEADER = struct.Struct("<Id")  # of a frame: index, seconds
REFUSED, TOO_BIG, BUSY, BROKEN = 1008, 1009, 1013, 1011  # codes of WebSocket closures
POLICY = "default-src 'self'; img-src 'self' blob:; media-src 'self' blob:; object-src 'none'; frame-ancestors 'self'"


def create_app(
    pipeline: Pipeline | None = None,
    portrait: PathLike | np.ndarray | None = None,
    *,
    token: str | None = None,
    sessions: int = SESSIONS,
) -> Starlette:
    """The application: give it to an ASGI server, mount others in it, or it in others.

    It has a page at / and a WebSocket at /ws.
    pipeline: of `mssync.load(live=True)`, which it is unless given; portrait: who speaks unless a client brings a
    picture of its own; token: what clients must give (see `guard.given_token`; None: requests for this machine's own
    names alone are answered); sessions: how many at once.
    Raises InputError: a pipeline that cannot speak live, a portrait without a face.
    """
    if pipeline is None:
        from mssync.animate import load

        pipeline = load(live=True)
    pipeline.live_generator()
    prepared = None if portrait is None else pipeline.portrait(portrait)
    live = _Live(pipeline, prepared, token, sessions)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(live.engine.stop)

    routes = [
        Route("/", _file("index.html")),
        *(Route(f"/{name}", _file(name)) for name in ("style.css", "live.js", "capture.js")),
        Route("/status", live.status),
        WebSocketRoute("/ws", live.session),
    ]
    # Pages of other sites must not reach a server on this machine under a name of theirs.
    guard = [] if token else [Middleware(TrustedHostMiddleware, allowed_hosts=list(LOCAL))]
    return Starlette(routes=routes, middleware=guard, lifespan=lifespan)


def _file(name: str) -> Any:
    async def endpoint(_: Request) -> Response:
        headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
        return FileResponse(PAGE / name, headers=headers)

    return endpoint


class _Live:
    """The sessions of one application."""

    def __init__(self, pipeline: Pipeline, portrait: Portrait | None, token: str | None, limit: int) -> None:
        self.pipeline, self.portrait, self.token, self.limit = pipeline, portrait, token, limit
        self.engine, self.count = Engine(pipeline.cores), 0

    async def status(self, request: Request) -> Response:
        if not allowed(request, self.token):
            return JSONResponse({"error": "wrong token"}, 403)
        return JSONResponse({"sessions": self.count, "limit": self.limit, "portrait": self.portrait is not None})

    async def session(self, socket: WebSocket) -> None:
        await socket.accept()
        origin, host = socket.headers.get("origin"), socket.headers.get("host")
        if not allowed(socket, self.token):
            return await _refuse(socket, "wrong token: open the address that `mssync serve` printed", REFUSED)
        if origin is not None and urlsplit(origin).netloc != host:
            return await _refuse(socket, "pages of other sites may not connect", REFUSED)
        if self.count >= self.limit:
            return await _refuse(socket, f"all {self.limit} sessions are taken; try again later", BUSY)
        self.count += 1
        self.engine.start()
        try:
            await self._serve(socket)
        except InputError as error:
            await _refuse(socket, str(error), REFUSED)
        except asyncio.TimeoutError:
            await _refuse(socket, f"nothing came for {IDLE:.0f} s", REFUSED)
        except WebSocketDisconnect:
            pass
        finally:
            self.count -= 1

    async def _serve(self, socket: WebSocket) -> None:
        animator = await self._animator(socket)
        outgoing = _Outgoing(socket)
        speaker = Speaker(animator, outgoing.deliver)
        self.engine.add(speaker)
        sending = asyncio.create_task(outgoing.run())
        try:
            await socket.send_json(
                {
                    "type": "ready",
                    "fps": FPS,
                    "rate": SAMPLE_RATE,
                    "lookahead": animator.lookahead,
                    "latency": animator.latency,
                    "size": animator.size,
                }
            )
            await self._listen(socket, speaker, outgoing, sending)
        finally:
            self.engine.remove(speaker)
            sending.cancel()
            with suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
                await sending

    async def _animator(self, socket: WebSocket) -> StreamingAnimator:
        """What the first messages ask for."""
        asked = _parsed(await _receive(socket))
        if asked.get("type") != "start":
            raise InputError('the first message must be {"type": "start"}')
        portrait: Portrait | np.ndarray | None = self.portrait
        if asked.get("portrait"):
            picture = await _receive(socket)
            if not isinstance(picture, bytes) or len(picture) > MAX_PICTURE_BYTES:
                raise InputError(f"after the start comes a picture file of at most {MAX_PICTURE_BYTES // 1_000_000} MB")
            portrait = await asyncio.to_thread(_picture, picture)
        if portrait is None:
            raise InputError("this server has no portrait of its own; send a picture")
        try:
            factors = {name: float(asked.get(name, 1.0)) for name in ("head_motion", "expression")}
            seed = int(asked.get("seed", 0))
        except (TypeError, ValueError, OverflowError):
            raise InputError("head_motion, expression and seed must be numbers") from None
        return await asyncio.wrap_future(
            self.engine.call(
                lambda: StreamingAnimator(
                    self.pipeline, portrait, sample_rate=SAMPLE_RATE, seed=seed, size=SIZE, **factors
                )
            )
        )

    async def _listen(
        self, socket: WebSocket, speaker: Speaker, outgoing: _Outgoing, sending: asyncio.Task[None]
    ) -> None:
        """Messages of the client until all frames are sent or it is gone."""
        begun, received, ended = time.monotonic(), 0, False
        while not sending.done():
            receiving = asyncio.create_task(_receive(socket))
            await asyncio.wait({receiving, sending}, return_when=asyncio.FIRST_COMPLETED)
            if receiving.done() and isinstance(receiving.exception(), asyncio.TimeoutError) and speaker.busy():
                continue  # it is the engine that is late
            if not receiving.done():
                receiving.cancel()
                with suppress(asyncio.CancelledError, WebSocketDisconnect, asyncio.TimeoutError):
                    await receiving
                break
            message = receiving.result()
            if isinstance(message, str):
                said = _parsed(message)
                if said.get("type") == "seen":
                    outgoing.seen()
                elif said.get("type") == "end":
                    ended = True
                    speaker.end()
                    self.engine.wake()
            elif not ended:
                if len(message) > MAX_SOUND_BYTES or len(message) % 2:
                    raise InputError(f"sound must come in 16-bit samples, at most {MAX_SOUND_BYTES} bytes at a time")
                samples = np.frombuffer(message, "<i2").astype(np.float32) / 32768
                speaker.hear(samples)
                self.engine.wake()
                received += len(samples)
                ahead = received / SAMPLE_RATE - (time.monotonic() - begun) - AHEAD
                if ahead > 0:
                    await asyncio.sleep(ahead)
        await sending


class _Outgoing:
    """Frames on their way to one client: few wait, few are under way, old ones give way to new ones."""

    def __init__(self, socket: WebSocket) -> None:
        self.socket, self.loop = socket, asyncio.get_running_loop()
        self.waiting: deque[tuple[int, bytes]] = deque(maxlen=WAITING)
        self.under_way = 0
        self.frames: int | None = None  # in all, once that is known
        self.changed = asyncio.Event()

    def deliver(self, index: int, coded: bytes | None) -> None:
        """From the engine's thread."""
        with suppress(RuntimeError):  # the loop is closed: the server has been stopped
            self.loop.call_soon_threadsafe(self._deliver, index, coded)

    def _deliver(self, index: int, coded: bytes | None) -> None:
        if coded is None:
            self.frames = index
        else:
            self.waiting.append((index, coded))
        self.changed.set()

    def seen(self) -> None:
        self.under_way = max(0, self.under_way - 1)
        self.changed.set()

    async def run(self) -> None:
        """Send until the speech has ended and all that waited is sent."""
        while self.frames is None or self.waiting:
            await self.changed.wait()
            self.changed.clear()
            while self.waiting and self.under_way < WINDOW:
                index, coded = self.waiting.popleft()
                self.under_way += 1
                await self.socket.send_bytes(HEADER.pack(index, index / FPS) + coded)
        if self.frames < 0:
            await _refuse(self.socket, "this session broke; see the server's messages", BROKEN)
        else:
            await self.socket.send_json({"type": "end", "frames": self.frames})
            with suppress(asyncio.TimeoutError):  # answers still under way should find an open door
                await asyncio.wait_for(self._all_seen(), FAREWELL)
            await self.socket.close()

    async def _all_seen(self) -> None:
        while self.under_way:
            self.changed.clear()
            await self.changed.wait()


async def _receive(socket: WebSocket) -> str | bytes:
    """The next message. Raises WebSocketDisconnect, asyncio.TimeoutError."""
    message = await asyncio.wait_for(socket.receive(), IDLE)
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    text = message.get("text")
    return message.get("bytes", b"") if text is None else text


def _parsed(message: str | bytes) -> dict[str, Any]:
    """A text message's JSON object. Raises InputError for anything else."""
    if isinstance(message, str) and len(message) <= MAX_TEXT:
        with suppress(ValueError):
            parsed = json.loads(message)
            if isinstance(parsed, dict):
                return parsed
    raise InputError(f"expected a JSON object of at most {MAX_TEXT} characters")


def _picture(content: bytes) -> np.ndarray:
    """A picture file's pixels. Raises InputError as `pictures.read_image`."""
    from mssync.pictures import decode_image

    return decode_image(io.BytesIO(content), "the picture")


async def _refuse(socket: WebSocket, message: str, code: int) -> None:
    with suppress(WebSocketDisconnect, RuntimeError):
        await socket.send_json({"type": "error", "message": message})
        await socket.close(code)


def local(host: str) -> bool:
    """Whether a host is this machine's own loopback, which nobody else can reach."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def address(host: str, port: int, token: str | None) -> str:
    """Where the page is."""
    shown = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, host)
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/" + (f"?token={token}" if token else "")


def serve(app: Starlette, host: str, port: int) -> None:
    """Run an application until Ctrl-C."""
    import uvicorn

    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        ws_max_size=MAX_PICTURE_BYTES,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=2,  # open pages never end by themselves
        server_header=False,
    )
