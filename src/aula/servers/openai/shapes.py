"""What travels: records that requests are decoded into and answers are made of; /openapi.json is made of the same."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

Text = Annotated[str, Meta(min_length=1, max_length=100_000)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]


class Fault(Struct):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(Struct):
    error: Fault


# models


class Model(Struct):
    """`owned_by` aula; `capability`: which door takes it."""

    id: str
    created: int
    owned_by: str
    object: Literal["model"] = "model"
    capability: str | UnsetType = UNSET


class ModelList(Struct):
    data: list[Model]
    object: Literal["list"] = "list"


# speech


class VoiceId(Struct):
    id: Name


class SpeechRequest(Struct):
    """`voice`: one of this server's, or any of OpenAI's names for its usual one. `language` is aula's own: a tag
    like "en"; found in the text if not given. `instructions` are not followed: no voice here can."""

    model: Name
    input: Annotated[str, Meta(min_length=1, max_length=4096)]
    voice: Name | VoiceId = "alloy"
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: Annotated[float, Meta(ge=0.25, le=4.0)] = 1.0
    stream_format: Literal["audio", "sse"] = "audio"
    instructions: str | None = None
    language: Annotated[str, Meta(max_length=16)] | None = None


class SpeechDelta(Struct):
    audio: str
    type: Literal["speech.audio.delta"] = "speech.audio.delta"


class Usage(Struct):
    """In words, or characters of Chinese: no tokeniser stands in the way."""

    input_tokens: int
    output_tokens: int
    total_tokens: int


class SpeechDone(Struct):
    usage: Usage
    type: Literal["speech.audio.done"] = "speech.audio.done"


# transcriptions


class TranscriptionForm(Struct):
    """The fields of the form beside `file`. `prompt` and `temperature` are taken and change nothing."""

    model: Name
    language: Annotated[str, Meta(max_length=16)] | None = None
    prompt: str | None = None
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    temperature: Annotated[float, Meta(ge=0, le=1)] = 0.0
    timestamp_granularities: list[Literal["segment", "word"]] = []
    stream: bool = False


class Duration(Struct):
    seconds: float
    type: Literal["duration"] = "duration"


class Transcription(Struct):
    text: str
    usage: Duration


class TranscriptionSegment(Struct):
    id: int
    start: float
    end: float
    text: str


class VerboseTranscription(Struct):
    text: str
    language: str
    duration: float
    segments: list[TranscriptionSegment]
    usage: Duration
    task: Literal["transcribe"] = "transcribe"


class TextDelta(Struct):
    delta: str
    type: Literal["transcript.text.delta"] = "transcript.text.delta"


class TextDone(Struct):
    text: str
    type: Literal["transcript.text.done"] = "transcript.text.done"


# embeddings


class EmbeddingRequest(Struct):
    """`dimensions`, where given, must be the model's own number."""

    model: Name
    input: Text | Annotated[list[Text], Meta(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1, le=65_536)] | None = None
    user: str | None = None


class Embedding(Struct):
    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class PromptUsage(Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingReply(Struct):
    data: list[Embedding]
    model: str
    usage: PromptUsage
    object: Literal["list"] = "list"


# chat


class TextPart(Struct, tag="text", tag_field="type"):
    text: str


class Message(Struct):
    """What is asked is the last message of a user; an assistant's before it can be repeated. Others are not read."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None


class StreamOptions(Struct):
    include_usage: bool = False


class ChatRequest(Struct):
    """`n` is 1. Sampling, tools and response_format are for models that make things up: taken, and not followed."""

    model: Name
    messages: Annotated[list[Message], Meta(min_length=1, max_length=512)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=1)] | None = None


class CitationShape(Struct):
    course: str
    document: str
    passage: str
    score: float
    text: str


class Extension(Struct):
    """aula's own field of an answer. `source`: extractive, or generated where a generator went on with it."""

    course: str
    citations: list[CitationShape]
    refused: bool
    intent: str
    language: str
    source: str
    rungs: dict[str, str]
    timings_ms: dict[str, float]
    fallback: str | UnsetType = UNSET


class ReplyMessage(Struct):
    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class Choice(Struct):
    message: ReplyMessage
    index: int = 0
    finish_reason: Literal["stop", "length"] = "stop"
    logprobs: None = None


class ChatUsage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatReply(Struct):
    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage
    aula: Extension
    object: Literal["chat.completion"] = "chat.completion"


class Delta(Struct, omit_defaults=True):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(Struct):
    delta: Delta
    index: int = 0
    finish_reason: Literal["stop", "length"] | None = None


class ChatChunk(Struct):
    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: ChatUsage | UnsetType = UNSET
    aula: Extension | UnsetType = UNSET
