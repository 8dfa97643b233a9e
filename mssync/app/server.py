"""Live sessions: an ASGI application with a WebSocket, and a page that plays them; a part of the studio.

docs/live.md states the protocol, and shows a client.

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
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from mssync.animate import Pipeline, Portrait, check_options, load
from mssync.app.engine import Engine, Speaker, jpeg
from mssync.app.guard import LOCAL, allowed
from mssync.app.limits import MAX_PICTURE_BYTES, in_words, with_picture
from mssync.app.visitors import address as address_of
from mssync.audio import SAMPLE_RATE
from mssync.errors import InputError, PathLike
from mssync.faces import crop
from mssync.stream import StreamingAnimator
from mssync.video import FPS

LIVE_SIZES = (512, 384)  # pixels of a side: the first that this machine draws with SHARE of its cores, else the last
SHARE = 0.4  # the others belong to other sessions, and to a page that is shown on the same machine
TIMED = 6  # frames, the quickest of which tells that: a moment in which the machine does something else says nothing
PAGE = Path(__file__).parent / "page"
SESSIONS = 4  # at once: what two cores can draw at a rate that still looks like motion
MAX_TEXT = 1000  # characters of a text message
MAX_SOUND_BYTES = 2 * SAMPLE_RATE  # of a message: a second
AHEAD = 2.0  # seconds that sound may be ahead of the clock; then it is not read for a while
LASTING = 300.0  # seconds that a session may last while others find no place
IDLE = 30.0  # seconds without a message after which a session is closed
FAREWELL = 5.0  # seconds that a client has to answer the last frames
WINDOW = 10  # frames that are sent and not yet seen
WAITING = 5  # frames that wait for a slow client; the oldest of more is left out
HEADER = struct.Struct("<Id")  # of a frame: index, seconds
REFUSED, BUSY, BROKEN = 1008, 1013, 1011  # codes of WebSocket closures
POLICY = "default-src 'self'; img-src 'self' blob:; media-src 'self' blob:; object-src 'none'; frame-ancestors 'self'"


def create_app(
    pipeline: Pipeline | None = None,
    portrait: PathLike | np.ndarray | None = None,
    *,
    token: str | None = None,
    sessions: int = SESSIONS,
    size: int | None = None,
) -> Starlette:
    """Make the live server: an application for any ASGI server. Mount others in it, or it in others.

    It has a page at / and a WebSocket at /ws, whose protocol docs/live.md states.

    Args:
        pipeline: of `mssync.load(live=True)`, which it is unless given
        portrait: who speaks unless a client brings a picture of its own: a file, or uint8 (H, W, 3) RGB; None: nobody
        token: what clients must give (as `?token=`, cookie or bearer); None: requests under this machine's own names
            alone are answered
        sessions: how many may speak at once
        size: pixels of a frame's side; None: 512 where the first session finds this machine quick enough, else 384

    Raises InputError: a pipeline that cannot speak live, a portrait without a face, a size out of range.
    """
    if size is not None:
        check_options(size=size)
    if pipeline is None:
        pipeline = load(live=True)
    pipeline.live_generator()
    prepared = None if portrait is None else pipeline.portrait(portrait)
    live = _Live(pipeline, prepared, token, sessions, size)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(live.engine.stop)

    routes = [
        Route("/", _file("index.html")),
        *(Route(f"/{name}", _file(name)) for name in ("style.css", "live.js", "capture.js")),
        Route("/status", live.status),
        Route("/portrait.jpg", live.own_portrait),
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


class _Guest:
    """A session that has a place, in the hands of a visitor."""

    def __init__(self, where: str) -> None:
        self.address, self.begun = where, time.monotonic()
        self.serving: asyncio.Task[None] | None = None
        self.asked_to_go = ""  # why, once it was

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun


class _Live:
    """The sessions of one application.

    Where all places are taken, a newcomer gets one of a visitor who has more of them than the newcomer will have, else
    that of the session that has lasted longest, if it has for LASTING.
    """

    def __init__(
        self, pipeline: Pipeline, portrait: Portrait | None, token: str | None, limit: int, size: int | None
    ) -> None:
        self.pipeline, self.portrait, self.token, self.limit, self.size = pipeline, portrait, token, limit, size
        self.engine = Engine(pipeline.cores)
        self.guests: list[_Guest] = []  # by their arrival

    async def status(self, request: Request) -> Response:
        if not allowed(request, self.token):
            return JSONResponse({"error": "wrong token"}, 403)
        return JSONResponse({"sessions": len(self.guests), "limit": self.limit, "portrait": self.portrait is not None})

    async def own_portrait(self, request: Request) -> Response:
        """The server's own portrait, as it looks before it speaks."""
        if not allowed(request, self.token):
            return JSONResponse({"error": "wrong token"}, 403)
        if self.portrait is None:
            return JSONResponse({"error": "this server has no portrait of its own"}, 404)
        shown = crop(self.portrait.picture, self.portrait.box, self.size or LIVE_SIZES[0])
        return Response(jpeg(shown), media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    async def session(self, socket: WebSocket) -> None:
        await socket.accept()
        origin, host = socket.headers.get("origin"), socket.headers.get("host")
        if not allowed(socket, self.token):
            return await _refuse(socket, "wrong token: open the address that `mssync serve` printed", REFUSED)
        if origin is not None and urlsplit(origin).netloc != host:
            return await _refuse(socket, "pages of other sites may not connect", REFUSED)
        guest = _Guest(address_of(socket.client.host if socket.client else None))
        if len(self.guests) >= self.limit and not self._make_room(guest):
            left = in_words(LASTING - max(other.seconds for other in self.guests))
            return await _refuse(
                socket, f"all {self.limit} sessions are taken; try again in {left} at the latest", BUSY
            )
        self.guests.append(guest)
        self.engine.start()
        guest.serving = asyncio.create_task(self._serve(socket))
        try:
            await guest.serving
        except InputError as error:
            await _refuse(socket, str(error), REFUSED)
        except asyncio.TimeoutError:
            await _refuse(socket, f"nothing came for {IDLE:.0f} s", REFUSED)
        except WebSocketDisconnect:
            pass
        except asyncio.CancelledError:
            if not guest.asked_to_go:
                guest.serving.cancel()
                raise
            await _refuse(socket, guest.asked_to_go, BUSY)
        finally:
            guest.serving = None  # what it raised knows of this frame: a circle, which would be kept for long
            if guest in self.guests:
                self.guests.remove(guest)

    def _make_room(self, newcomer: _Guest) -> bool:
        """End a session for a newcomer, where that is fair."""
        held = Counter(guest.address for guest in self.guests)
        most = max(held.values())
        if most > held[newcomer.address] + 1:
            leaving = next(guest for guest in self.guests if held[guest.address] == most)
            leaving.asked_to_go = "another visitor came, and you had more than one session; this was the oldest"
        else:
            leaving = self.guests[0]
            if leaving.seconds < LASTING:
                return False
            leaving.asked_to_go = f"somebody else waited, and this session had lasted {in_words(leaving.seconds)}"
        self.guests.remove(leaving)
        if leaving.serving is not None:
            leaving.serving.cancel()
        return True

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
        portrait = self.portrait
        if asked.get("portrait"):
            picture = await _receive(socket)
            if not isinstance(picture, bytes):
                raise InputError("after the start comes a picture file, as one binary message")
            portrait = await with_picture(io.BytesIO(picture), "the picture", self.pipeline.portrait)
        if portrait is None:
            raise InputError("this server has no portrait of its own; send a picture")
        try:
            factors = {name: float(asked.get(name, 1.0)) for name in ("head_motion", "expression")}
            seed = int(asked.get("seed", 0))
        except (TypeError, ValueError, OverflowError):
            raise InputError("head_motion, expression and seed must be numbers") from None
        return await asyncio.wrap_future(self.engine.call(lambda: self._begun(portrait, seed=seed, **factors)))

    def _begun(self, portrait: Portrait, **asked: Any) -> StreamingAnimator:
        """A session's animator. In the engine's thread: no other session draws while the first one is timed."""
        if self.size is None:
            self.size = quick_size(self.pipeline, portrait)
        return StreamingAnimator(self.pipeline, portrait, sample_rate=SAMPLE_RATE, size=self.size, **asked)

    async def _listen(
        self, socket: WebSocket, speaker: Speaker, outgoing: _Outgoing, sending: asyncio.Task[None]
    ) -> None:
        """Messages of the client until all frames are sent or it is gone."""
        begun, received, ended = time.monotonic(), 0, False
        while not sending.done():
            receiving = asyncio.create_task(_receive(socket))
            try:
                await asyncio.wait({receiving, sending}, return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:  # the place goes to somebody else
                receiving.cancel()
                raise
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


def quick_size(pipeline: Pipeline, portrait: Portrait) -> int:
    """The size of LIVE_SIZES at which this machine can draw a session and do other things."""
    for size in LIVE_SIZES[:-1]:
        pipeline.draw_here(portrait, portrait.pose[None], size)  # prepares the size
        spent = []
        for _ in range(TIMED):
            begun = time.perf_counter()
            jpeg(pipeline.draw_here(portrait, portrait.pose[None], size)[0])
            spent.append(time.perf_counter() - begun)
        if min(spent) * FPS < SHARE * pipeline.cores.count:
            return size
    return LIVE_SIZES[-1]


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
