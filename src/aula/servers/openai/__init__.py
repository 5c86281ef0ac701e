"""The door for OpenAI REST.

shapes.py          records that travel
wire.py            bytes to records, errors in OpenAI's shape, server-sent events
forms.py           a form's file, straight to the disk
models.py          which names mean what
operations.py      what /docs says of them
chat.py  transcriptions.py  speech.py  embeddings.py   an endpoint each
"""

from starlette.routing import BaseRoute, Route

from aula.servers.house import House
from aula.servers.openai.chat import Chat
from aula.servers.openai.embeddings import Embeddings
from aula.servers.openai.models import Models
from aula.servers.openai.operations import OPERATIONS
from aula.servers.openai.speech import Speech
from aula.servers.openai.transcriptions import Transcriptions
from aula.servers.openai.wire import guarded

__all__ = ["OPERATIONS", "routes"]


def routes(house: House) -> list[BaseRoute]:
    """Every route of this door."""
    models = Models(house)
    return [
        Route("/v1/models", guarded(models.every), methods=["GET"], name="models"),
        Route("/v1/models/{model}", guarded(models.show), methods=["GET"], name="model"),
        Route("/v1/chat/completions", guarded(Chat(house).create), methods=["POST"], name="chat"),
        Route("/v1/embeddings", guarded(Embeddings(house).create), methods=["POST"], name="embeddings"),
        Route("/v1/audio/speech", guarded(Speech(house).create), methods=["POST"], name="speech"),
        Route(
            "/v1/audio/transcriptions", guarded(Transcriptions(house).create), methods=["POST"], name="transcriptions"
        ),
    ]
