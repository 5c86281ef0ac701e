"""TensorRT's own objects, one way for 8.6 to 11: versions, messages, plans, and what an engine says of its layers.

The runtime's calls are the same in all of these releases (facts: ICudaEngine and IExecutionContext of 8.6 through 11);
only building differs, see `aula.engine.plans`.
"""

import ctypes
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aula.core.errors import BackendError, DeviceMemoryError, VerificationError

KEPT_MESSAGES = 20
REBUILD = "build it for this machine: aula build MODEL --targets "


class Runtime:
    """One `trt.Runtime` with its logger. `trt` is the module tensorrt, or what stands in for it in tests."""

    def __init__(self, trt: Any) -> None:
        self.trt = trt
        self.version = str(trt.__version__)
        self.messages = _messages(trt)
        """The logger that TensorRT's other objects want too; it tells what it was told."""
        self._runtime = trt.Runtime(self.messages)
        if self.messages.count():
            # Without a GPU or with an old driver this object holds nothing, and whatever touches it ends the process,
            # freeing it too (seen with 11.4): it is never freed.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._runtime))
            raise BackendError(
                f"TensorRT {self.version} does not start here: {self.messages.said_since(0)[0]}",
                next_step="aula doctor tries the GPU; engines for the CPU need none: --target cpu",
            )
        # Plans that run on other releases carry a small runtime of their own, which TensorRT asks to be allowed.
        if hasattr(self._runtime, "engine_host_code_allowed"):
            self._runtime.engine_host_code_allowed = True

    @classmethod
    def load(cls) -> "Runtime":
        """This process's, made once: TensorRT keeps the first logger it sees. Raises BackendError where TensorRT is not
        installed, or finds no GPU that it can use."""
        global _loaded
        with _lock:
            if _loaded is None:
                try:
                    import tensorrt
                except (ImportError, OSError):  # the second where one of its libraries is missing
                    try:
                        import tensorrt_lean as tensorrt
                    except (ImportError, OSError) as error:
                        raise BackendError(
                            f"GPU engines need TensorRT, which cannot be imported here ({error})",
                            next_step='pip install "aula[gpu]", then aula doctor',
                        ) from error
                _loaded = cls(tensorrt)
            return _loaded

    def said(self) -> str:
        """The last thing TensorRT complained of, for messages."""
        return str(self.messages.last())

    def deserialise(self, plan: Path, digest: str, weights: Path | None = None) -> Any:
        """The engine in `plan`, of whose bytes the caller says the SHA-256; one that comes without weights gets those
        of the ONNX file `weights`, whose bytes the caller has compared.

        Raises BackendError where no digest is given, since a plan is executable content, or TensorRT refuses the plan
        or the weights; VerificationError where the bytes are others.
        """
        if not digest:
            raise BackendError(
                f"{plan.name} is a TensorRT plan, which can run any code, and nobody vouches for it",
                next_step="open it through its bundle: the manifest knows the plan's digest",
            )
        try:
            content = plan.read_bytes()
        except OSError as error:
            raise BackendError(
                f"{plan} cannot be read ({error.strerror or error})", next_step="build the engine again"
            ) from error
        found = hashlib.sha256(content).hexdigest()
        if found != digest:
            raise VerificationError(
                f"{plan.name} has the digest {found[:16]}…, the manifest says {digest[:16]}…: it was changed, and "
                "is not opened",
                next_step="build it again: aula build MODEL --rebuild",
            )
        mark = self.messages.count()
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise self._refusal(
                f"TensorRT {self.version} does not take {plan.name}",
                mark,
                f"{REBUILD}…; a plan is for one kind of GPU and one release of TensorRT",
            )
        if weights is not None:
            self._refit(engine, plan, weights)
        return engine

    def _refit(self, engine: Any, plan: Path, weights: Path) -> None:
        """TensorRT 10's way: the parser reads the graph's weights into the engine; all or nothing."""
        if not hasattr(self.trt, "OnnxParserRefitter"):
            raise BackendError(
                f"{plan.name} comes without weights, which TensorRT {self.version} cannot fill in",
                next_step='pip install --upgrade "aula[gpu]": TensorRT 10 or later (the lean runtime cannot either)',
            )
        mark = self.messages.count()
        refitter = self.trt.Refitter(engine, self.messages)
        read = self.trt.OnnxParserRefitter(refitter, self.messages).refit_from_file(str(weights))
        missing = list(refitter.get_missing_weights()) if read else []
        if not read or missing or not refitter.refit_cuda_engine():
            wanting = f" ({len(missing)} are missing, {missing[0]} the first)" if missing else ""
            raise self._refusal(
                f"TensorRT {self.version} does not take the weights of {weights.name} for {plan.name}{wanting}",
                mark,
                "build it again: aula build MODEL --rebuild",
            )

    def context(self, engine: Any, plan: Path) -> Any:
        """Raises DeviceMemoryError where memory is short, BackendError for anything else that TensorRT says."""
        mark = self.messages.count()
        context = engine.create_execution_context()
        if context is None:
            raise self._refusal(
                f"TensorRT cannot start {plan.name}",
                mark,
                "close other sessions: TensorRT 8.6 gives each profile one context",
            )
        return context

    def _refusal(self, what: str, mark: int, next_step: str) -> BackendError:
        """What TensorRT has said since `mark`, the first first: what follows is usually its consequence."""
        said = self.messages.said_since(mark)
        if is_short_of_memory(" ".join(said)):
            return DeviceMemoryError(
                f"{what}: the GPU has no memory left ({said[-1]})",
                next_step="close other sessions, build for fewer rows, or serve this engine on the CPU",
            )
        return BackendError(f"{what}: {said[0] if said else 'it does not say why'}", next_step=next_step)

    def layers(self, engine: Any) -> list[dict[str, Any]]:
        """Every layer as the inspector knows it; [] where the plan was built without that, and in the lean runtime,
        which has no inspector."""
        if not hasattr(self.trt, "EngineInspector"):
            return []
        inspector = engine.create_engine_inspector()
        text = inspector.get_engine_information(self.trt.LayerInformationFormat.JSON)
        try:
            # Names of nodes may hold line breaks, which 8.6 passes on as they are.
            found = json.loads(text, strict=False).get("Layers", [])
        except ValueError:
            return []
        return [layer for layer in found if isinstance(layer, dict)]

    def dtype(self, kind: Any) -> str:
        """numpy's name of a TensorRT type. bfloat16 has none in numpy, and is its own name."""
        name = str(kind).rpartition(".")[2].lower()
        known = {"float": "float32", "half": "float16", "bf16": "bfloat16"}
        return known.get(name, name)


class Messages:
    """The errors that TensorRT spoke of, newest last."""

    def __init__(self) -> None:
        self._said: list[str] = []
        self._count = 0

    def add(self, text: str) -> None:
        self._said.append(" ".join(text.split()))
        self._count += 1
        del self._said[:-KEPT_MESSAGES]

    def last(self) -> str:
        return self._said[-1] if self._said else "no reason"

    def count(self) -> int:
        """How many there have been: a mark for `said_since`."""
        return self._count

    def said_since(self, mark: int) -> Sequence[str]:
        """Those after the first `mark`: what was said of earlier failures explains nothing of this one."""
        return tuple(self._said[max(0, len(self._said) - (self._count - mark)) :])


def _messages(trt: Any) -> Any:
    """A logger in the form that TensorRT wants, which writes nowhere and remembers errors."""
    kinds = trt.ILogger

    class Logger(kinds):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            kinds.__init__(self)
            self.kept = Messages()

        def log(self, severity: Any, message: str) -> None:
            if severity in (kinds.Severity.INTERNAL_ERROR, kinds.Severity.ERROR):
                self.kept.add(message)

        def last(self) -> str:
            return self.kept.last()

        def count(self) -> int:
            return self.kept.count()

        def said_since(self, mark: int) -> Sequence[str]:
            return self.kept.said_since(mark)

    return Logger()


def is_short_of_memory(said: str) -> bool:
    """Whether TensorRT's words mean that the card was full; what it calls workspace is memory too."""
    return re.search(r"out ?of ?memory|insufficient (?:memory|workspace)", said, re.IGNORECASE) is not None


_PRECISIONS = {
    r"(?<!U)INT8": "int8",
    r"FP8": "fp8",
    r"FP16|HALF|(?<!B)FLOAT16": "fp16",
    r"BF16|BFLOAT16": "bf16",
    r"FP32|FLOAT(?!\d)|FLOAT32": "fp32",
}
"""The lowest first. 8.6 writes "Row major linear FP16 format", 10 and 11 "Half", "Float" and "BFloat16"."""
_TYPES_THAT_MOVE = frozenset({"Reformat", "NoOp", "Constant", "Signal", "Wait", "Shape"})


def layer_precision(layer: dict[str, Any]) -> str:
    """The lowest arithmetic type among a layer's tensors; "" for one that only moves data or counts, and for a region
    that TensorRT fused and of which it tells FP32 borders alone: within it may compute in anything."""
    if layer.get("LayerType") in _TYPES_THAT_MOVE:
        return ""
    told = [
        str(tensor.get("Format/Datatype", "")).upper()
        for side in ("Inputs", "Outputs")
        for tensor in layer.get(side, ())
    ]
    found = next((precision for name, precision in _PRECISIONS.items() if re.search(name, " ".join(told))), "")
    return "" if found == "fp32" and "ForeignNode[" in str(layer.get("Name")) else found


def layer_precisions(layers: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many layers compute in each precision. A region that TensorRT fused as a whole is one layer."""
    counts = Counter(precision for layer in layers if (precision := layer_precision(layer)))
    return dict(counts)


_loaded: Runtime | None = None
_lock = threading.Lock()
