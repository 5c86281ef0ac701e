"""The protocol over gRPC. The classes of its messages are made when they are loaded: to a checker they are `Any`."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from aula.core.clock import within
from aula.core.errors import AulaError, InputError, SettingsError, TooSlowError
from aula.runtime import EngineInfo
from aula.servers.callers import Caller
from aula.servers.faults import message_of
from aula.servers.house import House
from aula.servers.kserve.asking import Asked, ask
from aula.servers.kserve.calls import Call, credentials_of, options_of
from aula.servers.kserve.engines import engines_of
from aula.servers.kserve.faults import code_of, retry_after, status_of
from aula.servers.kserve.protocol import SERVICE, protocol
from aula.servers.kserve.tensors import Array, datatype_of, from_list, from_raw, to_raw

_LISTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def make_server(house: House, address: str) -> grpc.aio.Server:
    """Raises SettingsError for an address that cannot be listened on."""
    settings = house.settings
    server = grpc.aio.server(
        options=options_of(settings), maximum_concurrent_rpcs=settings.whole("serve.max_connections")
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, _handlers(_Door(house))),))
    credentials = credentials_of(settings)
    try:
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if not port:
        raise SettingsError(
            f"gRPC cannot listen on {address}", next_step="free it, or choose another port: aula serve --grpc-port"
        )
    return server


def _handlers(door: "_Door") -> dict[str, Any]:
    handlers: dict[str, Any] = {}
    for name, (taken, _) in protocol().methods.items():
        # Messages come and go as bytes: what cannot be read is the caller's fault, and gRPC would call it ours.
        if name == "ModelStreamInfer":
            handlers[name] = grpc.stream_stream_rpc_method_handler(partial(_streamed, door, taken))
        else:
            answering = partial(_told, door, name, getattr(door, _snake(name)), taken)
            handlers[name] = grpc.unary_unary_rpc_method_handler(answering)
    return handlers


async def _told(
    door: "_Door", name: str, answer: Callable[[Any, Call], Awaitable[Any]], taken: Any, raw: bytes, context: Any
) -> bytes:
    call = Call(door.house, name, context)
    call.received = len(raw)
    try:
        told: bytes = (await answer(_read(taken, raw), call)).SerializeToString()
        call.status, call.sent = 200, len(told)
        return told
    except Exception as error:
        await _abort(call, error)
        raise
    finally:
        await call.end()


async def _streamed(door: "_Door", taken: Any, messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    """One after the other. What one of them did wrong is told in its place, and the stream goes on."""
    response = protocol().ModelStreamInferResponse
    call = Call(door.house, "ModelStreamInfer", context)
    try:
        caller = call.admit()
        while (raw := await door.next_of(messages)) is not None:
            is_first = not call.received
            call.received += len(raw)
            request = _read(taken, raw)
            try:
                if not is_first:
                    door.house.doorman.again(caller)
                told = response(infer_response=await door.infer(request, call, caller))
            except AulaError as error:
                named = {"model_name": request.model_name, "model_version": request.model_version, "id": request.id}
                told = response(error_message=message_of(error), infer_response=named)
            made = told.SerializeToString()
            call.sent += len(made)
            yield made
        call.status = 200
    except Exception as error:
        await _abort(call, error)
    finally:
        await call.end()


def _read(taken: Any, raw: bytes) -> Any:
    """Raises InputError."""
    try:
        return taken.FromString(raw)
    except DecodeError as error:
        raise InputError(
            f"{len(raw)} bytes are no {taken.DESCRIPTOR.name}", next_step="send the protocol's message"
        ) from error


async def _abort(call: Call, error: Exception) -> None:
    """Ends the call with what may be told; a defect is said aloud in the house."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    call.status = status_of(error)
    if not isinstance(error, AulaError):
        asyncio.get_running_loop().call_exception_handler({"message": "a call of gRPC failed", "exception": error})
    seconds = retry_after(error)
    trailing = () if seconds is None else (("retry-after", seconds),)
    await call.context.abort(getattr(grpc.StatusCode, code_of(error)), message_of(error), trailing)


class _Door:
    """A method for each of the service's."""

    def __init__(self, house: House) -> None:
        self.house = house
        self._engines = engines_of(house)
        self._clock = house.runtime.clock
        self._keep_seconds = house.settings.number("serve.keep_seconds")
        self._protocol = protocol()

    async def server_live(self, _request: Any, _call: Call) -> Any:
        return self._protocol.ServerLiveResponse(live=True)

    async def server_ready(self, _request: Any, _call: Call) -> Any:
        return self._protocol.ServerReadyResponse(ready=self._engines.is_ready())

    async def server_metadata(self, _request: Any, _call: Call) -> Any:
        return self._protocol.ServerMetadataResponse(**self._engines.server())

    async def repository_index(self, request: Any, call: Call) -> Any:
        call.admit()
        return self._protocol.RepositoryIndexResponse(models=self._engines.index(only_ready=request.ready))

    async def model_ready(self, request: Any, call: Call) -> Any:
        call.admit()
        engine = self._engines.find(request.name, request.version)
        return self._protocol.ModelReadyResponse(ready=self._engines.is_ready(engine.name))

    async def model_metadata(self, request: Any, call: Call) -> Any:
        call.admit()
        engine = await self._engines.known(request.name, request.version)
        return self._protocol.ModelMetadataResponse(**self._engines.metadata(engine))

    async def model_config(self, request: Any, call: Call) -> Any:
        call.admit()
        config = self._engines.config(await self._engines.known(request.name, request.version))
        for tensor in (*config["input"], *config["output"]):
            tensor["data_type"] = self._protocol.datatypes[tensor["data_type"]]
        return self._protocol.ModelConfigResponse(config=config)

    async def model_statistics(self, request: Any, call: Call) -> Any:
        call.admit()
        statistics = self._engines.statistics(request.name, request.version)
        return self._protocol.ModelStatisticsResponse(model_stats=statistics)

    async def model_infer(self, request: Any, call: Call) -> Any:
        return await self.infer(request, call, call.admit())

    async def infer(self, request: Any, call: Call, caller: Caller) -> Any:
        came = self._clock.now()
        left = call.context.time_remaining()
        engine = self._engines.find(request.model_name, request.model_version)
        with call.turn():
            return await ask(
                self._engines,
                engine,
                caller,
                came,
                lambda: _asked(request),
                lambda made: self._answer(engine, request.id, made),
                None if left is None else came + left,
            )

    async def next_of(self, messages: AsyncIterator[bytes]) -> bytes | None:
        """A stream's next message; None at its end. Raises TooSlowError for one that says nothing for too long."""
        try:
            async with within(self._clock, self._keep_seconds):
                return await anext(messages, None)
        except TimeoutError:
            raise TooSlowError("the stream said nothing for too long", next_step="open another") from None

    def _answer(self, engine: EngineInfo, request_id: str, made: Mapping[str, Array]) -> Any:
        answer = self._protocol.ModelInferResponse(model_name=engine.name, model_version=engine.version, id=request_id)
        for name, array in made.items():
            answer.outputs.add(name=name, datatype=datatype_of(array.dtype), shape=array.shape)
            answer.raw_output_contents.append(bytes(to_raw(array)))
        return answer


def _asked(request: Any) -> Asked:
    """Raises InputError."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InputError(
            f"there are {len(request.inputs)} inputs and {len(raw)} raw contents",
            next_step="send raw contents for all inputs, in their order, or for none",
        )
    parameters: dict[str, Any] = {}
    inputs: dict[str, Array] = {}
    for place, one in enumerate(request.inputs):
        if one.name in inputs:
            raise InputError(f"the input {one.name[:80]!r} comes twice", next_step="send each once")
        _add(parameters, one.parameters)
        if raw:
            inputs[one.name] = from_raw(one.name, one.datatype, one.shape, raw[place])
        else:
            values = getattr(one.contents, _LISTS.get(one.datatype, "bytes_contents"))
            inputs[one.name] = from_list(one.name, one.datatype, one.shape, values)
    for output in request.outputs:
        _add(parameters, output.parameters)
    _add(parameters, request.parameters)
    return Asked(inputs, tuple(output.name for output in request.outputs), parameters)


def _add(parameters: dict[str, Any], told: Mapping[str, Any]) -> None:
    for name, value in told.items():
        choice = value.WhichOneof("parameter_choice")
        if choice is not None:
            parameters[name] = getattr(value, choice)


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
