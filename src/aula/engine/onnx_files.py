"""ONNX files on disk: written with large weights beside them, and read without trusting a byte.

A native runtime follows whatever a file says; so external weights are looked for in the file's own folder only, every
tensor's size is compared with its bytes, and onnx's checker has its say before any runtime sees the file.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, BinaryIO

from aula.core.errors import EngineError, StorageError
from aula.engine.foreign import check_operators
from aula.engine.walk import all_graphs, element_bits, opset, tensor_bytes, without_weights

if TYPE_CHECKING:
    import onnx

INLINE_LIMIT = 3 << 29
"""1.5 GiB of weights: a protobuf message ends at 2 GiB."""

MAPPED_LIMIT = 8 << 20
"""Above so many bytes the weights of a processor's engine lie beside its graph: runtimes map that file, where they
would copy what lies in the graph, and keep the copy."""

LEAST_EXTERNAL = 1024
"""Smaller tensors stay in the ONNX file, where runtimes read shapes from."""

ALIGNMENT = 4096
"""External tensors begin at whole pages, so that a runtime may map them."""

LEAST_IR, LEAST_OPSET = 3, 7
"""What ONNX Runtime still reads."""

_EXPORT = "export the model again, or copy the file again"


def save_model(model: "onnx.ModelProto", path: Path, limit: int = INLINE_LIMIT) -> None:
    """Write `model`, which stays as it is; with more than `limit` bytes of weights these go into one file beside it,
    called after `path` with ".data" at the end.

    Raises StorageError where the disk refuses, EngineError for weights that are not in memory.
    """
    import onnx

    if external_files(model):
        raise EngineError(
            f"the weights of the model for {path.name} are not in memory",
            available=external_files(model),
            next_step="load the model with its weights",
        )
    with _disk(path):
        if sum(tensor_bytes(tensor) for tensor in model.graph.initializer) <= limit:
            onnx.save(model, str(path))
            return
        light = without_weights(model, kept=LEAST_EXTERNAL)
        stored = {tensor.name: tensor for tensor in model.graph.initializer}
        stored |= {node.output[0]: a.t for node in model.graph.node for a in node.attribute if a.name == "value"}
        side = path.with_name(f"{path.name}.data")
        with side.open("wb") as file:
            for tensor in light.graph.initializer:
                if tensor_bytes(tensor) > LEAST_EXTERNAL:
                    _append(file, side.name, tensor, stored[tensor.name])
        onnx.save(light, str(path))


def _append(file: BinaryIO, location: str, reference: "onnx.TensorProto", tensor: "onnx.TensorProto") -> None:
    import onnx

    # numpy_helper stores every type raw, as external files want it.
    content = tensor.raw_data or onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)).raw_data
    file.write(b"\0" * (-file.tell() % ALIGNMENT))
    reference.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", file.tell()), ("length", len(content))):
        reference.external_data.add(key=key, value=str(value))
    file.write(content)


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({error.strerror or error})", next_step="free space or mend permissions"
        ) from error


def external_files(model: "onnx.ModelProto") -> list[str]:
    """Where the weights of `model` lie that are not in memory: file names relative to the model's folder, sorted."""
    return sorted({_entries(tensor).get("location", "") for tensor in _tensors(model) if _is_external(tensor)})


def rename_external(model: "onnx.ModelProto", old: str, new: str) -> "onnx.ModelProto":
    """Let the weights that lie in the file `old` lie in `new`; changes and returns `model`.

    Raises EngineError where no weight lies in `old`, and for a new name that is no plain file name.
    """
    _refuse_climbing(new, "the new name")
    found = False
    for tensor in _tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location" and entry.value == old:
                entry.value = new
                found = True
    if not found:
        raise EngineError(
            f"no weight of the model lies in {old!r}", available=external_files(model), next_step="name one of these"
        )
    return model


def load_model(path: Path, *, weights: bool = True) -> "onnx.ModelProto":
    """The model in `path`, checked; with `weights` those from external files are read into it, else they are checked
    and stay where they are.

    Raises EngineError for a file that is missing, truncated, not ONNX or of an unsupported version, for one whose
    tensors and bytes disagree, and for external weights that are missing, too short, or outside the file's folder;
    BackendError that names the nodes whose operator no backend knows.
    """
    import onnx

    model = _parsed(path)
    if not _is_text(model):
        raise EngineError(f"{path.name} holds names that are not UTF-8", next_step=_EXPORT)
    _refuse_version(model, path)
    if not model.graph.output:
        raise EngineError(f"{path.name} holds a graph without outputs", next_step=_EXPORT)
    for tensor in _tensors(model):
        _refuse_size(tensor, path)
        if _is_external(tensor):
            _check_external(tensor, path, read=weights)
        else:
            _refuse_wrong_length(tensor, path)
    check_operators(model)
    try:
        # By its path, since a message over 2 GiB cannot be handed over, and so that external weights are looked at.
        onnx.checker.check_model(str(path))
    except Exception as error:  # the checker's own errors and those of protobuf
        raise _invalid(path, error) from error
    return model


def _invalid(path: Path, error: Exception) -> EngineError:
    reason = " ".join(str(error).split())[:400]
    return EngineError(f"{path.name} is not a valid ONNX graph: {reason}", next_step=_EXPORT)


def _parsed(path: Path) -> "onnx.ModelProto":
    import onnx

    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise EngineError(f"there is no file {path}", next_step="give the path of an .onnx file") from error
    except OSError as error:
        raise EngineError(
            f"{path} cannot be read ({error.strerror or error})", next_step="give the path of an .onnx file"
        ) from error
    if not content:
        raise EngineError(f"{path.name} is empty", next_step=_EXPORT)
    try:
        model = onnx.ModelProto()
        model.ParseFromString(content)
    except Exception as error:  # protobuf's own errors
        raise EngineError(f"{path.name} is not ONNX, or cut off: {error}", next_step=_EXPORT) from error
    if not model.ir_version or not model.HasField("graph") or not model.opset_import:
        raise EngineError(
            f"{path.name} is not ONNX, or cut off: it has no version, no graph or no operator sets", next_step=_EXPORT
        )
    return model


def _is_text(message: Any) -> bool:
    """Whether every string in a protobuf message is UTF-8: older rules let other bytes through until they are read."""
    for field in message.DESCRIPTOR.fields:
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        # Protobuf before 6.30 knows labels only, and later ones warn of them.
        repeated = field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED
        if field.type == field.TYPE_MESSAGE and not repeated and not message.HasField(field.name):
            continue
        try:
            found = getattr(message, field.name)
            values = list(found) if repeated else [found]
        except UnicodeDecodeError:
            return False
        if not all(isinstance(value, str) if field.type == field.TYPE_STRING else _is_text(value) for value in values):
            return False
    return True


def _refuse_version(model: "onnx.ModelProto", path: Path) -> None:
    import onnx

    versions = {
        "IR version": (model.ir_version, LEAST_IR, int(onnx.IR_VERSION)),
        "operator set": (opset(model), LEAST_OPSET, onnx.defs.onnx_opset_version()),
    }
    for name, (got, least, most) in versions.items():
        if (
            name == "operator set"
            and got == 0
            and all(entry.domain not in ("", "ai.onnx") for entry in model.opset_import)
        ):
            continue
        if not least <= got <= most:
            raise EngineError(
                f"{path.name} has {name} {got}, but {least} to {most} are supported "
                f"(it says IR version {model.ir_version} and operator set {opset(model)})",
                next_step="export the model again with a supported version"
                if got < least
                else "pip install --upgrade onnx onnxruntime openvino, or export with an older version",
            )


def _tensors(model: "onnx.ModelProto") -> Iterator["onnx.TensorProto"]:
    """Every tensor in the model, in nested graphs, attributes and functions too."""
    bodies = [node for function in model.functions for node in function.node]
    graphs = [*all_graphs(model.graph)]
    for node in bodies:
        for attribute in node.attribute:
            for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                graphs.extend(all_graphs(graph))
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        bodies.extend(graph.node)
    for node in bodies:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (
                *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else ()),
                *attribute.sparse_tensors,
            ):
                yield from (sparse.values, sparse.indices)


def _is_external(tensor: "onnx.TensorProto") -> bool:
    import onnx

    return tensor.data_location == onnx.TensorProto.EXTERNAL


def _entries(tensor: "onnx.TensorProto") -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _refuse_size(tensor: "onnx.TensorProto", path: Path) -> None:
    import onnx

    kinds = onnx.TensorProto.DataType
    known = tensor.data_type in kinds.values() and tensor.data_type != kinds.UNDEFINED
    if not known or any(size < 0 for size in tensor.dims):
        raise EngineError(
            f"the tensor {tensor.name!r} in {path.name} has type {tensor.data_type} and shape {list(tensor.dims)}",
            next_step=_EXPORT,
        )


def _refuse_wrong_length(tensor: "onnx.TensorProto", path: Path) -> None:
    """Compare the shape with the elements that are there."""
    bits = element_bits(tensor.data_type)
    wanted = tensor_bytes(tensor)
    if tensor.raw_data or not bits:
        got = len(tensor.raw_data) if bits else wanted
    else:
        fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
        count = sum(len(values) for values in fields)
        packed = max(1, 8 // bits)  # 4-bit types lie two to an int32
        complex_parts = 2 if tensor.data_type in (14, 15) else 1
        elements = wanted * 8 // bits
        whole = -(-elements // packed) * complex_parts
        got = wanted if count == whole else count * bits * packed // 8
    if got != wanted:
        raise EngineError(
            f"the tensor {tensor.name!r} in {path.name} has the shape {list(tensor.dims)}, which is {wanted} bytes, "
            f"but {got} bytes of elements",
            next_step=_EXPORT,
        )


def _refuse_climbing(location: str, what: str) -> None:
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    climbs = (
        not location
        or posix.is_absolute()
        or windows.drive
        or windows.root
        or ".." in (*posix.parts, *windows.parts)
        or not posix.name
        or "\0" in location
    )
    if climbs:
        raise EngineError(
            f"{what} {location!r} leads out of the model's folder",
            next_step="keep external weights in one file beside the model, named without any path",
        )


def _check_external(tensor: "onnx.TensorProto", path: Path, *, read: bool) -> None:
    entries = _entries(tensor)
    location = entries.get("location", "")
    what = f"the location of the weight {tensor.name!r}:"
    _refuse_climbing(location, what)
    file = path.parent
    for part in PurePosixPath(location).parts:
        file = file / part
        if file.is_symlink():
            raise EngineError(
                f"{what} {location!r} is a symbolic link",
                next_step="copy the file itself beside the model",
            )
    if not file.is_file():
        raise EngineError(
            f"the weights of {path.name} lie in {location}, which is not there",
            available=sorted(entry.name for entry in path.parent.glob("*"))[:8],
            next_step=f"copy {location} into {path.parent}",
        )
    wanted, size = tensor_bytes(tensor), file.stat().st_size
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", wanted))
    except ValueError as error:
        raise EngineError(f"{what} {error}", next_step=_EXPORT) from error
    if offset < 0 or length != wanted or offset + length > size:
        raise EngineError(
            f"the weight {tensor.name!r} is {wanted} bytes, but {path.name} looks for {length} from byte {offset} on "
            f"in {location}, which has {size}",
            next_step=f"copy {location} again: it may be cut off, or belong to another model",
        )
    if read:
        with file.open("rb") as stream:
            stream.seek(offset)
            tensor.raw_data = stream.read(length)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
