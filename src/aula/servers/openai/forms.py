"""multipart/form-data with one file, which goes straight to the disk: a recording may be long, and decoders want a
path. What is under way when the client goes is removed with the request."""

import os
import tempfile
from pathlib import Path

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from aula.servers.callers import when_gone
from aula.servers.openai.wire import FieldError

MEDIA_TYPE = "multipart/form-data"
MOST_FIELDS = 64
MOST_FIELD_BYTES = 64 * 1024
MOST_HEADER_BYTES = 8 * 1024


class _Form:
    """What the parser calls. Raises FieldError for more than a form may hold."""

    def __init__(self, file_field: str) -> None:
        self.fields: list[tuple[str, str]] = []
        self.path: Path | None = None
        self.is_whole = False
        self._file_field = file_field
        self._handle: int | None = None
        self._name = ""
        self._is_file = False
        self._value = bytearray()
        self._header = bytearray()
        self._disposition = b""
        self._header_value = bytearray()

    def on_part_begin(self) -> None:
        self._value.clear()
        self._disposition = b""
        self._is_file = False

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._bound(self._header, MOST_HEADER_BYTES)

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]
        self._bound(self._header_value, MOST_HEADER_BYTES)

    def on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header.clear()
        self._header_value.clear()

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._is_file = b"filename" in options
        if self._is_file and self._name == self._file_field and self.path is None:
            # The name says nothing of what the client called it.
            self._handle, path = tempfile.mkstemp(prefix="aula-sound-")
            self.path = Path(path)
        elif len(self.fields) >= MOST_FIELDS:
            raise FieldError(f"the form has more than {MOST_FIELDS} fields", param=None, next_step="send fewer")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            if self._handle is not None:
                os.write(self._handle, data[start:end])
            return
        self._value += data[start:end]
        self._bound(self._value, MOST_FIELD_BYTES)

    def on_part_end(self) -> None:
        if self._is_file:
            self.close()
        else:
            self.fields.append((self._name, self._value.decode("utf-8", "replace")))

    def on_end(self) -> None:
        self.is_whole = True

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def remove(self) -> None:
        self.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _bound(self, value: bytearray, most: int) -> None:
        if len(value) > most:
            raise FieldError(
                f"the form's field {self._name[:40]!r} has more than {most} bytes", param=None, next_step="shorten it"
            )


async def read_form(request: Request, file_field: str) -> tuple[list[tuple[str, str]], Path]:
    """The fields, and where the file lies until the request has ended. Raises FieldError for what is no form, ends
    early or lacks the file, and what reading the body raises."""
    media_type, options = parse_options_header(request.headers.get("content-type", ""))
    if media_type.lower() != MEDIA_TYPE.encode():
        raise FieldError(
            f"the body is {media_type.decode('utf-8', 'replace')[:40] or 'of no type'}",
            param=None,
            available=[MEDIA_TYPE],
            next_step=f"send the recording as the form's field `{file_field}`",
            code="unsupported_media_type",
            status=415,
        )
    form = _Form(file_field)
    when_gone(request.scope, form.remove)
    names = [name for name in dir(form) if name.startswith("on_")]
    try:
        parser = MultipartParser(options.get(b"boundary", b""), {name: getattr(form, name) for name in names})  # type: ignore[arg-type]
        async for chunk in request.stream():
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise FieldError(
            f"the form cannot be read ({error})", param=None, next_step=f"send {MEDIA_TYPE} with its boundary"
        ) from error
    if not form.is_whole:
        raise FieldError("the form ends early", param=None, next_step="send it as a whole")
    if form.path is None:
        raise FieldError(
            "the form has no file", param=file_field, next_step=f"send the recording as its field `{file_field}`"
        )
    return form.fields, form.path
