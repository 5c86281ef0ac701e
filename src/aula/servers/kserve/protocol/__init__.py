"""The messages of the Open Inference Protocol, as classes.

`open_inference.pb` is what a compiler makes of `open_inference.proto`, the same with each of its versions; code that it
would generate binds itself to one version of protobuf's runtime. The classes live in a pool of descriptors of their
own: whoever imports a client of the protocol into the same process brings messages of the same names. Write it anew by

    python -m grpc_tools.protoc --proto_path=. --descriptor_set_out=open_inference.pb open_inference.proto
"""

from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet

SERVICE = "inference.GRPCInferenceService"
COMPILED = Path(__file__).with_name("open_inference.pb")


class Protocol:
    """A message's class by its name, as an attribute; `methods` of the service by name, each with the classes of what
    it takes and gives; `datatypes` are the numbers of a configuration's."""

    def __init__(self) -> None:
        (file,) = FileDescriptorSet.FromString(COMPILED.read_bytes()).file
        pool = descriptor_pool.DescriptorPool()
        pool.Add(file)
        self.__dict__.update(
            {
                one.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{one.name}"))
                for one in file.message_type
            }
        )
        self.methods: dict[str, tuple[Any, Any]] = {
            method.name: (getattr(self, method.input_type.name), getattr(self, method.output_type.name))
            for method in pool.FindServiceByName(SERVICE).methods
        }
        values = pool.FindEnumTypeByName(f"{file.package}.DataType").values
        self.datatypes: dict[str, int] = {value.name: value.number for value in values}

    def __getattr__(self, name: str) -> Any:
        """Only what is no message comes here; the types of messages are not known to a checker."""
        raise AttributeError(f"the protocol has no message {name}")


@cache
def protocol() -> Protocol:
    return Protocol()
