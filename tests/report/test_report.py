"""Tables, figures, provenance, and the files that they are written to."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from mpochain import MPOError
from mpochain.report import Column, markdown, provenance, text
from mpochain.report import figures as figures_module
from mpochain.report.figures import Series, draw
from mpochain.report.origin import origin
from mpochain.report.page import Page, Text
from mpochain.system.files import require_writable, write_bytes

COLUMNS = (Column("name", "model"), Column("size", "size", ","), Column("error", "error", ".2f"))
RECORDS = [{"name": "dense", "size": 12345, "error": None}, {"name": "χ=4", "size": 7, "error": 0.5}]


def test_columns_are_aligned():
    lines = text(COLUMNS, RECORDS).splitlines()
    assert lines[2] == "dense  12,345      -"
    assert lines[3] == "χ=4         7   0.50"
    page = markdown(COLUMNS, RECORDS).splitlines()
    assert len({len(line) for line in page}) == 1
    assert all(line.count("|") == 4 for line in page)


def test_markdown_cells_are_escaped():
    page = markdown(COLUMNS[:1], [{"name": "<|end|>"}]).splitlines()
    assert page[2] == r"| &lt;\|end\|> |"
    assert len({len(line) for line in page}) == 1


def test_provenance_names_what_a_published_figure_needs():
    record = provenance(threads=2, commit=True)
    assert record["threads"] == 2
    for key in ("commit", "torch", "numpy", "opt_einsum", "mpochain", "processor", "python"):
        assert key in record
    assert record["mpochain"] == "0.1.0"


def test_provenance_runs_git_only_on_request(monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command[0])
        raise OSError("no such program")

    monkeypatch.setattr("subprocess.run", run)
    assert "commit" not in provenance(threads=1)
    assert "git" not in commands
    assert provenance(threads=1, commit=True)["commit"] is None
    assert "git" in commands


def test_origin_of_records_with_and_without_a_commit():
    with_commit, without = {"commit": "0123456789abcdef", "threads": 1}, {"threads": 2}
    assert origin([with_commit, without]) == ("commit: 0123456789ab, not recorded", "threads: 1, 2")
    assert origin([without]) == ("threads: 2",)


def test_a_figure_is_drawn(tmp_path):
    series = [Series("a", [1, 10, 100], [1, 2, 3]), Series("b", [1, 10], [2, 2], line=False)]
    draw(tmp_path / "f.png", series, title="t", x="x", y="y", axes={"xscale": "log"})
    assert (tmp_path / "f.png").stat().st_size > 5000


@pytest.mark.parametrize("limits", [(22.5, 130), (37_000, 900_000), (0.05, 100), (51, 54.4), (0.0004, 0.0009)])
def test_logarithmic_axes_have_plain_numbers(tmp_path, monkeypatch, limits):
    labels = []
    save = Figure.savefig

    def record(figure, *args, **kwargs):
        save(figure, *args, **kwargs)
        plot = figure.axes[0]
        low, high = plot.get_ylim()
        ticks = zip(plot.yaxis.get_majorticklocs(), plot.yaxis.get_majorticklabels(), strict=True)
        labels.extend(label.get_text() for place, label in ticks if low <= place <= high)
        assert not any(label.get_text() for label in plot.yaxis.get_minorticklabels())

    monkeypatch.setattr(Figure, "savefig", record)
    draw(tmp_path / "f.png", [Series("a", [1, 2], limits)], title="t", x="x", y="y", axes={"yscale": "log"})
    numbers = [float(label.replace(",", "")) for label in labels]
    assert numbers == sorted(set(numbers))
    assert 3 <= len(numbers) <= 10


def test_points_carry_their_names_and_a_level_is_marked(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure.axes[0]))
    series = [Series("a", [1, 2], [3, 4], names=["χ=4", "χ=8"])]
    draw(tmp_path / "f.png", series, title="t", x="x", y="y", level=3.5)
    assert [text.get_text() for text in drawn[0].texts] == ["χ=4", "χ=8"]
    assert [list(line.get_ydata()) for line in drawn[0].lines] == [[3, 4], [3.5, 3.5]]


def test_code_in_a_line_becomes_code_in_html():
    page = Page("t", [Text(("Run `a <b>` & see.",)), Text(("`x`", "two"))])
    html = page.html()
    assert "<p>Run <code>a &lt;b&gt;</code> &amp; see.</p>" in html
    assert "<li><code>x</code></li>" in html


def test_without_matplotlib_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(figures_module, "find_spec", lambda name: None)
    with pytest.raises(MPOError, match=r"pip install 'mpochain\[plot\]'"):
        draw(tmp_path / "f.png", [], title="", x="", y="")


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "f"
    write_bytes(path, b"old")

    def fail(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(MPOError, match="cannot write .*No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_require_writable_creates_the_folder_or_refuses_a_file(tmp_path):
    assert require_writable(tmp_path / "new" / "folder").is_dir()
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(MPOError, match="file is a file; name a folder"):
        require_writable(tmp_path / "file")


def test_require_writable_allows_another_process_to_remove_the_probe(tmp_path, monkeypatch):
    def write_and_lose(path, data):
        write_bytes(path, data)
        path.unlink()

    monkeypatch.setattr("mpochain.system.files.write_bytes", write_and_lose)
    assert require_writable(tmp_path) == tmp_path
