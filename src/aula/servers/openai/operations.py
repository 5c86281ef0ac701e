"""What this door can, for /docs."""

from aula.audio.stream_encoding import FORMATS
from aula.servers.describing import Answer, Operation
from aula.servers.openai import shapes
from aula.servers.openai.wire import EVENTS

_HEAD = 'curl {base}/v1/%s -H "Authorization: Bearer $AULA_API_KEY"'
_JSON = """ -H "Content-Type: application/json" \\
  -d '%s'"""

OPERATIONS = (
    Operation(
        "GET",
        "/v1/models",
        "Every model: the assistant on each course, and what this server can.",
        "any",
        (Answer(kind=shapes.ModelList),),
        fault=shapes.ErrorReply,
        example=_HEAD % "models",
    ),
    Operation(
        "GET",
        "/v1/models/{model}",
        "One of them.",
        "any",
        (Answer(kind=shapes.Model),),
        fault=shapes.ErrorReply,
        path_parameters={"model": "its id"},
    ),
    Operation(
        "POST",
        "/v1/chat/completions",
        "Ask a course; the answer comes with its citations, in one piece or streamed.",
        "ask",
        (Answer(kind=shapes.ChatReply), Answer(EVENTS, bytes)),
        body=shapes.ChatRequest,
        fault=shapes.ErrorReply,
        example=_HEAD % "chat/completions"
        + _JSON % '{"model": "aula", "messages": [{"role": "user", "content": "What is inertia?"}]}',
    ),
    Operation(
        "POST",
        "/v1/embeddings",
        "Texts to vectors.",
        "embed",
        (Answer(kind=shapes.EmbeddingReply),),
        body=shapes.EmbeddingRequest,
        fault=shapes.ErrorReply,
        example=_HEAD % "embeddings" + _JSON % '{"model": "aula-embed", "input": ["What is inertia?"]}',
    ),
    Operation(
        "POST",
        "/v1/audio/speech",
        "Text to sound, sent while it is made: bytes, or events that carry them.",
        "speak",
        (*(Answer(one.media_type, bytes) for one in FORMATS.values()), Answer(EVENTS, bytes)),
        body=shapes.SpeechRequest,
        fault=shapes.ErrorReply,
        example=_HEAD % "audio/speech"
        + _JSON % '{"model": "aula-speak", "voice": "alloy", "input": "Hello!"}'
        + " --output hello.mp3",
    ),
    Operation(
        "POST",
        "/v1/audio/transcriptions",
        "A recording (WAV, FLAC, MP3, OGG, Opus, AIFF) to text, in one piece or streamed.",
        "transcribe",
        (
            Answer(kind=shapes.Transcription),
            Answer(kind=shapes.VerboseTranscription),
            Answer("text/plain"),
            Answer("application/x-subrip"),
            Answer("text/vtt"),
            Answer(EVENTS, bytes),
        ),
        form=shapes.TranscriptionForm,
        file="file",
        fault=shapes.ErrorReply,
        example=_HEAD % "audio/transcriptions" + " -F model=aula-transcribe -F file=@question.wav",
    ),
)
