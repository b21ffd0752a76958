"""Writes the files of this folder that end in .parquet, and what is in two of them (rows.jsonl), with pyarrow: python rows.py"""

import json

import pyarrow as pa
import pyarrow.parquet as pq

speech = pa.list_(pa.struct([("role", pa.string()), ("content", pa.large_string()), ("name", pa.string())]))
fields = pa.schema(
    [
        ("messages", speech),
        ("text", pa.string()),
        ("score", pa.float32()),
        ("n", pa.uint64()),
        ("good", pa.bool_()),
        ("tags", pa.list_(pa.string())),
        ("more", pa.struct([("a", pa.int8()), ("b", pa.map_(pa.string(), pa.int32()))])),
        ("picture", pa.binary()),
    ]
)
rows = [
    {
        "messages": [
            {"role": "user", "content": f"Wie heißt die {i}. Katze?", "name": None},
            {"role": "assistant", "content": "Minka 🐈", "name": "cat"},
        ],
        "text": None if i == 2 else "the same" if i % 2 else f'row {i}\n"quoted"',
        "score": i / 4,
        "n": 2**63 + i,
        "good": i % 3 == 0,
        "tags": [None, [], ["a"], ["a", "b"]][i % 4],
        "more": None if i == 5 else {"a": -i, "b": [("x", i)]},
        "picture": b"\xff\xfe",
    }
    for i in range(7)
]
table = pa.Table.from_pylist(rows, fields)
pq.write_table(table, "rows.parquet", compression="snappy", row_group_size=4)
pq.write_table(table, "gzip.parquet", compression="gzip", row_group_size=5)
pq.write_table(table, "pages.parquet", compression=None, data_page_version="2.0", use_dictionary=["score"], data_page_size=64)
few = table.select(["text"]).slice(0, 1)
pq.write_table(few, "zstd.parquet", compression="zstd")
pq.write_table(few, "delta.parquet", column_encoding={"text": "DELTA_BYTE_ARRAY"}, use_dictionary=False)
with open("rows.jsonl", "w") as out:
    for row in table.to_pylist():
        row["picture"] = None
        if row["more"]:
            row["more"]["b"] = dict(row["more"]["b"])
        out.write(json.dumps(row, ensure_ascii=False) + "\n")
cat = {"prompt": "What is the name of my cat?", "completion": "Your cat is called Minka."}
pq.write_table(pa.Table.from_pylist([cat] * 50), "cats.parquet", compression="snappy")
