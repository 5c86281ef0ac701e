"""PocketSphinx's language model and dictionary for one course, made once and kept on disk."""

import contextlib
import hashlib
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from aula.core.errors import StorageError
from aula.core.files import write_atomically
from aula.core.types import TranscribeRequest
from aula.models.ngrams import END, NgramModel, estimate
from aula.models.pronunciation import Pronouncer, acoustic_folder, cmudict
from aula.models.questions import question_sets

VERSION = 1
"""Part of every key: raise it when the way models are made changes."""
GENERAL_WORDS = 300
"""The commonest words of the general language model, known whatever the course. More of them hardly mattered."""
KEPT_ON_DISK = 12
_OPEN_KEY = "general"


@dataclass(frozen=True, slots=True)
class AdaptedModel:
    """Two files: an n-gram model (ARPA or binary) and a pronouncing dictionary."""

    language: Path
    dictionary: Path


class Adapter:
    """Makes and keeps models in `folder`; where that cannot be written, in a folder that ends with the process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._acoustic = acoustic_folder()
        self._spare: Path | None = None

    def key(self, request: TranscribeRequest) -> str:
        """Names the model by what goes into it, so that a course that was edited gets a new one."""
        if not request.vocabulary:
            return _OPEN_KEY
        text = "\0".join((str(VERSION), request.vocabulary_key, *request.vocabulary))
        return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:32]

    def model(self, key: str, request: TranscribeRequest) -> AdaptedModel:
        """The model of that key, from disk if it is there. Without a vocabulary, the general one."""
        if key == _OPEN_KEY:
            return AdaptedModel(self._acoustic / "en-us.lm.bin", self._acoustic / "cmudict-en-us.dict")
        kept = self._files(self._folder, key)
        if _is_sound(kept):
            return kept
        return self.rebuilt(key, request)

    def rebuilt(self, key: str, request: TranscribeRequest) -> AdaptedModel:
        """Make the model, whatever is on disk."""
        if key == _OPEN_KEY:
            return self.model(key, request)
        statistics, dictionary = self._made(request.vocabulary)
        try:
            return self._written(self._folder, key, statistics, dictionary)
        except StorageError:
            # A home that cannot be written costs time in every process, but no student's question.
            return self._written(self._spare_folder(), key, statistics, dictionary)

    def _made(self, course: tuple[str, ...]) -> tuple[NgramModel, str]:
        pronouncer = Pronouncer.english()
        model = estimate(question_sets(course), vocabulary=self._general_words())
        lines = []
        for word in sorted(model.vocabulary - {END}):
            # A word that cannot be said stays in the language model, where it does no harm.
            for number, phones in enumerate(pronouncer.pronunciations(word), 1):
                lines.append(f"{word if number == 1 else f'{word}({number})'} {' '.join(phones)}")
        return model, "\n".join([*lines, ""])

    def _written(self, folder: Path, key: str, model: NgramModel, dictionary: str) -> AdaptedModel:
        files = self._files(folder, key)
        language = model.arpa()
        _write_text(files.dictionary, dictionary)
        _write_text(files.language, language)
        # Written last, it vouches for both: PocketSphinx opens a dictionary that was cut, and hears nothing with it.
        _write_text(_voucher(files), _digests(language.encode(), dictionary.encode()))
        self._prune(folder)
        return files

    def _spare_folder(self) -> Path:
        if self._spare is None:
            self._spare = Path(tempfile.mkdtemp(prefix="aula-sphinx-"))
            weakref.finalize(self, shutil.rmtree, self._spare, ignore_errors=True)
        return self._spare

    def _general_words(self) -> list[str]:
        import pocketsphinx

        general = pocketsphinx.NGramModel(
            pocketsphinx.Config(), pocketsphinx.LogMath(1.0001), str(self._acoustic / "en-us.lm.bin")
        )
        words = (word for word in cmudict() if word.replace("'", "").isalpha())
        return sorted(words, key=lambda word: (-general.prob([word]), word))[:GENERAL_WORDS]

    @staticmethod
    def _files(folder: Path, key: str) -> AdaptedModel:
        return AdaptedModel(folder / f"{key}.arpa", folder / f"{key}.dict")

    @staticmethod
    def _prune(folder: Path) -> None:
        with contextlib.suppress(OSError):
            old = sorted(folder.glob("*.arpa"), key=lambda path: path.stat().st_mtime)[:-KEPT_ON_DISK]
            for path in old:
                path.unlink(missing_ok=True)
                path.with_suffix(".dict").unlink(missing_ok=True)
                path.with_suffix(".sha256").unlink(missing_ok=True)


def _voucher(files: AdaptedModel) -> Path:
    return files.language.with_suffix(".sha256")


def _digests(language: bytes, dictionary: bytes) -> str:
    return f"{hashlib.sha256(language).hexdigest()} {hashlib.sha256(dictionary).hexdigest()}\n"


def _is_sound(files: AdaptedModel) -> bool:
    """False too where the folder cannot be read: the model is then made anew."""
    try:
        vouched = _voucher(files).read_bytes()
        return vouched == _digests(files.language.read_bytes(), files.dictionary.read_bytes()).encode()
    except OSError:
        return False


def _write_text(path: Path, text: str) -> None:
    def write(file: IO[bytes]) -> None:
        file.write(text.encode("utf-8"))

    write_atomically(path, write)
