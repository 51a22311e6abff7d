"""Traces in files: safetensors with one JSON document (docs/trace-format.md), written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tempfile
import zlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lvlm_probe.errors import OutputError, SchemaError, TraceError, TraceFormatError
from lvlm_probe.trace import TensorSource, Trace

__all__ = ["SCHEMA", "SHARD_SIZE", "Spool", "load_trace", "save_trace"]

SCHEMA = 1
SHARD_SIZE = 2 * 10**9
KEY = "lvlm_probe"
SUFFIX = ".safetensors"
INDEX = ".safetensors.index.json"


def save_trace(tensors: TensorSource, meta: Mapping[str, Any], path: Path, shard_size: int) -> Path:
    """Write beside ``path`` and rename, so that whatever happens the old file or none is there.

    Args:
        tensors: By site name.
        meta: The document, without the parts that this function adds (schema, tensor table, digest).
        path: Ends in ``.safetensors``.
        shard_size: Bytes of tensors above which they are cut into shards beside an index.

    Returns:
        ``path``, or the index's path.

    Raises:
        OutputError: If the name ends otherwise, or the folder cannot be written.
    """
    if path.suffix != SUFFIX:
        raise OutputError(f"cannot save a trace as {path.name!r}: end the name in {SUFFIX}")
    table = {name: _facts(tensors[name]) for name in sorted(tensors)}
    document = {**meta, "schema": SCHEMA, "tensors": table}
    document["digest"] = _digest(document)
    text = _canonical(document)
    shards = _shards(tensors, shard_size)
    with _writing(path):
        if len(shards) == 1:
            with _replacing(path) as temporary:
                save_file({n: tensors[n].contiguous() for n in shards[0]}, temporary, {KEY: text})
            return path
        return _save_shards(tensors, shards, text, document["digest"], path)


def _save_shards(
    tensors: TensorSource, shards: list[list[str]], text: str, digest: str, path: Path
) -> Path:
    # Shards carry the digest in their names: those of an older trace stay whole until the index is replaced.
    stem = f"{path.name.removesuffix(SUFFIX)}-{digest[:8]}"
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        shard = path.with_name(f"{stem}-{number:05}-of-{len(shards):05}{SUFFIX}")
        mark = json.dumps({"schema": SCHEMA, "shard": number, "digest": digest})
        with _replacing(shard) as temporary:
            save_file({n: tensors[n].contiguous() for n in names}, temporary, {KEY: mark})
        weight_map.update(dict.fromkeys(names, shard.name))
    index = path.with_name(path.name.removesuffix(SUFFIX) + INDEX)
    total = sum(_bytes(tensors[name]) for name in weight_map)
    old = _shard_names(index)
    with _replacing(index) as temporary:
        temporary.write_text(
            _canonical({"metadata": {"total_size": total, KEY: text}, "weight_map": weight_map}),
            "utf-8",
        )
    for name in old - set(weight_map.values()):
        path.with_name(name).unlink(missing_ok=True)
    return index


def _shard_names(index: Path) -> set[str]:
    try:
        named = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()
    return {name for name in named if Path(name).name == name and name.endswith(SUFFIX)}


def _shards(tensors: TensorSource, shard_size: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name in sorted(tensors):
        size = _bytes(tensors[name])
        if shards[-1] and filled + size > shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def load_trace(path: str | Path) -> Trace:
    """Open a trace; tensors are read when they are asked for.

    Args:
        path: A ``.safetensors`` file, or the ``.safetensors.index.json`` of a trace in shards.

    Raises:
        OutputError: If there is no such file.
        TraceFormatError: If it is no trace, was cut short, or was changed after it was written.
        SchemaError: If another version of the format wrote it.
    """
    path = Path(path)
    index = path.with_name(path.name.removesuffix(SUFFIX) + INDEX)
    if path.suffix == SUFFIX and not path.exists() and index.exists():
        path = index
    if not path.is_file():
        raise OutputError(f"there is no trace {str(path)!r}: check the path")
    if path.name.endswith(INDEX):
        text, shard_of = _read_index(path)
        files = sorted(set(shard_of.values()))
    else:
        text, shard_of, files = None, {}, [path]
    headers: dict[str, tuple[str, list[int]]] = {}
    for file in files:
        held, mark = _read_header(file)
        headers |= held
        shard_of |= dict.fromkeys(held, file)
        if text is None:
            text = mark
    if text is None:
        raise TraceFormatError(f"{str(path)!r} names no shard: record it again")
    document = _read_document(path, text)
    _compare(path, headers, document["tensors"])
    return Trace(_StoredTensors(shard_of, document["tensors"]), document)


def _read_index(path: Path) -> tuple[str, dict[str, Path]]:
    try:
        index = json.loads(path.read_text("utf-8"))
        text, names = index["metadata"][KEY], index["weight_map"]
        if any(Path(shard).name != shard for shard in names.values()):
            raise ValueError("a shard lies outside the index's folder")
        return text, {name: path.with_name(shard) for name, shard in names.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TraceFormatError(
            f"{str(path)!r} is not the index of a trace ({error}): record it again"
        ) from error


def _read_header(path: Path) -> tuple[dict[str, tuple[str, list[int]]], str]:
    """Dtype and shape of each tensor, and the document's text.

    Raises:
        TraceFormatError: If the file is no whole safetensors file, or no trace.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in _names(file)}
            facts = {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise TraceFormatError(
            f"{str(path)!r} is not a whole safetensors file ({error}; {_size(path)}): it was cut short or damaged; "
            "copy or record it again"
        ) from error
    if KEY not in metadata:
        raise TraceFormatError(
            f"{str(path)!r} is a safetensors file without the document {KEY!r}: it is not a trace"
        )
    return facts, metadata[KEY]


def _names(file: Any) -> list[str]:
    return list(file.keys())


def _size(path: Path) -> str:
    return f"{path.stat().st_size} bytes" if path.exists() else "missing"


def _read_document(path: Path, text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
        schema = document["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise TraceFormatError(
            f"the document of {str(path)!r} cannot be read ({error}): the file was changed; record it again"
        ) from error
    if schema != SCHEMA:
        raise SchemaError(
            f"{str(path)!r} has trace schema {schema!r}, this version reads {SCHEMA}: "
            + (
                "upgrade lvlm-probe"
                if isinstance(schema, int) and schema > SCHEMA
                else "record it again"
            )
        )
    if document.get("digest") != _digest(document):
        raise TraceFormatError(
            f"the document of {str(path)!r} does not match its digest: it was changed after it was written; "
            "take the original file or record it again"
        )
    return document


def _compare(
    path: Path, headers: Mapping[str, tuple[str, list[int]]], table: Mapping[str, Any]
) -> None:
    said = {name: (facts["dtype"], list(facts["shape"])) for name, facts in table.items()}
    if headers != said:
        differing = sorted(
            name for name in headers.keys() | said.keys() if headers.get(name) != said.get(name)
        )
        raise TraceFormatError(
            f"{str(path)!r} does not hold the tensors that its document lists ({', '.join(differing[:4])}"
            f"{' …' if len(differing) > 4 else ''} differ): it was changed after it was written; "
            "take the original file or record it again"
        )


class _StoredTensors:
    """Tensors read from their files when asked for, each checked against its checksum."""

    def __init__(self, files: Mapping[str, Path], table: Mapping[str, Any]) -> None:
        self._files = files
        self._table = table

    def __getitem__(self, name: str) -> Tensor:
        path = self._files[name]
        try:
            with safe_open(path, "pt") as file:
                tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise TraceFormatError(
                f"tensor {name!r} cannot be read from {str(path)!r} ({error}): the file was moved or changed "
                "since it was opened; load the trace again"
            ) from error
        if _checksum(tensor) != self._table[name]["crc32"]:
            raise TraceFormatError(
                f"tensor {name!r} of {str(path)!r} does not match its checksum: the file was damaged or changed "
                "after it was written; take the original file or record it again"
            )
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


class Spool:
    """Tensors laid down in a nameless file as they come, so that a long recording needs no memory for them.

    The file has no name from the start and vanishes with the process, however that ends.

    Args:
        folder: Where there is room.

    Raises:
        OutputError: If the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        with _writing(folder / "spool"):
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close()
        self._where: dict[str, tuple[int, torch.dtype, torch.Size]] = {}
        self._end = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Lay down one tensor.

        Raises:
            TraceError: If the name is taken.
            OutputError: If the disk is full.
        """
        if name in self._where:
            raise TraceError(
                f"site {name!r} was met twice in one forward pass: its adapter names a shared module"
            )
        data = _raw(tensor)
        with _writing(Path(name)):
            self._file.write(data)
        self._where[name] = (self._end, tensor.dtype, tensor.shape)
        self._end += len(data)

    def __getitem__(self, name: str) -> Tensor:
        start, dtype, shape = self._where[name]
        self._file.flush()
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if size == 0:
            return torch.empty(shape, dtype=dtype)
        # Copy on write: torch warns of read-only memory, and the file stays as it is.
        data = np.memmap(self._file, np.uint8, "c", start, (size,))
        return torch.from_numpy(data).view(dtype).view(shape)

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def _facts(tensor: Tensor) -> dict[str, Any]:
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "uint8": "U8"}
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in names:
        raise TraceError(f"a trace holds {', '.join(names)}; {dtype} is none of them")
    return {"crc32": _checksum(tensor), "dtype": names[dtype], "shape": list(tensor.shape)}


def _raw(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(_raw(tensor))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _digest(document: Mapping[str, Any]) -> str:
    body = {key: value for key, value in document.items() if key != "digest"}
    return hashlib.sha256(_canonical(body).encode()).hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


@contextmanager
def _replacing(path: Path) -> Generator[Path]:
    """A temporary file beside ``path`` that takes its place once it is whole and on the disk."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        temporary.touch(exist_ok=False)
        mode = (
            temporary.stat().st_mode
        )  # what the user's umask gives; the writer may make the file anew
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as whole:
            os.fsync(whole.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Generator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(
            f"cannot write {str(path)!r} ({reason}): choose a folder that exists, has room, and that you may write to"
        ) from error
