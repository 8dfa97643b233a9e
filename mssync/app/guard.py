"""What stands before the studio: who may ask, what they may ask for, and what they never get to see.

- Requests under names that are not this machine's (without a token), from pages of other sites, or without the token
  are refused.
- Of Gradio's routes only those that the page and `gradio_client` use are open.
- Uploads and downloads are served here, out of a `Place`: under names of their own, limited in size, as media or as
  attachments. Gradio's messages name them by path; in these the place's path is replaced by an alias, both ways, and
  a path or an address of anything else is refused.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import mimetypes
import re
from collections.abc import Awaitable, Callable
from http.cookies import SimpleCookie
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response

from mssync.app.place import ALIAS, Place

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from mssync.app.jobs import Jobs

log = logging.getLogger(__name__)

LOCAL = ("localhost", "127.0.0.1", "[::1]")  # names of this machine that nobody else can point elsewhere
COOKIE = "mssync_token"
MAX_MESSAGE = 1_000_000  # bytes of any other request
HEARTBEAT = 15.0  # seconds between two signs of life to an open page
OPEN = re.compile(  # paths: what the page loads, Gradio's API, and the live page
    r"/|/config|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/(assets|static|svelte)/.*|/live(/.*)?"
    r"|/gradio_api/(info|openapi\.json|app_id|startup-events|cancel|reset|upload_progress|theme\.css"
    r"|queue/(join|data|status)|run/predict|call/[\w/]+|upload|heartbeat/[\w-]+|file=.*)"
)
POLICY = (  # Gradio's page has inline scripts and styles; nothing comes from elsewhere
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' blob: data:; media-src 'self' blob: data:; font-src 'self' data:; connect-src 'self' blob: data:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
SHOWN = re.compile(r"image/(png|jpeg|webp|gif|bmp|tiff)|audio/[\w.+-]+|video/[\w.+-]+")  # the rest are attachments


def in_a_line(error: Exception) -> str:
    """What an exception of Gradio's says about what it was given: its first sentence."""
    told: Any = getattr(error, "errors", None)
    if callable(told):  # pydantic's: a place and a message for each
        first = told()[0]
        words = " ".join([*map(str, first["loc"]), first["msg"]])
    elif isinstance(error, KeyError):
        words = f"there is no {error.args[0]}"
    else:
        words = str(error)
    return re.split(r"\.\s|\n", words.strip())[0][:200]


def given_token(connection: HTTPConnection) -> str:
    """What a visitor brings: ?token=…, the cookie set for it, or `Authorization: Bearer …`."""
    cookie = SimpleCookie(connection.headers.get("cookie", "")).get(COOKIE)
    bearer = connection.headers.get("authorization", "").removeprefix("Bearer ")
    return connection.query_params.get("token") or (cookie.value if cookie else "") or bearer


def allowed(connection: HTTPConnection, token: str | None) -> bool:
    """Whether the token is right, or none is needed."""
    return token is None or hmac.compare_digest(given_token(connection).encode(), token.encode())


class Guard:
    """An ASGI application around another one."""

    def __init__(self, app: ASGIApp, place: Place, token: str | None) -> None:
        self.app, self.token = app, token
        self.real, self.alias = str(place.root).encode(), ALIAS.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # live sessions check tokens and origins themselves, and say what is wrong
            return await self.app(scope, receive, send)
        request = Request(scope, receive)
        refused = self._refused(request)
        if refused is not None:
            return await refused(scope, receive, send)
        if scope["path"].startswith("/live"):
            return await self.app(scope, receive, send)
        if request.method == "POST" and scope["path"] != "/gradio_api/upload":
            receive = await self._checked(request)
            if isinstance(receive, Response):
                return await receive(scope, request.receive, send)
        headers = MutableHeaders(scope=scope)
        if not scope["path"].startswith(("/assets/", "/static/")):
            del headers["accept-encoding"]  # what is compressed cannot be looked through
        answer = _Answer(send)
        try:
            await self.app(scope, receive, self._translated(answer.send))
        except Exception as error:
            if answer.begun:
                raise
            line = in_a_line(error)
            log.warning("%s was asked wrongly: %s", scope["path"], line)
            wrong = JSONResponse({"error": f"wrong request: {line}; /gradio_api/info tells what is right"}, 400)
            await wrong(scope, receive, send)

    def _refused(self, request: Request) -> Response | None:
        headers, path = request.headers, request.url.path
        host = headers.get("host", "")
        if self.token is None and re.sub(r":\d+$", "", host).lower() not in LOCAL:
            return PlainTextResponse("this server answers to this machine's own names alone", 400)
        origin = headers.get("origin")
        site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode", "")
        visiting = request.method == "GET" and mode == "navigate" and headers.get("sec-fetch-dest") == "document"
        if (origin is not None and urlsplit(origin).netloc != host) or (
            site in ("cross-site", "same-site") and not visiting
        ):
            return PlainTextResponse("pages of other sites may not use this server", 403)
        if not allowed(request, self.token):
            return JSONResponse({"error": "wrong token: open the address that `mssync serve` printed"}, 403)
        if path == "/" and self.token is not None and "token" in request.query_params:
            rest = {key: values for key, values in parse_qs(request.url.query).items() if key != "token"}
            moved = RedirectResponse("/" + ("?" + urlencode(rest, True) if rest else ""), 303)
            moved.set_cookie(COOKIE, self.token, httponly=True, samesite="strict", secure=request.url.scheme == "https")
            return moved
        if not OPEN.fullmatch(path):
            return PlainTextResponse("nothing here", 404)
        return None

    async def _checked(self, request: Request) -> Any:
        """A receive with the request's body, in which files are named by their real paths; or why it is refused."""
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_MESSAGE:
                return PlainTextResponse("too long a message", 413)
        if body:
            try:
                content = json.loads(body)
                self._name_files(content)
            except (ValueError, RecursionError):
                return PlainTextResponse("not a message of this server's", 400)
            body = json.dumps(content).encode()
        headers = MutableHeaders(scope=request.scope)
        headers["content-length"] = str(len(body))
        sent = False

        async def receive() -> Message:
            nonlocal sent
            if sent:
                return await request.receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        return receive

    def _name_files(self, content: Any) -> None:
        """Put real paths into a message, in place. Raises ValueError: a path that is no upload's, an address."""
        if isinstance(content, list):
            for item in content:
                self._name_files(item)
        elif isinstance(content, dict):
            path = content.get("path")
            if isinstance(path, str):
                if not re.fullmatch(re.escape(ALIAS) + r"/[\w-]+/[^/\\]+", path):
                    raise ValueError(path)
                content["path"] = self.real.decode() + path.removeprefix(ALIAS)
                content["url"] = None  # nothing is fetched
                content["meta"] = {"_type": "gradio.FileData"}  # what tells Gradio that this is a file
            for key, item in content.items():
                if key not in ("path", "url", "meta"):
                    self._name_files(item)

    def _translated(self, send: Send) -> Send:
        """A send that keeps the place's path back and adds the headers of security."""
        start: Message | None = None
        whole: bytearray | None = None  # of answers that are changed as a whole

        async def translated(message: Message) -> None:
            nonlocal start, whole
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                kind = headers.get("content-type", "")
                if kind.startswith(("application/json", "text/html", "text/plain")):
                    start, whole = message, bytearray()
                    return
                if kind.startswith("text/event-stream"):  # one event a part, whole
                    whole = None
                await send(message)
            elif message["type"] == "http.response.body" and whole is not None and start is not None:
                whole += message.get("body", b"")
                if not message.get("more_body"):
                    body = bytes(whole).replace(self.real, self.alias)
                    MutableHeaders(scope=start)["content-length"] = str(len(body))
                    await send(start)
                    await send({"type": "http.response.body", "body": body})
            elif message["type"] == "http.response.body" and self.real in message.get("body", b""):
                await send({**message, "body": message["body"].replace(self.real, self.alias)})
            else:
                await send(message)

        return translated


class _Answer:
    """Sends an answer on, but for the bare 500 with which Starlette answers before it raises what was wrong."""

    def __init__(self, send: Send) -> None:
        self._send, self.begun, self._bare = send, False, False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._bare = message["status"] == 500
        if not self._bare:
            self.begun = True
            await self._send(message)


# Routes in the place of Gradio's


def download(place: Place) -> Callable[[Request], Awaitable[Response]]:
    """Gives a file of the place, by its alias."""

    async def endpoint(request: Request) -> Response:
        path = place.find(request.path_params["alias"])
        if path is None:
            return PlainTextResponse("this file is no longer here", 404)
        kind = mimetypes.guess_type(path.name)[0] or ""
        shown = SHOWN.fullmatch(kind) is not None
        return FileResponse(
            path,
            media_type=kind if shown else "application/octet-stream",
            filename=path.name,
            content_disposition_type="inline" if shown else "attachment",
            headers={"Cache-Control": "private, no-store"},
        )

    return endpoint


class Heartbeat:
    """Open as long as a page is: an ASGI application that tells `Jobs` who comes and who goes."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        session = scope["path_params"]["session"]
        self.jobs.arrive(session)
        headers = Headers({"content-type": "text/event-stream", "cache-control": "no-store"})
        await send({"type": "http.response.start", "status": 200, "headers": headers.raw})
        listening = asyncio.ensure_future(_gone(receive))
        try:
            while not listening.done():
                await send({"type": "http.response.body", "body": b"data: ALIVE\n\n", "more_body": True})
                await asyncio.wait({listening}, timeout=HEARTBEAT)
        finally:
            listening.cancel()
            self.jobs.leave(session)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
