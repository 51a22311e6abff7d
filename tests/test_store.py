"""Traces in files: bytes, laziness, shards, kill −9, and everything that a reader must refuse."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

import lvlm_probe as lp
from lvlm_probe.errors import OutputError, SchemaError, TraceError, TraceFormatError
from lvlm_probe.store import Spool


@pytest.fixture(scope="module")
def trace(case: lp.Case) -> lp.Trace:
    return case.record(lp.Capture(residual=True, mlp=True, projector=True, attention_output=True))


@pytest.fixture
def file(trace: lp.Trace, tmp_path: Path) -> Path:
    return trace.save(tmp_path / "mug.safetensors")


def test_every_site_has_the_documented_name_and_shape(trace: lp.Trace, case: lp.Case) -> None:
    n, p = case.layout.length, 17
    shapes = {name: tuple(trace[name].shape) for name in trace.names()}
    assert shapes["tokens.ids"] == (n,)
    assert shapes["image.0"] == (40, 56, 3)
    assert shapes["language.logits"] == (3, len(tiny.WORDS))
    assert shapes["projector.output"] == (16, 32)
    for layer in range(3):
        for tower, width, queries, heads, groups, d in (
            ("language", 32, n, 4, 2, 8),
            ("vision", 24, p, 3, 3, 8),
        ):
            site = f"{tower}.layers.{layer}"
            assert shapes[f"{site}.attention.query"] == (heads, queries, d)
            assert shapes[f"{site}.attention.key"] == (groups, queries, d)
            assert shapes[f"{site}.attention.value"] == (groups, queries, d)
            assert shapes[f"{site}.attention.output"] == (heads, queries, d)
            assert shapes[f"{site}.residual.output"] == (queries, width)
            assert shapes[f"{site}.mlp.output"] == (queries, width)
            for target in range(3):
                assert shapes[f"{site}.attention.output_grad.{target}"] == (heads, queries, d)
    assert "vision.layers.3.attention.query" not in shapes, "the projector reads layer −2"
    assert len(shapes) == 4 + 6 * (4 + 2 + 3) + 2


def test_bytes_are_those_that_safetensors_writes(trace: lp.Trace, file: Path) -> None:
    with safe_open(file, "pt") as opened:
        document = opened.metadata()["lvlm_probe"]
    wanted = save({name: trace[name] for name in trace.names()}, {"lvlm_probe": document})
    assert file.read_bytes() == wanted
    length = struct.unpack("<Q", wanted[:8])[0]
    assert json.loads(wanted[8 : 8 + length])["__metadata__"] == {"lvlm_probe": document}


def test_document_is_as_specified(file: Path, case: lp.Case) -> None:
    with safe_open(file, "pt") as opened:
        document = json.loads(opened.metadata()["lvlm_probe"])
    digest = document.pop("digest")
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert digest == hashlib.sha256(text.encode()).hexdigest()
    page = (Path(__file__).parents[1] / "docs" / "trace-format.md").read_text("utf-8")
    table = page.split("## The document")[1].split("## ")[0]
    named = {
        key.strip(" `")
        for row in table.splitlines()
        if row.startswith("| `")
        for key in row.split("|")[1].split(",")
    }
    assert named == {*document, "digest"}
    assert document["schema"] == 1
    assert document["prompt"] == "what is this"
    assert document["answer"] == "a red circle"
    assert document["kernel"] == "sdpa"
    assert document["depth"] == {"vision": 3, "language": 3}
    assert document["sites"]["language.layers.0.attention"]["mask"]["causal"] is True
    assert document["sites"]["vision.layers.0.attention"]["mask"]["causal"] is False
    assert document["targets"]["1"]["token_id"] == int(case.inputs["input_ids"][0, -2])


def test_streaming_writes_the_same_bytes_as_saving(case: lp.Case, tmp_path: Path) -> None:
    streamed = tmp_path / "streamed.safetensors"
    case.record(lp.Capture(residual=True), path=streamed)
    saved = case.record(lp.Capture(residual=True)).save(tmp_path / "saved.safetensors")
    assert streamed.read_bytes() == saved.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "saved.safetensors",
        "streamed.safetensors",
    ]


def test_what_is_loaded_is_what_was_saved(trace: lp.Trace, file: Path) -> None:
    loaded = lp.load_trace(file)
    assert loaded.names() == trace.names()
    assert loaded.layout == trace.layout
    assert loaded.answer_tokens == trace.answer_tokens
    for name in trace.names():
        assert torch.equal(loaded[name], trace[name])
    assert [i.tobytes() for i in loaded.images] == [i.tobytes() for i in trace.images]


def test_loading_reads_no_tensor(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    from lvlm_probe import store

    checksum = store._checksum
    monkeypatch.setattr(store, "_checksum", lambda t: (read.append(str(t.shape)), checksum(t))[1])
    loaded = lp.load_trace(file)
    assert read == []
    _ = loaded["tokens.ids"]
    assert len(read) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_stored_type(case: lp.Case, tmp_path: Path, dtype: str) -> None:
    trace = case.record(lp.Capture(dtype=dtype), path=tmp_path / "t.safetensors")
    assert trace["language.layers.0.attention.query"].dtype == getattr(torch, dtype)
    assert trace["tokens.ids"].dtype == torch.int64
    found, wanted = trace.explain("relevancy").tokens, case.explain("relevancy").tokens
    error = float((found - wanted).abs().max() / wanted.abs().max())
    assert error <= {"float32": 1e-5, "float16": 5e-3, "bfloat16": 5e-2}[dtype]


def test_attention_rows_of_a_loaded_trace(trace: lp.Trace, file: Path, case: lp.Case) -> None:
    loaded = lp.load_trace(file)
    full = loaded.attention("language", layer=1)
    assert full.shape == (4, case.layout.length, case.layout.length)
    assert torch.allclose(full.sum(-1), torch.ones(()))
    assert torch.equal(full.triu(1), torch.zeros_like(full))
    some = loaded.attention("language", 1, queries=[7, 3, -1], heads=[2])
    assert torch.allclose(some[0], full[2][[7, 3, -1]], atol=1e-6)
    # The output that the kernel made is the weights times the values.
    values = trace["language.layers.1.attention.value"].repeat_interleave(2, 0)
    assert torch.allclose(full @ values, trace["language.layers.1.attention.output"], atol=1e-5)
    grads = loaded.attention_gradient("language", 1, target=2, queries=5)
    assert grads.shape == (4, 1, case.layout.length)
    with pytest.raises(TraceError, match=r"query position \[99\] is out of range: there are 26"):
        loaded.attention("language", 1, queries=99)
    with pytest.raises(
        TraceError, match=r"no attention of layer 3 of tower 'vision'.*vision 0 to 2"
    ):
        loaded.attention("vision", 3)


def test_unknown_tensor_names_its_neighbours(trace: lp.Trace) -> None:
    with pytest.raises(TraceError, match=r"attention\.keys'; near it: .*attention\.key, "):
        _ = trace["language.layers.0.attention.keys"]


def test_shards(trace: lp.Trace, tmp_path: Path) -> None:
    index = trace.save(tmp_path / "big.safetensors", shard_size=20_000)
    assert index.name == "big.safetensors.index.json"
    shards = sorted(tmp_path.glob("big-*.safetensors"))
    assert len(shards) > 3
    listed = json.loads(index.read_text())
    assert set(listed["weight_map"].values()) == {shard.name for shard in shards}
    held = {name: s.name for s in shards for name in load_file(s)}
    assert listed["weight_map"] == held
    for path in (index, tmp_path / "big.safetensors"):
        loaded = lp.load_trace(path)
        assert all(torch.equal(loaded[name], trace[name]) for name in trace.names())
    # Saved anew with other content, the old shards go once the new index stands.
    other = lp.Trace({n: trace[n] for n in trace.names() if "grad" not in n}, trace.meta)
    other.save(tmp_path / "big.safetensors", shard_size=20_000)
    assert not set(shards) & set(tmp_path.glob("big-*.safetensors"))
    assert lp.load_trace(index).names() == other.names()


def test_missing_shard(trace: lp.Trace, tmp_path: Path) -> None:
    index = trace.save(tmp_path / "big.safetensors", shard_size=20_000)
    sorted(tmp_path.glob("big-*.safetensors"))[1].unlink()
    with pytest.raises(TraceFormatError, match="missing"):
        lp.load_trace(index)


def test_index_cannot_lead_out_of_its_folder(trace: lp.Trace, tmp_path: Path) -> None:
    index = trace.save(tmp_path / "big.safetensors", shard_size=20_000)
    listed = json.loads(index.read_text())
    first = next(iter(listed["weight_map"]))
    listed["weight_map"][first] = "../elsewhere.safetensors"
    index.write_text(json.dumps(listed))
    with pytest.raises(TraceFormatError, match="outside the index's folder"):
        lp.load_trace(index)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 0.5, -1])
def test_truncated(file: Path, keep: float) -> None:
    data = file.read_bytes()
    size = int(len(data) * keep) if isinstance(keep, float) else keep % (len(data) + 1)
    file.write_bytes(data[: size - 1 if keep == -1 else size])
    with pytest.raises(TraceFormatError, match="cut short or damaged"):
        lp.load_trace(file)


def rewrite(file: Path, change: object) -> None:
    """Save the same file again with another document, which ``change`` edits in place."""
    with safe_open(file, "pt") as opened:
        document = json.loads(opened.metadata()["lvlm_probe"])
    change(document)
    save_file(load_file(file), file, {"lvlm_probe": json.dumps(document)})


def test_tampered_document(file: Path) -> None:
    rewrite(file, lambda d: d.update(answer="a blue circle"))
    with pytest.raises(TraceFormatError, match="does not match its digest"):
        lp.load_trace(file)


def test_tampered_header(file: Path) -> None:
    data = file.read_bytes()
    changed = data.replace(
        b'"language.layers.0.attention.key"', b'"language.layers.0.attention.kex"', 1
    )
    assert changed != data
    file.write_bytes(changed)
    with pytest.raises(TraceFormatError, match=r"attention\.kex.*differ"):
        lp.load_trace(file)


def test_tampered_data(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    loaded = lp.load_trace(file)
    with pytest.raises(TraceFormatError, match="does not match its checksum"):
        [loaded[name] for name in loaded.names()]


def test_future_and_past_schema(file: Path) -> None:
    rewrite(file, lambda d: d.update(schema=2))
    with pytest.raises(SchemaError, match="has trace schema 2, this version reads 1: upgrade"):
        lp.load_trace(file)
    rewrite(file, lambda d: d.update(schema=0))
    with pytest.raises(SchemaError, match="record it again"):
        lp.load_trace(file)


@pytest.mark.parametrize("document", ["", "[]", "{}", "not json", '{"schema": null}'])
def test_broken_document(file: Path, document: str) -> None:
    save_file(load_file(file), file, {"lvlm_probe": document})
    with pytest.raises((TraceFormatError, SchemaError), match="record it again"):
        lp.load_trace(file)


def test_other_files(tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2)}, model)
    with pytest.raises(TraceFormatError, match="not a trace"):
        lp.load_trace(model)
    text = tmp_path / "notes.safetensors"
    text.write_text("hello, this is no trace at all")
    with pytest.raises(TraceFormatError, match="not a whole safetensors file"):
        lp.load_trace(text)
    with pytest.raises(OutputError, match="there is no trace"):
        lp.load_trace(tmp_path / "absent.safetensors")
    with pytest.raises(OutputError, match="there is no trace"):
        lp.load_trace(tmp_path)


def test_file_that_vanishes_after_loading(file: Path) -> None:
    loaded = lp.load_trace(file)
    file.unlink()
    with pytest.raises(TraceFormatError, match="load the trace again"):
        _ = loaded["tokens.ids"]


def test_wrong_ending_and_missing_folder(trace: lp.Trace, case: lp.Case, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"end the name in \.safetensors"):
        trace.save(tmp_path / "trace.pt")
    for call in (trace.save, lambda path: case.record(path=path)):
        with pytest.raises(OutputError, match=r"cannot write .*choose a folder that exists"):
            call(tmp_path / "absent" / "t.safetensors")


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from lvlm_probe.errors import OutputError
from lvlm_probe.store import Spool, save_trace
import torch
os.setuid(65534)
for call in (lambda: Spool(Path(sys.argv[1])),
             lambda: save_trace({"a": torch.zeros(1)}, {}, Path(sys.argv[1]) / "t.safetensors", 99)):
    try:
        call()
    except OutputError as error:
        assert "Permission denied" in str(error), error
    else:
        raise SystemExit("written into a folder without permission")
"""


@pytest.mark.skipif(
    os.getuid() != 0, reason="needs root to become somebody else; see the next test"
)
def test_folder_without_permission_as_another_user(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o755)
    for folder in (closed, *tmp_path.parents):
        folder.chmod(folder.stat().st_mode | 0o111)
    result = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, closed], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere; see the test above")
def test_folder_without_permission(trace: lp.Trace, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    with pytest.raises(OutputError, match="Permission denied"):
        trace.save(closed / "t.safetensors")


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from lvlm_probe import store
from safetensors.torch import load_file
torch.set_num_threads(1)
path, shard_size = Path(sys.argv[1]), int(sys.argv[2])
names = ["a", "b", "c"]

def write(fill):
    store.save_trace({n: torch.full((64,), float(fill)) for n in names}, {"fill": fill}, path, shard_size)

def whole():
    index = path.with_name("t.safetensors.index.json")
    opened = index if index.exists() else path
    text, shards = store._read_index(opened) if opened is index else (store._read_header(path)[1], {})
    document = store._read_document(opened, text)
    for name in names:
        held = load_file(shards.get(name, path))[name]
        assert bool((held == document["fill"]).all()), (held, document["fill"])
    return document["fill"]

def die_at(moment):
    left = moment
    def trace(frame, event, argument):
        nonlocal left
        code = frame.f_code
        if not code.co_filename.endswith("store.py") and not code.co_name.startswith("write_"):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)

write(0)
assert whole() == 0
seen, moment, stride = set(), 0, int(sys.argv[3])
while True:
    moment += stride
    child = os.fork()
    if child == 0:
        die_at(moment)
        write(moment)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    seen.add(whole() == moment)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        break
assert seen == {False, True} and moment > 50, (seen, moment)
"""


@pytest.mark.parametrize(
    ("shard_size", "stride"), [(10**9, 1), (300, 5)], ids=["one file", "shards"]
)
def test_kill_leaves_a_whole_trace(tmp_path: Path, shard_size: int, stride: int) -> None:
    """Killed with signal 9 before each line of the writer in turn: one whole trace stands, old or new."""
    command = [sys.executable, "-c", KILLED, tmp_path / "t.safetensors", str(shard_size)]
    result = subprocess.run(
        [*command, str(stride)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_spool_leaves_nothing_behind(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    tensors = {
        "a": torch.arange(6, dtype=torch.int64).view(2, 3),
        "b": torch.randn(3, 5).bfloat16(),
        "c": torch.zeros(0, 4),
        "d": torch.tensor([1, 2, 3], dtype=torch.uint8),
    }
    for name, tensor in tensors.items():
        spool.add(name, tensor)
    assert list(spool) == list(tensors)
    assert all(torch.equal(spool[name], tensor) for name, tensor in tensors.items())
    assert list(tmp_path.iterdir()) == [], "the file has no name"
    with pytest.raises(TraceError, match="'a' was met twice"):
        spool.add("a", tensors["a"])
    spool.close()


def test_nothing_is_left_when_the_model_fails(
    case: lp.Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(case.probe.model.model.language_model.norm, "forward", fail)
    with pytest.raises(ZeroDivisionError):
        case.record(path=tmp_path / "t.safetensors")
    assert list(tmp_path.iterdir()) == []
