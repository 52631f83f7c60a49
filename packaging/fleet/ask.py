"""Asks the queries of this folder, and prints the answers as JSON: {name: [{column: value}]}.

    ask.py duckdb FILES      # a glob, such as '/var/log/handshake/*.jsonl.gz'
    ask.py clickhouse FILES  # loads them into a ClickHouse within this process, in a temporary folder

`cargo xtask fleet` runs it, with the engines installed.
"""

import json
import pathlib
import re
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent


def statements(file, files):
    """The statements of a file, each with the name in the last comment before it, if that has one."""
    text = (HERE / file).read_text().replace("{files}", files)
    for statement in re.split(r";\n", text):
        if statement.strip():
            names = re.findall(r"^-- (\w+): ", statement, re.M)
            yield (names[-1] if names else None), statement


class DuckDb:
    def __init__(self, files):
        import duckdb

        self.connection = duckdb.connect()
        for _, statement in statements("duckdb.sql", files):
            self.connection.execute(statement)

    def ask(self, query):
        answer = self.connection.execute(query)
        columns = [column[0] for column in answer.description]
        return [dict(zip(columns, row)) for row in answer.fetchall()]


class ClickHouse:
    def __init__(self, files):
        from chdb import session

        self.folder = tempfile.TemporaryDirectory()
        self.session = session.Session(self.folder.name)
        for file in ["clickhouse.sql", "clickhouse-load.sql"]:
            for _, statement in statements(file, files):
                self.session.query(statement)

    def ask(self, query):
        settings = " SETTINGS output_format_json_quote_64bit_integers = 0"
        return json.loads(str(self.session.query(query + settings, "JSON")))["data"]


def main(engine, files):
    engine = {"duckdb": DuckDb, "clickhouse": ClickHouse}[engine](files)
    answers = {name: engine.ask(query) for name, query in statements("queries.sql", files)}
    json.dump(answers, sys.stdout, default=str)


if __name__ == "__main__":
    main(*sys.argv[1:])
