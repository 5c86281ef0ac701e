"""The names of the beta (`OpenAI-Beta: realtime=v1`), to the protocol's own names and back.

Everything else here knows the GA names alone.
"""

from typing import Any

from aula.servers.realtime.errors import ClientError, JsonObject

_CODINGS = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}
_CODINGS_BACK = {ga: beta for beta, ga in _CODINGS.items()}
_EVENTS = {
    "response.output_audio.delta": "response.audio.delta",
    "response.output_audio.done": "response.audio.done",
    "response.output_audio_transcript.delta": "response.audio_transcript.delta",
    "response.output_audio_transcript.done": "response.audio_transcript.done",
    "response.output_text.delta": "response.text.delta",
    "response.output_text.done": "response.text.done",
    "conversation.item.added": "conversation.item.created",
}
_CONTENTS = {"output_text": "text", "output_audio": "audio"}
_CONTENTS_BACK = {beta: ga for ga, beta in _CONTENTS.items()}
_FLAT = {
    "input_audio_format": ("input", "format"),
    "input_audio_transcription": ("input", "transcription"),
    "input_audio_noise_reduction": ("input", "noise_reduction"),
    "turn_detection": ("input", "turn_detection"),
    "output_audio_format": ("output", "format"),
    "voice": ("output", "voice"),
    "speed": ("output", "speed"),
}
_RENAMED = {"modalities": "output_modalities", "max_response_output_tokens": "max_output_tokens"}
_RENAMED_BACK = {ga: beta for beta, ga in _RENAMED.items()}


def to_ga(event: JsonObject) -> JsonObject:
    """A beta client's event in GA names. Raises ClientError for an audio format that there is not."""
    event = dict(event)
    if isinstance(event.get("session"), dict):
        event["session"] = {"type": "realtime", **_nested(event["session"], "session")}
    if isinstance(event.get("response"), dict):
        event["response"] = _nested(event["response"], "response")
        if isinstance(event["response"].get("input"), list):
            event["response"]["input"] = [_item(item, _CONTENTS_BACK) for item in event["response"]["input"]]
    if isinstance(event.get("item"), dict):
        event["item"] = _item(event["item"], _CONTENTS_BACK)
    return event


def to_beta(event: JsonObject) -> JsonObject | None:
    """A server event in beta names; None for what the beta has no event for."""
    kind = event["type"]
    if kind == "conversation.item.done":
        return None
    event = {**event, "type": _EVENTS.get(kind, kind)}
    if "session" in event:
        event["session"] = _flat(event["session"])
    if "item" in event:
        event["item"] = _item(event["item"], _CONTENTS)
    if "response" in event:
        response = _flat(event["response"])
        event["response"] = {**response, "output": [_item(item, _CONTENTS) for item in response.get("output", ())]}
    return event


def _nested(flat: JsonObject, at: str) -> JsonObject:
    nested: JsonObject = {}
    audio: dict[str, JsonObject] = {}
    for name, value in flat.items():
        if name == "client_secret":
            continue
        if name not in _FLAT:
            nested[_RENAMED.get(name, name)] = value
            continue
        if name.endswith("_format") and value is not None:
            if value not in _CODINGS:
                raise ClientError(f"{name} must be one of {', '.join(_CODINGS)}", param=f"{at}.{name}")
            value = {"type": _CODINGS[value]}
        side, field = _FLAT[name]
        audio.setdefault(side, {})[field] = value
    return {**nested, "audio": audio} if audio else nested


def _flat(nested: JsonObject) -> JsonObject:
    flat = {_RENAMED_BACK.get(name, name): value for name, value in nested.items() if name not in ("audio", "type")}
    if "output_modalities" in nested:
        aloud = "audio" in nested["output_modalities"]
        flat["modalities"] = ["text", "audio"] if aloud else ["text"]
    audio = nested.get("audio", {})
    for name, (side, field) in _FLAT.items():
        if field in audio.get(side, {}):
            value = audio[side][field]
            flat[name] = _CODINGS_BACK[value["type"]] if name.endswith("_format") else value
    return flat


def _item(item: Any, contents: dict[str, str]) -> Any:
    if not isinstance(item, dict) or not isinstance(item.get("content"), list) or item.get("role") != "assistant":
        return item
    return {**item, "content": [_part(part, contents) for part in item["content"]]}


def _part(part: Any, contents: dict[str, str]) -> Any:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        return part
    return {**part, "type": contents.get(part["type"], part["type"])}
