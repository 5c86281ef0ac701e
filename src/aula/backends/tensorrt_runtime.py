"""TensorRT's own objects, one way for 8.6 to 11: versions, messages, plans, and what an engine says of its layers.

The runtime's calls are the same in all of these releases (facts: ICudaEngine and IExecutionContext of 8.6 through 11);
only building differs, see `aula.engine.plans`.
"""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aula.core.errors import BackendError, VerificationError

KEPT_MESSAGES = 20
REBUILD = "build it for this machine: aula build MODEL --targets "


class Runtime:
    """One `trt.Runtime` with its logger. `trt` is the module tensorrt, or what stands in for it in tests."""

    def __init__(self, trt: Any) -> None:
        self.trt = trt
        self.version = str(trt.__version__)
        self.messages = _messages(trt)
        """The logger that TensorRT's other objects want too; `last` and `all` tell what it was told."""
        self._runtime = trt.Runtime(self.messages)
        # Plans that run on other releases carry a small runtime of their own, which TensorRT asks to be allowed.
        if hasattr(self._runtime, "engine_host_code_allowed"):
            self._runtime.engine_host_code_allowed = True

    @classmethod
    def load(cls) -> "Runtime":
        """This process's, made once: TensorRT keeps the first logger it sees. Raises BackendError."""
        global _loaded
        with _lock:
            if _loaded is None:
                try:
                    import tensorrt
                except ImportError:
                    try:
                        import tensorrt_lean as tensorrt
                    except ImportError as error:
                        raise BackendError(
                            f"GPU engines need TensorRT, which cannot be imported here ({error})",
                            next_step='pip install "aula[gpu]", then aula doctor',
                        ) from error
                _loaded = cls(tensorrt)
            return _loaded

    def said(self) -> str:
        """The last thing TensorRT complained of, for messages."""
        return str(self.messages.last())

    def deserialise(self, plan: Path, digest: str) -> Any:
        """The engine in `plan`, of whose bytes the caller says the SHA-256.

        Raises BackendError where no digest is given, since a plan is executable content, or TensorRT refuses the plan;
        VerificationError where the bytes are others.
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
        engine = self._runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise BackendError(
                f"TensorRT {self.version} does not take {plan.name}: {self.said()}",
                next_step=f"{REBUILD}…; a plan is for one kind of GPU and one release of TensorRT",
            )
        return engine

    def context(self, engine: Any, plan: Path) -> Any:
        """Raises BackendError, naming what TensorRT said: usually that memory is short."""
        context = engine.create_execution_context()
        if context is None:
            raise BackendError(
                f"TensorRT cannot start {plan.name}: {self.said()}",
                next_step="close other sessions: memory may be short, and TensorRT 8.6 gives each profile one context",
            )
        return context

    def layers(self, engine: Any) -> list[dict[str, Any]]:
        """Every layer as the inspector knows it; [] where the plan was built without that."""
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
    """What TensorRT said, newest last; warnings and worse."""

    def __init__(self) -> None:
        self._said: list[str] = []

    def add(self, text: str) -> None:
        self._said.append(" ".join(text.split()))
        del self._said[:-KEPT_MESSAGES]

    def last(self) -> str:
        return self._said[-1] if self._said else "no reason"

    def all(self) -> Sequence[str]:
        return tuple(self._said)


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

        def all(self) -> Sequence[str]:
            return self.kept.all()

    return Logger()


_PRECISIONS = {"FP32": "fp32", "FP16": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8"}
_TYPES_THAT_MOVE = frozenset({"Reformat", "NoOp", "Constant", "Signal", "Wait", "Shape"})


def layer_precision(layer: dict[str, Any]) -> str:
    """The lowest arithmetic type among a layer's tensors; "" for one that only moves data or counts."""
    if layer.get("LayerType") in _TYPES_THAT_MOVE:
        return ""
    told = [
        str(tensor.get("Format/Datatype", "")).upper()
        for side in ("Inputs", "Outputs")
        for tensor in layer.get(side, ())
    ]
    found = {
        precision for text in told for name, precision in _PRECISIONS.items() if name in text.replace("FLOAT", "FP32")
    }
    return next((precision for precision in ("int8", "fp8", "fp16", "bf16", "fp32") if precision in found), "")


def layer_precisions(layers: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many layers compute in each precision. A region that TensorRT fused as a whole is one layer."""
    counts = Counter(precision for layer in layers if (precision := layer_precision(layer)))
    return dict(counts)


_loaded: Runtime | None = None
_lock = threading.Lock()
