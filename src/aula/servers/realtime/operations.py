"""What this door can over HTTP, for /docs. OpenAPI has no words for a WebSocket: the page says where to read on."""

from typing import Any

from msgspec import Struct

from aula.servers.describing import Answer, Operation
from aula.servers.openai.shapes import ErrorReply
from aula.servers.realtime.secrets import USUAL_SECONDS


class ExpiresAfter(Struct, forbid_unknown_fields=True):
    anchor: str = "created_at"
    seconds: int = USUAL_SECONDS


class SecretWanted(Struct, forbid_unknown_fields=True):
    """`session` is what `session.update` takes: whoever brings the secret begins with it."""

    expires_after: ExpiresAfter | None = None
    session: dict[str, Any] | None = None


class SecretMade(Struct):
    value: str
    expires_at: int
    session: dict[str, Any]


OPERATIONS = (
    Operation(
        "POST",
        "/v1/realtime/client_secrets",
        "A secret for a browser, which opens a voice conversation (WebSocket /v1/realtime) and nothing else.",
        "ask",
        (Answer(kind=SecretMade),),
        body=SecretWanted,
        fault=ErrorReply,
        example="""curl {base}/v1/realtime/client_secrets -H "Authorization: Bearer $AULA_API_KEY" \\
  -d '{"session": {"type": "realtime", "model": "aula"}}'""",
    ),
)
