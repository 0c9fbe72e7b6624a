"""From files, folders, patterns and the Hub to rows; what a user reads about rows and files that cannot be read."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from tunecli.config.data import SampleBy, SourceConfig
from tunecli.config.data_files import has_splits
from tunecli.config.errors import UserError
from tunecli.data.hub import _hub_error, _load_hub
from tunecli.data.readers import arrow, json_rows, opened
from tunecli.data.rows import BadRow, Row
from tunecli.data.source import BUILTIN, files, fingerprint, read_rows

ROWS = [{"text": "a"}, {"text": "好 😀"}, {"text": "c"}]


@pytest.fixture(autouse=True)
def inside_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def rows(path: str, content: bytes | None = None, sample_by: str = "line", **options) -> list[Row | BadRow]:
    if content is not None:
        Path(path).write_bytes(content)
    return list(read_rows(SourceConfig(path=path, **options), SampleBy(sample_by)))


def values(path: str, **options) -> list[dict]:
    found = rows(path, **options)
    assert {type(row) for row in found} <= {Row}
    return [row.values for row in found]


def hash_of(path: str, sample_by: str = "line") -> str:
    return fingerprint(SourceConfig(path=path), SampleBy(sample_by))


def json_lines(content: list[dict] = ROWS) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content).encode()


def arrow_bytes(write: Callable, content: list[dict] = ROWS) -> bytes:
    sink = io.BytesIO()
    write(pyarrow.Table.from_pylist(content), sink)
    return sink.getvalue()


def arrow_stream(table: pyarrow.Table, sink: io.BytesIO) -> None:
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def feather_1(table: pyarrow.Table, sink: io.BytesIO) -> None:
    pyarrow.feather.write_feather(table, sink, version=1)


CONTENT: dict[str, bytes] = {
    "jsonl": json_lines(),
    "ndjson": json_lines(),
    "json": json.dumps(ROWS).encode(),
    "csv": "text\na\n好 😀\nc\n".encode(),
    "tsv": "text\na\n好 😀\nc\n".encode(),
    "txt": "a\n好 😀\nc\n".encode(),
    "text": "a\r\n好 😀\r\nc".encode(),
    "md": "a\n\n好 😀\n\nc".encode(),
    "parquet": arrow_bytes(pyarrow.parquet.write_table),
    "arrow": arrow_bytes(arrow_stream),
    "feather": arrow_bytes(pyarrow.feather.write_feather),
}


def by_pyarrow(content: bytes, codec: str) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, codec) as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def zipped(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return sink.getvalue()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda content: by_pyarrow(content, "zstd"),
    "lz4": lambda content: by_pyarrow(content, "lz4"),
}


@pytest.mark.parametrize("suffix", CONTENT)
def test_every_kind_of_file_gives_the_same_rows(suffix):
    assert [row.values for row in rows(f"a.{suffix}", CONTENT[suffix])] == ROWS
    assert values(f"./a.{suffix}", max_samples=2) == ROWS[:2]


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "txt", "parquet", "arrow"])
def test_compressed_files_give_the_same_rows(suffix, compression):
    name = f"a.{suffix}.{compression}"
    assert [row.values for row in rows(name, COMPRESS[compression](CONTENT[suffix]))] == ROWS
    assert rows(name)[0].source == name


@pytest.mark.parametrize("name", ["a.zip", "a.jsonl.zip"])
def test_a_zip_is_read_if_it_holds_one_data_file(name):
    members = {"README": b"x", "data/a.jsonl": CONTENT["jsonl"], "__MACOSX/data/._a.jsonl": b"\0"}
    assert [row.values for row in rows(name, zipped(members))] == ROWS


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "txt"])
def test_a_byte_order_mark_is_no_content(suffix):
    assert [row.values for row in rows(f"a.{suffix}", b"\xef\xbb\xbf" + CONTENT[suffix])] == ROWS
    assert [row.values for row in rows(f"a.{suffix}.gz", gzip.compress(b"\xef\xbb\xbf" + CONTENT[suffix]))] == ROWS


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "txt"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_named(suffix, encoding):
    with pytest.raises(UserError, match=f"^a.{suffix}: is UTF-16, not UTF-8\n  fix: save it as UTF-8"):
        rows(f"a.{suffix}", ("\ufeff" + CONTENT[suffix].decode()).encode(encoding))


def test_json_lines_keep_their_line_numbers_and_odd_line_breaks():
    content = '\ufeff{"text": "a\u2028b\u0085c"}\n\n{"text": "好 😀"}\r\n{"text": "\\ud83d\\ude00"}'
    assert rows("a.jsonl", content.encode()) == [
        Row("a.jsonl", 1, {"text": "a\u2028b\u0085c"}),
        Row("a.jsonl", 3, {"text": "好 😀"}),
        Row("a.jsonl", 4, {"text": "😀"}),
    ]


def test_json_list_is_numbered_by_elements():
    assert rows("a.json", b' [ {"text": "a"},\n\n {"text": "b"}\n]\n') == [
        Row("a.json", 1, {"text": "a"}),
        Row("a.json", 2, {"text": "b"}),
    ]
    assert rows("a.json", b"[ ]") == []


def test_json_may_hold_one_object_per_line():
    expected = [Row("a.json", 2, {"text": "a"}), Row("a.json", 3, {"text": "b"})]
    assert rows("a.json", b'\n{"text": "a"}\n{"text": "b"}') == expected


def test_numbers_that_python_accepts_are_accepted():
    found = rows("a.jsonl", b'{"score": NaN, "text": "a"}\n{"score": -Infinity, "text": "b"}')
    assert [row.values["text"] for row in found] == ["a", "b"]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 50])
def test_a_json_list_is_the_same_wherever_it_is_cut_into_blocks(block, monkeypatch):
    content = [
        {"text": '好\\u "x"], [😀', "n": [1.5e-3, True, None, -12]},
        {"": {"a": "\u2028"}},
        {"text": "\n" * 40},
    ]
    text = json.dumps(content, ensure_ascii=False, indent=1)
    monkeypatch.setattr(json_rows, "BLOCK_BYTES", block)
    assert [row.values for row in rows("a.json", text.encode())] == content
    assert [row.values for row in rows("a.json", json.dumps(content).encode())] == content
    (bad,) = rows("a.json", b'[\n {"text": "a",\n  "b" 1}, ' + b" " * 60 + b"{}]")
    assert "not JSON: Expecting ':' delimiter at line 3 column 7" in bad.what


def test_csv_rows_are_numbered_as_a_spreadsheet_does():
    content = b'q, a \r\n"say ""hi"",\r\nplease",hi\r\n\r\nq2,\r\n'
    assert rows("a.csv", content) == [
        Row("a.csv", 2, {"q": 'say "hi",\r\nplease', "a": "hi"}),
        Row("a.csv", 4, {"q": "q2", "a": ""}),
    ]


def test_csv_may_have_semicolons_and_unnamed_columns():
    assert rows("a.csv", b"q;a\n1,5;b\n") == [Row("a.csv", 2, {"q": "1,5", "a": "b"})]
    assert rows("b.csv", b",q,a\n0,x,y\n") == [Row("b.csv", 2, {"q": "x", "a": "y"})]
    assert rows("c.csv", b"q\n") == []


TEXT = b"one\ntwo\r\n\n  \nthree\n\n"


@pytest.mark.parametrize(
    ("sample_by", "expected"),
    [
        ("line", [(1, "one"), (2, "two"), (5, "three")]),
        ("paragraph", [(1, "one\ntwo"), (5, "three")]),
        ("document", [(1, "one\ntwo\n\n  \nthree")]),
    ],
)
def test_text_is_read_by_lines_paragraphs_or_whole(sample_by, expected):
    found = rows("a.txt", TEXT, sample_by)
    assert [(row.number, row.values["text"]) for row in found] == expected
    assert rows("empty.txt", b"\n \n", sample_by) == []


def test_arrow_values_are_plain_python_values():
    content = [{"n": 1, "x": 0.5, "b": True, "none": None, "turns": [{"role": "user", "content": "好"}]}]
    for name, write in (("a.parquet", pyarrow.parquet.write_table), ("a.arrow", arrow_stream)):
        (found,) = rows(name, arrow_bytes(write, content))
        assert found == Row(name, 1, content[0])
        assert type(found.values["n"]) is int and type(found.values["turns"][0]) is dict


LONG = b"x" * 300
DEEP = b"[" * 100_000
BAD_ROWS: list[tuple[str, bytes, str, int]] = [
    ("a.jsonl", b'{"t": "a"}\n{"t": }\n{"t": "c"}', "not JSON: .*column 7\n.*double quotes", 2),
    ("a.jsonl", b'{"t": "a"}\n{"t": "a"\n{"t": "c"}', "not JSON: .*", 2),
    ("a.jsonl", b'{"t": "a"}\n[1]\n{"t": "c"}', "is a list, not an object\n.*column", 2),
    ("a.jsonl", b'{"t": "a"}\nnull\n{"t": "c"}', "is null, not an object", 2),
    (
        "a.jsonl",
        b'{"t": "a"}\n{"t": "\xe9"}\n{"t": "c"}',
        "not UTF-8 .*0xe9 at position 7.*\n.*save the file as UTF-8",
        2,
    ),
    ("a.jsonl", b'{"t": "a"}\n{"t": "\\ud83d"}\n{"t": "c"}', "holds half of a surrogate pair", 2),
    ("a.jsonl", b'{"t": "a"}\n{"t": "\xed\xa0\x80"}\n{"t": "c"}', "not UTF-8 .*0xed", 2),
    ("a.jsonl", b'{"t": "a"}\n{"t": "' + LONG + b'"}\n{"t": "c"}', "longer than .* MiB\n.*break", 2),
    ("a.jsonl", b'{"t": "a"}\n\0\0\0\0\n{"t": "c"}', "holds NUL bytes\n?.*", 2),
    ("deep.jsonl", b'{"t": "a"}\n{"t": ' + DEEP + b'\n{"t": "c"}', "nested too deeply", 2),
    ("deep.jsonl", b'{"t": "a"}\n{"t": ' + b"1" * 5000 + b'}\n{"t": "c"}', "not readable: .*digit", 2),
    ("a.json", b'[{"t": "a"}, 3, {"t": "c"}]', "is a number, not an object", 2),
    ("a.json", b'[{"t": "a"}, {"t": "\xe9"}, {"t": "c"}]', "not UTF-8 .*0xe9", 2),
    ("a.json", b'[{"t": "a"}, {"t": "\\udc00"}, {"t": "c"}]', "holds half of a surrogate pair", 2),
    ("a.json", b'{"t": "a"}\n{"t": }\n{"t": "c"}', "not JSON: .*column 7", 2),
    ("a.csv", b"t,u\na,a\nb\nc,c\n", "has 1 fields, and the header 2\n.*quotes", 3),
    ("a.csv", b"t,u\na,a\nb,b,b\nc,c\n", "has 3 fields, and the header 2", 3),
    ("a.csv", b't,u\na,a\n"b" b,b\nc,c\n', "not CSV: .*\n.*quote", 3),
    ("a.csv", b't,u\na,a\n"\n\xe9",b\nc,c\n', "not UTF-8 .*0xe9", 3),
    ("a.csv", b"t,u\na,a\nb\0,b\nc,c\n", "holds NUL bytes", 3),
    ("a.csv", b"t,u\na,a\n" + LONG + b",b\nc,c\n", "longer than .* MiB", 3),
    ("a.tsv", b"t\tu\na\ta\nb\nc\tc\n", r"has 1 fields, and the header 2\n.* a tab ", 3),
    ("a.txt", b"a\n\xff\nc\n", "not UTF-8 .*0xff", 2),
    ("a.txt", b"a\n\0\nc\n", "holds NUL bytes", 2),
    ("a.txt", b"a\n" + LONG + b"\nc\n", "longer than", 2),
]


@pytest.mark.parametrize(("name", "content", "message", "number"), BAD_ROWS)
def test_a_bad_row_is_named_and_the_next_one_read(name, content, message, number, monkeypatch):
    if not name.startswith("deep"):
        monkeypatch.setattr(opened, "MAX_ROW_BYTES", 256)
    before, bad, after = rows(name, content)
    assert isinstance(before, Row) and isinstance(after, Row)
    assert set(before.values.values()) == {"a"} and set(after.values.values()) == {"c"}
    assert isinstance(bad, BadRow) and (bad.source, bad.number) == (name, number)
    assert re.match(message, f"{bad.what}\n  fix: {bad.fix}") and bad.fix
    assert after.number == number + 1


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def several_pages() -> bytes:
    """A parquet file that is damaged behind its first row group."""
    table = pyarrow.Table.from_pylist([{"t": str(i)} for i in range(200)])
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink, row_group_size=100, use_dictionary=False, compression="gzip")
    content = bytearray(sink.getvalue())
    start = pyarrow.parquet.ParquetFile(sink).metadata.row_group(1).column(0).data_page_offset
    content[start : start + 60] = b"\xff" * 60
    return bytes(content)


MANY = json_lines([{"t": str(i * 7919 % 100_003)} for i in range(20_000)])
NUMBERS = b"".join(b"%d\n" % (i * 7919 % 1_000_003) for i in range(500_000))
NOT_READ = "the rest of (it|the file) was not read"
ENDS: list[tuple[str, bytes, str, int]] = [
    (
        "a.json",
        b'[{"t": "a"}, {"t": x}, {"t": "c"}]',
        f"not JSON: Expecting value at line 1 column 20; {NOT_READ}",
        1,
    ),
    ("a.json", b'[{"t": "a"} {"t": "b"}]' + b" " * 20, f"not JSON: Expecting ',' .*; {NOT_READ}", 0),
    ("a.json", b'[{"t": "a"}, {"t": "b"', f"the file ends within the list; {NOT_READ}", 1),
    ("a.json", b'[{"t": "a"},', f"the file ends within the list; {NOT_READ}", 1),
    ("a.json", b'[{"t": "a"}, {"t": "b}]', f"the file ends within the list; {NOT_READ}", 1),
    ("a.json", b'[{"t": "a"}]\n[{"t": "b"}]', f"'\\[' follows the end of the list; {NOT_READ}", 1),
    ("a.json", b'[{"t": "a"}, {"t": ' + DEEP, f"nested too deeply; {NOT_READ}", 1),
    ("a.csv", b't,u\na,a\n"b,b\nc,c\n', "open to the end of the file", 1),
    ("a.jsonl.gz", half(gzip.compress(MANY)), f"damaged from here on .*{NOT_READ}", 1000),
    ("a.jsonl.bz2", half(bz2.compress(MANY, 1)), f"damaged from here on .*{NOT_READ}", 1000),
    ("a.jsonl.xz", half(lzma.compress(MANY)), f"damaged from here on .*{NOT_READ}", 1000),
    (
        "a.csv.zst",
        half(by_pyarrow(b"t\n" + NUMBERS, "zstd")),
        f"damaged from here .*{NOT_READ}",
        1000,
    ),
    ("a.txt.gz", gzip.compress(MANY) + b"garbage", f"damaged from here on .*{NOT_READ}", 20_000),
    ("a.parquet", several_pages(), f"damaged from here on .*{NOT_READ}", 100),
    ("a.arrow", half(arrow_bytes(arrow_stream, [{"t": "x" * 99}] * 9)), f"damaged from here on .*{NOT_READ}", 2),
]


@pytest.mark.parametrize(("name", "content", "message", "least"), ENDS, ids=range(len(ENDS)))
def test_rows_before_the_damage_are_read_and_the_place_is_named(name, content, message, least):
    *before, bad = rows(name, content)
    assert len(before) >= least and all(isinstance(row, Row) for row in before)
    assert isinstance(bad, BadRow) and bad.number == (before[-1].number if before else 0) + 1
    assert re.search(message, bad.what) and bad.fix


def test_parquet_bytes_that_are_not_utf_8_spoil_their_row_only(monkeypatch):
    monkeypatch.setattr(arrow, "BATCH_ROWS", 2)
    column = pyarrow.array([b"a", b"\xff", b"c"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"t": column}), "a.parquet")
    before, bad, after = rows("a.parquet")
    assert (before, after) == (Row("a.parquet", 1, {"t": "a"}), Row("a.parquet", 3, {"t": "c"}))
    assert isinstance(bad, BadRow) and bad.number == 2 and "not UTF-8" in bad.what


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'{"data": [\n{"text": "a"}]}', "a.json: holds neither a list of objects nor one object per line"),
        ("a.json", b"3", "a.json: holds neither"),
        ("a.json", b"", "a.json: is empty"),
        ("a.csv", b"", "a.csv: has no header"),
        ("a.csv", b"\na,b\n", "a.csv: has no header"),
        ("a.csv", b"a,b,a\n", "a.csv: has two columns named 'a'"),
        ("a.csv", b"\xff,b\n", "a.csv: the header cannot be read: not UTF-8"),
        ("a.csv", b"a,b\rc,d\r", "a.csv: .*old Macs"),
        ("a.jsonl.gz", b"not compressed", "a.jsonl.gz: is damaged, or not what its name says .*[Gg]zip"),
        ("a.jsonl.bz2", b"not compressed", "a.jsonl.bz2: is damaged"),
        ("a.jsonl.xz", b"not compressed", "a.jsonl.xz: is damaged"),
        ("a.jsonl.zst", b"not compressed", "a.jsonl.zst: is damaged"),
        ("a.zip", b"not compressed", "a.zip: is damaged, or no .zip file"),
        ("a.zip", zipped({"a.csv": b"", "b.csv": b""}), r"a.zip: holds 2 data files \(a.csv, b.csv\)(.|\n)*unpack"),
        ("a.zip", zipped({"a.png": b""}), "a.zip: holds no data file"),
        ("a.parquet", b"PAR1 or not", "a.parquet: is damaged, or no .parquet file"),
        ("a.arrow", b"no arrow at all", "a.arrow: is damaged, or no .arrow file"),
        ("a.feather", arrow_bytes(feather_1), "a.feather: is of version 1"),
        ("a.xlsx", b"PK", "a.xlsx: cannot read a .xlsx file\n.*jsonl"),
        ("a.tar.gz", b"", "a.tar.gz: cannot read a .gz file\n.*jsonl"),
        ("train", b"", "train: cannot read a file without a suffix\n.*jsonl"),
    ],
)
def test_a_file_that_cannot_be_read_at_all_is_named(name, content, message):
    with pytest.raises(UserError, match=f"^{message}") as caught:
        rows(name, content)
    assert "\n  fix: " in str(caught.value)


def test_equal_column_names_in_parquet_are_refused():
    table = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["t", "t"])
    pyarrow.parquet.write_table(table, "a.parquet")
    with pytest.raises(UserError, match="a.parquet: has two columns named 't'"):
        rows("a.parquet")


def test_max_samples_counts_bad_rows_and_reads_no_further():
    content = b'{"text": "a"}\nnot json\n{"text": "b"}\n'
    assert [type(row) for row in rows("a.jsonl", content, max_samples=2)] == [Row, BadRow]
    assert len(rows("a.jsonl.gz", half(gzip.compress(MANY)), max_samples=5)) == 5
    Path("b.jsonl").symlink_to("nowhere")  # opening it would fail
    assert len(rows("*.jsonl", max_samples=3)) == 3


@pytest.mark.parametrize("name", ["big.jsonl", "big.json", "big.csv", "big.txt", "big.jsonl.gz"])
def test_memory_does_not_grow_with_the_file(name, monkeypatch):
    monkeypatch.setattr(opened, "MAX_ROW_BYTES", 1 << 20)
    row, head, between, tail = b'{"text": "' + b"x" * 1000 + b'"}', b"", b"\n", b""
    if name == "big.json":
        head, between, tail = b"[", b",\n", b"]"
    if name == "big.csv":
        row, head = b"x" * 1000, b"text\n"
    content = head + between.join([row] * 20_000) + tail
    Path(name).write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
    del content
    tracemalloc.start()
    count = sum(1 for _ in read_rows(SourceConfig(path=name), SampleBy.line))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 8 << 20


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_an_enormous_row_is_skipped_in_flat_memory(name, monkeypatch):
    monkeypatch.setattr(opened, "MAX_ROW_BYTES", 1 << 20)
    Path(name).write_bytes(b"t\n" + b"x" * (30 << 20) + b"\n")
    tracemalloc.start()
    found = list(read_rows(SourceConfig(path=name), SampleBy.line))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "longer than 1 MiB" in found[-1].what
    assert peak < 8 << 20


def test_a_long_paragraph_or_document_is_a_bad_row(monkeypatch):
    monkeypatch.setattr(opened, "MAX_ROW_BYTES", 8)
    content = b"one\n\ntwo\ntoo\nlong\n\nthree\n"
    first, bad, last = rows("a.txt", content, "paragraph")
    assert (bad.number, first.values, last.values) == (3, {"text": "one"}, {"text": "three"})
    assert "longer than" in bad.what and "sample_by=line" in bad.fix
    (bad,) = rows("a.txt", content, "document")
    assert isinstance(bad, BadRow) and bad.number == 1


def write_all(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(json_lines([{"text": name}]))


def test_a_folder_gives_all_its_data_files_in_order():
    write_all("d/b.jsonl", "d/a.ndjson", "d/deep/c.jsonl", "d/.hidden.jsonl", "d/.git/x.jsonl", "d/model.bin")
    write_all("d/README.md", "d/dataset_infos.json")
    assert [(row.source, row.number) for row in rows("./d/")] == [
        ("d/a.ndjson", 1),
        ("d/b.jsonl", 1),
        ("d/deep/c.jsonl", 1),
    ]
    assert files(SourceConfig(path="d")) == [Path("d/a.ndjson"), Path("d/b.jsonl"), Path("d/deep/c.jsonl")]


def test_a_folder_of_texts():
    write_all("d/b.md", "d/a.txt")
    assert [row.source for row in rows("d")] == ["d/a.txt", "d/b.md"]


def test_a_pattern_gives_the_files_that_match():
    write_all("d/b.jsonl", "d/a.jsonl", "d/deep/c.jsonl", "d/model.bin", "d/[x].jsonl")
    assert [row.source for row in rows("d/?.jsonl")] == ["d/a.jsonl", "d/b.jsonl"]
    assert len(rows("d/**/*.jsonl")) == 4
    assert len(rows("d/*")) == 3
    assert [row.source for row in rows("d/[x].jsonl")] == ["d/[x].jsonl"]


def test_home_is_found_and_shown_as_typed(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_all("a.jsonl")
    assert rows("~/a.jsonl")[0].source == "~/a.jsonl"
    assert rows("~/*.jsonl")[0].source == str(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("trian.jsonl", "trian.jsonl: no such file\n.*did you mean train.jsonl"),
        ("nowhere/train.csv", "no such file\n.*nowhere does not exist"),
        ("./train", "./train: no such file or folder\n.*did you mean train.jsonl"),
        ("builtin:smok", "builtin:smok: no such built-in(.|\n)*builtin:smoke"),
        ("empty", "empty: there is no data file in the folder\n.*.parquet"),
        ("*.csv", r"\*.csv: no data file matches\n.*pattern"),
        ("https://example.org/train.jsonl", "is an address on the web\n.*download"),
    ],
)
def test_missing_files_are_named_with_near_ones(path, message):
    write_all("train.jsonl")
    Path("empty").mkdir()
    with pytest.raises(UserError, match=message):
        rows(path)


def test_files_have_no_splits():
    write_all("a.jsonl")
    for path in ("a.jsonl", "builtin:smoke", "*.jsonl"):
        with pytest.raises(UserError, match="the split 'dev' is asked for(.|\n)*data.validation=FILE"):
            rows(path, split="dev")


def test_fingerprint_is_of_the_content_and_its_meaning():
    Path("a.jsonl").write_text("{}")
    Path("b.jsonl").write_text("{}")
    same = hash_of("a.jsonl")
    assert same == hash_of("b.jsonl") == hash_of("a.jsonl", "paragraph")
    Path("b.jsonl").write_text("{ }")
    Path("c.txt").write_text("{}")
    distinct = {hash_of(path) for path in ("a.jsonl", "b.jsonl", "c.txt", "*.jsonl")} | {hash_of("c.txt", "document")}
    assert len(distinct) == 5


def test_fingerprint_knows_where_files_end():
    write_all("d/a.txt", "e/a.txt")
    for name, content in {"d/a.txt": "ab", "d/b.txt": "c", "e/a.txt": "a", "e/b.txt": "bc"}.items():
        Path(name).write_text(content)
    assert hash_of("d") != hash_of("e")


def test_smoke_file_is_plain_json_lines():
    text = BUILTIN["builtin:smoke"].read_text(encoding="utf-8")
    assert all(list(json.loads(line)) == ["messages"] for line in text.splitlines())
    found = rows("builtin:smoke")
    assert 60 <= len(found) <= 70 and found[0].source == "builtin:smoke"
    assert "北京" in text and "😀" in text


def test_labels_come_by_their_names():
    names = datasets.ClassLabel(names=["negative", "positive"])
    tags = datasets.ClassLabel(names=["O", "B-X"])
    features = datasets.Features({"label": names, "tags": datasets.List(tags), "text": datasets.Value("string")})
    columns = {"label": [1, 0, -1], "tags": [[0, 1], [], [1]], "text": ["a", "b", "c"]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk("labelled")
    found = [(row.values["label"], row.values["tags"]) for row in rows("labelled")]
    assert found == [("positive", ["O", "B-X"]), ("negative", []), (-1, ["B-X"])]


def test_a_folder_that_datasets_saved(tmp_path):
    train, dev = datasets.Dataset.from_list(ROWS), datasets.Dataset.from_list(ROWS[:1])
    train.save_to_disk("one")
    datasets.DatasetDict({"train": train, "dev": dev}).save_to_disk("two")
    assert values("one") == values("two") == ROWS
    assert rows("two", split="dev") == [Row("two", 1, ROWS[0])]
    assert files(SourceConfig(path="two")) == []
    saved = [SourceConfig(path="two", split=split) for split in ("train", "dev")]
    assert len({fingerprint(source, SampleBy.line) for source in saved}) == 2
    for path in ("one", "two"):
        with pytest.raises(UserError, match=f"{path}: has no split 'test'\n.*it has: train"):
            rows(path, split="test")


@pytest.fixture
def hub(monkeypatch) -> list[tuple]:
    """What `datasets.load_dataset` is asked for."""
    asked: list[tuple] = []

    def load_dataset(path, name, split, revision, streaming):
        asked.append((path, name, split, revision, streaming))
        dataset = datasets.Dataset.from_list([*ROWS, {"text": split}])
        return dataset.to_iterable_dataset() if streaming else dataset

    _load_hub.cache_clear()
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_hub_set_is_read_with_split_subset_and_revision(hub):
    source = SourceConfig(path="org/set", subset="en", split="dev", revision="abc")
    expected = [Row("org/set", number, row) for number, row in enumerate([*ROWS, {"text": "dev"}], start=1)]
    assert list(read_rows(source, SampleBy.line)) == expected
    assert fingerprint(source, SampleBy.line).startswith("hub-")
    assert list(read_rows(source, SampleBy.line, streaming=True)) == expected
    assert hub == [("org/set", "en", "dev", "abc", streaming) for streaming in (False, True)]
    assert files(source) == []


def test_a_hub_set_that_breaks_while_it_streams_is_named(monkeypatch):
    def broken():
        yield {"text": "a"}
        raise ConnectionError("connection lost")

    broken_set = datasets.IterableDataset.from_generator(broken)
    _load_hub.cache_clear()
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: broken_set)
    with pytest.raises(UserError, match="data set org/set: .*connection lost"):
        list(read_rows(SourceConfig(path="org/set"), SampleBy.line, streaming=True))


def test_hub_errors_say_what_to_do():
    offline = _hub_error("org/set", ConnectionError("Couldn't reach 'org/set' on the Hub (LocalEntryNotFoundError)"))
    assert "cannot be reached" in str(offline) and "HF_HUB_OFFLINE" in str(offline)
    missing = _hub_error("org/set", datasets.exceptions.DatasetNotFoundError("Dataset 'org/set' doesn't exist"))
    assert "not on the Hub" in str(missing) and ".parquet" in str(missing)
    assert "data.split" in str(_hub_error("org/set", ValueError('Unknown split "dev".')))


def test_files_of_a_folder_are_told_apart_by_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("d/train-0.jsonl", "d/train-1.jsonl", "d/dev.jsonl", "d/test/1.jsonl", "d/more.jsonl"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(json.dumps({"text": name}) + "\n")

    def found(split: str) -> list[str]:
        return [row.source for row in read_rows(SourceConfig(path="d", split=split), SampleBy.line)]

    assert found("train") == ["d/more.jsonl", "d/train-0.jsonl", "d/train-1.jsonl"]
    assert found("validation") == found("dev") == ["d/dev.jsonl"]
    assert found("test") == ["d/test/1.jsonl"]
    assert has_splits("d")
    with pytest.raises(UserError, match="d: the folder has no split 'other'\n.*validation, train, test"):
        found("other")
