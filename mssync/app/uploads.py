"""Uploads in the place of Gradio's: limited in size, under names of their own, all of a request or nothing of it."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from mssync.app.limits import MAX_UPLOAD, check_upload
from mssync.app.place import ALIAS, NoRoom, Place
from mssync.app.visitors import address
from mssync.app.work import nameless
from mssync.errors import InputError

if TYPE_CHECKING:
    from starlette.types import Message

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # numbers of errors that a disk without room has
LOOKED_FOR = 3.0  # seconds that a page may ask for an upload before it begins, or after its end

log = logging.getLogger(__name__)


class Uploads:
    """Takes files into a `Place`, MAX_UPLOAD bytes together and none that is too long; tells pages how far it is."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._progress: dict[str, asyncio.Queue[dict[str, Any]]] = {}  # by the name that a page gave its upload

    async def take(self, request: Request) -> Response:
        """Store files; answers with their aliases, or with a line that says what is wrong."""
        name, told = request.query_params.get("upload_id"), asyncio.Queue[dict[str, Any]]()
        if name:
            self._progress[name] = told
        stored: list[Path] = []
        try:
            await self._store(request, stored, told)
            return JSONResponse([f"{ALIAS}/{path.parent.name}/{path.name}" for path in stored])
        except (InputError, OSError, ClientDisconnect) as error:
            for path in stored:
                self.place.remove(path.parent)
            return _refusal(error)
        finally:
            told.put_nowait({"msg": "done"})
            asyncio.get_running_loop().call_later(LOOKED_FOR, lambda: self._progress.pop(name or "", None))

    async def progress(self, request: Request) -> Response:
        """Events, as Gradio's page expects them: how much has come of which file, and that all is done."""
        name = request.query_params.get("upload_id", "")
        for _ in range(30):
            if name in self._progress:
                return StreamingResponse(self._events(name), media_type="text/event-stream")
            await asyncio.sleep(LOOKED_FOR / 30)
        return PlainTextResponse("there is no such upload", 404)

    async def _events(self, name: str) -> AsyncIterator[str]:
        told = self._progress[name]
        done = False
        while not done:
            message = await told.get()
            done = message["msg"] == "done"
            yield f"data: {json.dumps(message)}\n\n"

    async def _store(self, request: Request, stored: list[Path], told: asyncio.Queue[dict[str, Any]]) -> None:
        """Store a request's files, and name them in `stored` before anything of them is written."""
        expected = request.headers.get("content-length", "0")
        if expected.isdecimal():
            if int(expected) > MAX_UPLOAD:
                raise _too_large()
            if 2 * int(expected) > shutil.disk_usage(self.place.root).free:  # once as it comes, once where it stays
                raise OSError(errno.ENOSPC, "no room")
        async with Request(request.scope, _limited(request, told)).form(max_files=4, max_fields=4) as form:
            for _, file in form.multi_items():
                if isinstance(file, UploadFile):
                    where = address(request.client.host if request.client else None)
                    stored.append(self.place.upload(file.filename or "file", where))
                    await asyncio.to_thread(_write, file, stored[-1])


def _too_large() -> InputError:
    return InputError(f"this file is too large; at most {MAX_UPLOAD // 1_000_000} MB are taken")


def _limited(request: Request, told: asyncio.Queue[dict[str, Any]]) -> Any:
    """A receive that ends what is too large, and tells how much has come."""
    received, name = 0, ""

    async def receive() -> Message:
        nonlocal received, name
        message = await request.receive()
        part = message.get("body", b"")
        received += len(part)
        if received > MAX_UPLOAD:
            raise _too_large()
        found = re.search(rb'filename="([^"]*)"', part[:2000])
        name = found[1].decode(errors="replace") if found else name
        told.put_nowait({"msg": "update", "orig_name": name, "chunk_size": len(part)})
        return message

    return receive


def _write(file: UploadFile, path: Path) -> None:
    with path.open("xb") as target:
        shutil.copyfileobj(file.file, target)
    try:
        check_upload(path)  # a page would try to draw three hours of sound, or a huge picture
    except InputError as error:
        raise InputError(nameless(str(error), str(path))) from None


def _refusal(error: Exception) -> Response:
    if isinstance(error, NoRoom):
        return PlainTextResponse(str(error), 507)
    if isinstance(error, InputError):
        return PlainTextResponse(str(error), 413)
    if isinstance(error, OSError):
        log.error("an upload cannot be stored: %s", error.strerror or error)
        return PlainTextResponse(cannot_store(error), 507)
    return PlainTextResponse("the upload was broken off", 400)


def cannot_store(error: OSError) -> str:
    """What a visitor is told of a disk that takes nothing."""
    if error.errno in FULL:
        return "this server's disk is full; try again later, or tell whoever runs it"
    return "this server cannot store files at present; tell whoever runs it"
