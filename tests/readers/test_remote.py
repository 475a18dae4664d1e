"""Addresses: read as files are, named by their address, and nothing lands outside the copy."""

from pathlib import Path

import fsspec
import pytest

from tests.readers.test_tensorboard import scalar
from tests.readers.test_tensorboard import write as write_events
from trainmedic.analysis import analyze
from trainmedic.errors import UnreadableError
from trainmedic.readers import find, read, remote

CSV = "step,loss\n" + "".join(f"{i},{1 / (i + 1) if i < 30 else 'nan'}\n" for i in range(40))
SAMPLES = Path(__file__).parent / "samples"


@pytest.fixture
def bucket() -> str:
    """A directory in memory with two logs, and what is none."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pipe("/bucket/runs/a/log.csv", CSV.encode())
    files.pipe("/bucket/runs/b/metrics.jsonl", b"".join(b'{"step": %d, "loss": 1.5}\n' % i for i in range(20)))
    files.pipe("/bucket/runs/model.ckpt", b"\0" * 1_000)
    remote.fetched.cache_clear()
    return "memory://bucket/runs"


def test_a_directory_at_an_address(bucket: str) -> None:
    assert [history.facts["source"] for history in read(bucket)] == [
        f"{bucket}/a/log.csv",
        f"{bucket}/b/metrics.jsonl",
    ]
    worst = analyze(bucket)[0]
    assert (worst.path, worst.file) == (f"{bucket}/a/log.csv", f"{bucket}/a/log.csv")
    assert worst.lines[worst.findings[0].id] == 32
    assert not list(remote.fetched(bucket).rglob("*.ckpt"))


def test_a_file_at_an_address(bucket: str) -> None:
    (history,) = read(f"{bucket}/a/log.csv")
    assert history.facts["source"] == f"{bucket}/a/log.csv"
    (report,) = analyze(f"{bucket}/a/log.csv")
    assert report.path == f"{bucket}/a/log.csv"


def test_runs_of_several_files_and_mlflow(bucket: str, tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    for part in (1, 2):
        events = write_events(tmp_path / "events", [scalar("loss", 10 * part + i, 1.0) for i in range(10)])
        files.pipe(f"/bucket/tb/events.out.tfevents.{part}.host", events.read_bytes())
    files.put(str(SAMPLES / "mlflow"), "/bucket/", recursive=True)
    (history,) = read("memory://bucket/tb")
    assert len(history.series("train/loss").steps) == 20
    assert history.facts["source"] == "memory://bucket/tb"
    (run,) = read("memory://bucket/mlflow")
    assert len(run.series("train/loss").steps) == 20


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("memory://bucket/none", "memory://bucket/none: there is no such file or directory"),
        ("memory://bucket/runs/b/x.csv", "there is no such file or directory"),
        ("nothing://bucket/x", "nothing://bucket/x: cannot be fetched: Protocol not known: nothing"),
    ],
)
def test_what_cannot_be_fetched_is_one_clear_error(bucket: str, address: str, reason: str) -> None:
    with pytest.raises(UnreadableError) as error:
        find(address)
    assert reason in str(error.value)


def test_errors_name_the_address_and_not_the_copy(bucket: str) -> None:
    fsspec.filesystem("memory").pipe("/bucket/broken/trainer_state.json", b"{")
    with pytest.raises(UnreadableError, match=r"^memory://bucket/broken/trainer_state\.json: not valid JSON"):
        read("memory://bucket/broken")
    fsspec.filesystem("memory").pipe("/bucket/other.bin", b"\xff\0" * 50)
    with pytest.raises(
        UnreadableError, match=r"^memory://bucket/other\.bin: not a log .* formats memory://bucket/other"
    ):
        read("memory://bucket/other.bin")


def test_names_that_would_lead_elsewhere_are_left_out(bucket: str) -> None:
    listing = {
        name: {"size": 1} for name in ("/b/r/ok/log.csv", "/b/r/../../log.csv", "/b/r/a/../log.csv", "/b/r/a\\log.csv")
    }
    assert [str(relative) for _, relative, _ in remote._wanted(listing, "/b/r")] == ["ok/log.csv"]


def test_very_much_is_refused(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MOST_FILES", 1)
    with pytest.raises(UnreadableError, match=r"2 files of 0.0 GB that may be logs are more than are fetched"):
        find(bucket)
