"""`async-task version`."""

from said import Run


def test_version_names_library_python_sqlalchemy_and_drivers(say: Run) -> None:
    lines = dict(line.split(maxsplit=1) for line in say("version").out.splitlines())
    assert set(lines) == {"async-task", "Python", "SQLAlchemy", "drivers"}
    assert "psycopg" in lines["drivers"]
    assert say("version", "--json").json["drivers"]["psycopg"]
