"""The messages of gRPC: ours are the protocol's, and what is compiled is what is written."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from tritonclient.grpc import model_config_pb2, service_pb2

from aula.servers.kserve.protocol import COMPILED, SERVICE, protocol

THEIRS: dict[str, Any] = {
    **service_pb2.DESCRIPTOR.message_types_by_name,
    **model_config_pb2.DESCRIPTOR.message_types_by_name,
}


def check(ours: Any, theirs: Any) -> int:
    """Every field of ours is theirs; how many there are."""
    count = 0
    for field in ours.fields:
        other = theirs.fields_by_name[field.name]
        assert (field.number, field.type, field.is_repeated) == (other.number, other.type, other.is_repeated), field
        assert (field.message_type is None) == (other.message_type is None)
        if field.message_type is not None:
            assert field.message_type.name == other.message_type.name
        count += 1
    for nested in ours.nested_types:
        count += check(nested, theirs.nested_types_by_name[nested.name])
    return count


def test_names_and_numbers_are_the_protocols() -> None:
    ours = {name: one.DESCRIPTOR for name, one in vars(protocol()).items() if hasattr(one, "DESCRIPTOR")}
    assert sum(check(one, THEIRS[name]) for name, one in ours.items()) > 100
    assert protocol().datatypes == {
        one.name: one.number for one in model_config_pb2.DESCRIPTOR.enum_types_by_name["DataType"].values
    }
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert theirs.full_name == SERVICE
    for name, (taken, given) in protocol().methods.items():
        method = theirs.methods_by_name[name]
        assert (method.input_type.name, method.output_type.name) == (taken.DESCRIPTOR.name, given.DESCRIPTOR.name)


def test_a_name_that_is_no_message_is_told() -> None:
    with pytest.raises(AttributeError, match="ModelGuessRequest"):
        _ = protocol().ModelGuessRequest


@pytest.mark.skipif(importlib.util.find_spec("grpc_tools") is None, reason="grpcio-tools is not installed")
def test_what_is_compiled_is_what_is_written(tmp_path: Path) -> None:
    made = tmp_path / "made.pb"
    folder = COMPILED.parent
    command = ["-m", "grpc_tools.protoc", f"--proto_path={folder}", f"--descriptor_set_out={made}"]
    subprocess.run([sys.executable, *command, "open_inference.proto"], check=True, cwd=folder)
    assert FileDescriptorSet.FromString(made.read_bytes()) == FileDescriptorSet.FromString(COMPILED.read_bytes())
