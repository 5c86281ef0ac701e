"""One table of settings. File, environment, `aula doctor`, docs/settings.md and --help are all made from it.

Order, weakest first: the default here, `aula.toml` (in the configuration folder, then in the working folder),
the environment (`AULA_` + the name in capitals, dots as underscores: `question.max_seconds` is
`AULA_QUESTION_MAX_SECONDS`), an option of the command.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from aula.core.errors import SettingsError

Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    default: Value
    help: str
    least: float | None = None
    greatest: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def variable(self) -> str:
        return "AULA_" + self.name.upper().replace(".", "_")

    def parse(self, raw: object, origin: str) -> Value:
        """`raw` as this setting's type, or a SettingsError that names `origin`."""
        kind = type(self.default)
        value: Value
        try:
            if kind is bool:
                value = _parse_bool(raw)
            elif isinstance(raw, bool):
                raise ValueError("a truth value")
            elif kind is str:
                if not isinstance(raw, (str, int, float)):
                    raise TypeError("a list or a table")
                value = str(raw)
            else:
                value = kind(str(raw))
        except (TypeError, ValueError) as error:
            raise SettingsError(
                f"{self.name} is {raw!r} in {origin}, which is not a {_KIND_NAMES[kind]}",
                next_step=f"set it like {self.name} = {self.default!r} ({self.help})",
            ) from error
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            self._check_range(value, origin)
        if self.choices and value not in self.choices:
            raise SettingsError(
                f"{self.name} is {value!r} in {origin}", available=self.choices, next_step="choose one of these"
            )
        return value

    def _check_range(self, value: float, origin: str) -> None:
        if (self.least is not None and not value >= self.least) or (
            self.greatest is not None and not value <= self.greatest
        ):
            raise SettingsError(
                f"{self.name} is {value} in {origin}, outside {self.least} to {self.greatest}",
                next_step=f"choose a value in that range; the default is {self.default}",
            )


_KIND_NAMES: dict[type, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "truth value (true or false)",
}


def _parse_bool(raw: object) -> bool:
    if isinstance(raw, bool):
        return raw
    words = {
        "true": True,
        "1": True,
        "yes": True,
        "on": True,
        "false": False,
        "0": False,
        "no": False,
        "off": False,
    }
    try:
        return words[str(raw).strip().lower()]
    except KeyError:
        raise ValueError(raw) from None


TABLE: tuple[Setting, ...] = (
    Setting("home", "", "folder for courses, engines and caches; empty: the user's data folder"),
    Setting("course", "mechanics-en", "the course that questions go to when no --course is given"),
    Setting("threads", 0, "threads an engine may use; 0: one per physical core", 0, 256),
    Setting(
        "isolate",
        "gpu",
        "which engines get a process of their own, that may die alone: never, gpu or always",
        choices=("never", "gpu", "always"),
    ),
    Setting(
        "engines",
        "",
        "bundles whose engines are served as they are, tensors in, tensors out: names, name=bundle, or the folder of a "
        "store, with commas between",
    ),
    Setting(
        "whisper",
        "",
        "the Whisper that hears: a folder, or owner/name of the Hugging Face hub, as it lies in the hub's cache "
        "here or fetched; empty: those that were pulled, largest first; none: no Whisper",
    ),
    Setting("whisper.margin", 1.0, "seconds of silence that a context shorter than 30 s keeps after the sound", 0, 28),
    Setting("whisper.bias_tokens", 24, "tokens of the course's terms that Whisper is told beforehand; 0: none", 0, 200),
    Setting(
        "recogniser",
        "",
        "the streaming recogniser that hears where no Whisper does: a folder; empty: the one that ships; none: none",
    ),
    Setting("vad.start", 0.5, "speech probability at which speech begins", 0.05, 0.99),
    Setting("vad.end", 0.35, "speech probability under which speech may end; below vad.start", 0.01, 0.95),
    Setting("vad.start_ms", 64, "how long the probability must stay above vad.start", 32, 2000),
    Setting("vad.end_ms", 640, "how long it must stay under vad.end; the open microphone's wait", 32, 5000),
    Setting("vad.lead_ms", 320, "audio kept from before the start of speech", 0, 2000),
    Setting("turn.draft_after_ms", 120, "how long a partial transcript must hold still to be answered ahead", 20, 5000),
    Setting("question.max_seconds", 60.0, "the longest spoken question, in seconds of speech", 1, 3600),
    Setting("question.max_characters", 2000, "the longest typed question", 10, 100_000),
    Setting(
        "question.min_confidence",
        0.5,
        "a transcript less sure than this is answered with 'please say it again'",
        0,
        1,
    ),
    Setting("answer.min_score", 0.5, "answerability under which the answer is 'this course does not say'", 0, 1),
    Setting("speech.voice_en", "en-us", "eSpeak NG voice for English answers"),
    Setting("speech.voice_zh", "cmn", "eSpeak NG voice for Mandarin answers"),
    Setting("speech.words_per_minute", 165, "speaking rate of answers", 80, 450),
    Setting("speech.cache_mb", 64, "disk space for spoken answers that may be asked again", 0, 100_000),
    Setting("tenants.file", "", "TOML file with quotas and weights of single tenants, a table for each; see above"),
    Setting("tenants.strict", False, "refuse a tenant that tenants.file does not name"),
    Setting("tenants.rate", 0.0, "requests a second of a tenant that the file does not name; 0: no limit", 0, 1e6),
    Setting("tenants.burst", 10, "requests that such a tenant may send at once before the rate holds", 1, 1_000_000),
    Setting("tenants.concurrency", 0, "requests that such a tenant may have in flight; 0: no limit", 0, 1_000_000),
    Setting("tenants.device_ms", 0.0, "device milliseconds a minute for such a tenant; 0: no limit", 0, 1e9),
    Setting("tiers.question", 0.5, "least share of device time for questions; all tiers together at most 1", 0.01, 1),
    Setting("tiers.caption", 0.15, "least share of captions", 0.01, 1),
    Setting("tiers.vision", 0.1, "least share of vision", 0.01, 1),
    Setting("tiers.batch", 0.05, "least share of work that nobody waits for", 0.01, 1),
    Setting("memory.host_mb", 0, "MiB that models may take on the host; 0: 92 % of what there is", 0, 100_000_000),
    Setting("memory.gpu_mb", 0, "MiB that models may take on each GPU; 0: 92 % of what there is", 0, 100_000_000),
    Setting("realtime.sessions", 1000, "Realtime connections at once; one more is refused", 1, 1_000_000),
    Setting("realtime.idle_seconds", 1800.0, "a Realtime client that sends nothing for so long is left", 1, 86_400),
    Setting("realtime.event_kb", 4096, "the largest event a Realtime client may send, in KiB", 64, 1_000_000),
    Setting("realtime.outbox_kb", 2048, "KiB that may wait for a Realtime client that does not read", 64, 1_000_000),
    Setting("realtime.ahead_ms", 4000, "how far ahead of the ear a spoken answer is sent", 100, 3_600_000),
    Setting("ladder.detect", "", "rungs that find speech, best first, names with commas between; empty: all"),
    Setting("ladder.transcribe", "", "rungs that hear, in the same way; aula doctor lists names"),
    Setting("ladder.understand", "", "rungs that understand"),
    Setting("ladder.embed", "", "rungs that embed"),
    Setting("ladder.speak", "", "rungs that speak"),
    Setting(
        "generator.url",
        "",
        "base URL of an OpenAI-compatible server that goes on where the course's first sentence ends; empty: none. Its "
        "key is the environment's AULA_GENERATOR_KEY, never a setting",
    ),
    Setting("generator.model", "default", "the model to ask it for"),
    Setting("generator.seconds", 8.0, "how long it may take for all it says", 0.1, 600),
    Setting("generator.tokens", 256, "tokens that it may say", 1, 100_000),
    Setting("serve.host", "127.0.0.1", "the address that aula serve listens on; 0.0.0.0: all of this machine's"),
    Setting("serve.port", 8000, "its port for HTTP and WebSocket; 0: any that is free", 0, 65_535),
    Setting("serve.grpc_port", 8001, "its port for gRPC; 0: any that is free; -1: no gRPC", -1, 65_535),
    Setting("serve.tls_cert", "", "file with the certificate (PEM) for https and wss; empty: none"),
    Setting("serve.tls_key", "", "file with its key (PEM); empty: in the certificate's file"),
    Setting("serve.keys", "", "file of the API keys that aula key writes; empty: keys.json in home"),
    Setting(
        "serve.without_keys",
        False,
        "listen beyond loopback though there are no keys: whoever can reach it may use it",
    ),
    Setting(
        "serve.origins",
        "",
        "pages of other sites that may call, as origins with commas between (https://school.example); *: all",
    ),
    Setting(
        "serve.hosts", "", "names that this server is called by, commas between; empty: any, or loopback's without keys"
    ),
    Setting("serve.max_body_mb", 64, "MiB of the largest request", 1, 10_000),
    Setting("serve.max_header_kb", 16, "KiB of a request's headers, its path among them", 1, 60),
    Setting("serve.max_audio_seconds", 7200.0, "the longest recording to transcribe, in seconds", 1, 1e6),
    Setting("serve.max_connections", 2048, "connections at once; one more is refused", 1, 1_000_000),
    Setting("serve.header_seconds", 10.0, "how long a client may take to send the head of a request", 0.1, 3600),
    Setting("serve.idle_seconds", 30.0, "how long it may send or read nothing in the middle of one", 0.1, 3600),
    Setting("serve.keep_seconds", 75, "how long a connection is kept open for the next request", 1, 86_400),
    Setting("serve.drain_seconds", 30.0, "at the end, how long turns under way may take to finish", 0, 3600),
    Setting("serve.canary_seconds", 15.0, "/readyz tries every capability at most so often", 0.1, 86_400),
    Setting(
        "serve.log",
        "text",
        "how requests are logged: text, json (a line each) or none",
        choices=("text", "json", "none"),
    ),
)
_BY_NAME = {setting.name: setting for setting in TABLE}


class Settings:
    """Values for every row of TABLE; compares and prints by value."""

    def __init__(self, values: Mapping[str, Value] | None = None) -> None:
        self._values = {setting.name: setting.default for setting in TABLE}
        for name, raw in (values or {}).items():
            self._values[name] = find_setting(name, "the call").parse(raw, "the call")
        if self.number("vad.end") >= self.number("vad.start"):
            raise SettingsError(
                f"vad.end ({self.number('vad.end')}) is not below vad.start ({self.number('vad.start')})",
                next_step="lower vad.end; the gap between them is what keeps speech from flickering",
            )
        if (sum_of_shares := sum(self.section("tiers").values())) > 1.0 + 1e-9:
            raise SettingsError(
                f"the least shares of tiers sum to {sum_of_shares:g}, and a device has only one whole",
                next_step="lower some of tiers.question, tiers.caption, tiers.vision and tiers.batch",
            )

    def text(self, name: str) -> str:
        return str(self._values[name])

    def number(self, name: str) -> float:
        return float(self._values[name])

    def whole(self, name: str) -> int:
        return int(self._values[name])

    def flag(self, name: str) -> bool:
        return bool(self._values[name])

    def section(self, name: str) -> dict[str, float]:
        """The numbers whose names begin with `name` and a dot, by what follows."""
        return {key.removeprefix(f"{name}."): self.number(key) for key in self._values if key.startswith(f"{name}.")}

    @property
    def home(self) -> Path:
        """Where courses, engines and caches live."""
        chosen = self.text("home")
        if not chosen:
            return Path(platformdirs.user_data_dir("aula", appauthor=False))
        try:
            return Path(chosen).expanduser()
        except RuntimeError as error:
            raise SettingsError(f"home is {chosen!r}, and {error}", next_step="give a whole path") from error

    def replaced(self, **values: Value) -> "Settings":
        """A copy with some values changed; dots are written as double underscores."""
        changed = {name.replace("__", "."): value for name, value in values.items()}
        return Settings({**self._values, **changed})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Settings) and other._values == self._values

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __repr__(self) -> str:
        changed = {s.name: self._values[s.name] for s in TABLE if self._values[s.name] != s.default}
        return f"Settings({changed!r})"


def find_setting(name: str, origin: str) -> Setting:
    if name not in _BY_NAME:
        raise SettingsError(
            f"{origin} sets {name!r}, which is no setting",
            available=sorted(_BY_NAME),
            next_step="correct the name; docs/settings.md explains each",
        )
    return _BY_NAME[name]


def load_settings(environment: Mapping[str, str] | None = None, files: tuple[Path, ...] | None = None) -> Settings:
    """Settings from files and environment. Raises SettingsError naming the file or variable at fault."""
    environment = os.environ if environment is None else environment
    files = settings_files() if files is None else files
    values: dict[str, Value] = {}
    for path in files:
        for name, raw in _read_toml(path).items():
            values[name] = find_setting(name, str(path)).parse(raw, str(path))
    for setting in TABLE:
        if environment.get(setting.variable):
            values[setting.name] = setting.parse(environment[setting.variable], setting.variable)
    return Settings(values)


def settings_files() -> tuple[Path, ...]:
    return (Path(platformdirs.user_config_dir("aula", appauthor=False)) / "aula.toml", Path("aula.toml"))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror})", next_step="mend its permissions") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{path} is not TOML ({error})", next_step='write lines like: course = "mechanics-en"'
        ) from error
    return dict(_flatten(document))


def _flatten(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in table.items():
        rows += _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return rows
