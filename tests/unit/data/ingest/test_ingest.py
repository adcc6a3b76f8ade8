"""The engine: same corpus however it is read, only what is new is read, nothing outside is followed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from loky import get_reusable_executor

from radloop.config import DataConfig
from radloop.data import source as source_module
from radloop.data.corpus import Corpus
from radloop.data.imaging import to_rgb
from radloop.data.ingest import Touched, engines, ingest, ingest_and_count, work
from radloop.data.ingest.work import look_at
from radloop.data.phantoms.formats import Cohort, write
from radloop.data.source import ImageRef
from radloop.data.storage import discard, scratch_folder
from radloop.errors import ConfigError, DataError

COHORT = Cohort(train=12, validation=0, test=4, size=48)
RELEASE_FILE, RELEASE_IMAGES = "VQA_RAD Dataset Public.json", "VQA_RAD Image Folder"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RADLOOP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release") / "vqa_rad"
    write("vqa_rad", folder, COHORT)
    return folder


@pytest.fixture
def own(release: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(release, tmp_path / "own"))


def config(folder: Path, **more: Any) -> DataConfig:
    return DataConfig(adapter="vqa_rad", path=str(folder), **more)


def count(folder: Path) -> Touched:
    return ingest_and_count(config(folder, workers=1))[1]


def rows(corpus: Corpus) -> tuple[list[Any], list[Any]]:
    return corpus.images.drop_columns(["uri"]).to_pylist(), corpus.samples.to_pylist()


def edit(folder: Path, change: Any) -> None:
    file = folder / RELEASE_FILE
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def test_a_corpus_has_all_rows_once_and_each_image_once(release: Path) -> None:
    corpus = ingest(config(release, workers=1))
    source = json.loads((release / RELEASE_FILE).read_text())
    assert corpus.rows == corpus.samples.num_rows == len(source)
    assert corpus.images.num_rows == 16
    assert corpus.samples["row"].to_pylist() == list(range(1, len(source) + 1))
    known = set(corpus.images["id"].to_pylist())
    assert {i for ids in corpus.samples["image_ids"].to_pylist() for i in ids} == known
    for image in corpus.encoded_images():
        assert image.data
        assert to_rgb(image.data).size == (48, 48)
    assert set(corpus.images["format"].to_pylist()) == {"JPEG"}
    assert all(len(value) > 8 for value in corpus.images["perceptual_hash"].to_pylist())


def test_processes_make_the_same_corpus(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_ALONE_S", 0)  # else so little work never leaves this process
    alone = ingest(config(release, workers=1))
    together = ingest(config(release, workers=2))
    assert together.fingerprint == alone.fingerprint
    assert rows(together) == rows(alone)


def test_a_ray_cluster_of_two_makes_the_same_corpus(release: Path) -> None:
    ray = pytest.importorskip("ray")
    alone = ingest(config(release, workers=1))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        together = ingest(config(release, engine="ray"))
    finally:
        ray.shutdown()
    assert together.fingerprint == alone.fingerprint
    assert rows(together) == rows(alone)


def test_the_fingerprint_follows_content_not_place_or_order(own: Path, tmp_path: Path) -> None:
    first = ingest(config(own, workers=1)).fingerprint
    elsewhere = Path(shutil.copytree(own, tmp_path / "elsewhere"))
    edit(elsewhere, lambda source: source[::-1])
    assert ingest(config(elsewhere, workers=1)).fingerprint == first
    edit(own, lambda source: [source[0] | {"answer": "something else"}, *source[1:]])
    assert ingest(config(own, workers=1)).fingerprint != first


def test_the_fingerprint_follows_the_bytes_of_images(own: Path) -> None:
    first = ingest(config(own, workers=1)).fingerprint
    image = next((own / RELEASE_IMAGES).iterdir())
    image.write_bytes(image.read_bytes() + b"\0")
    assert ingest(config(own, workers=1)).fingerprint != first


def test_a_second_ingest_reads_nothing_again(own: Path) -> None:
    first = count(own)
    assert first == Touched(first.rows, first.rows, 16, 16)
    time.sleep(0.1)  # files younger than a clock tick are not trusted
    again = count(own)
    assert (again.new_rows, again.rows, again.images) == (0, first.rows, 16)
    assert count(own) == Touched(first.rows, 0, 16, 0)


def test_only_new_rows_and_their_images_are_read(own: Path) -> None:
    edit(own, lambda source: [row | {"qid": n} for n, row in enumerate(source * 20)])
    before = count(own)
    time.sleep(0.1)
    new = own / RELEASE_IMAGES / "synpic9.jpg"
    shutil.copy(next((own / RELEASE_IMAGES).iterdir()), new)
    new.write_bytes(new.read_bytes() + b"\0")
    time.sleep(0.1)
    rng = random.Random(7)

    def with_more(source: list[dict[str, Any]]) -> list[dict[str, Any]]:
        more = [source[0] | {"qid": 90_000 + n, "image_name": new.name} for n in range(len(source) // 100)]
        for row in more:
            source.insert(rng.randrange(len(source)), row)  # anywhere, not only at the end
        return source

    edit(own, with_more)
    after = count(own)
    assert after.rows == before.rows + before.rows // 100
    assert after.new_images == 1
    assert after.new_rows == before.rows // 100


lines = st.lists(st.integers(0, 300), max_size=60)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(lines, min_size=2, max_size=4))
@example(steps=[[0, 0], [0]])
@example(steps=[[0], [0, 0]])
def test_an_ingest_after_any_changes_equals_a_fresh_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[list[int]]
) -> None:
    """Rows are numbers here: added, removed, repeated, in any order, some of them left out."""
    monkeypatch.setattr(source_module, "_SMALLEST", 2)
    monkeypatch.setattr(source_module, "_MEAN", 5)
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        file = Path(folder) / "rows.jsonl"

        def write_and_read(home: str, numbers: list[int]) -> tuple[Corpus, Touched]:
            monkeypatch.setenv("RADLOOP_HOME", f"{folder}/{home}")
            text = [json.dumps({"q_id": n, "question": f"Why {n}?", "answer": f"{n % 7}"}) for n in numbers]
            file.write_text("\n".join([*text, '{"question": "Last?", "answer": "yes"}']))
            options = {"task": "ehr", "columns": {"patient": "q_id"}} if any(numbers) else {"task": "ehr"}
            return ingest_and_count(DataConfig(adapter="table", path=str(file), options=options, workers=1))

        for number, rows_now in enumerate(steps):
            incremental, _ = write_and_read("kept", rows_now)
            fresh, _ = write_and_read(f"fresh{number}", rows_now)
            assert rows(incremental) == rows(fresh)
            assert incremental.fingerprint == fresh.fingerprint
            assert (incremental.rows, incremental.left_out) == (fresh.rows, fresh.left_out)


def test_a_row_in_the_middle_moves_the_numbers_but_not_the_units(own: Path) -> None:
    edit(own, lambda source: [row | {"qid": n} for n, row in enumerate(source * 40)])
    before = count(own)
    edit(own, lambda source: [source[0] | {"qid": 90_000}, *source])
    corpus, after = ingest_and_count(config(own, workers=1))
    assert after.new_rows < before.rows / 4
    assert corpus.samples["row"].to_pylist() == list(range(1, before.rows + 2))
    assert corpus.samples["id"][before.rows].as_py() == f"vqa_rad-{before.rows - 1}"


def test_units_of_the_same_content_are_each_read(own: Path) -> None:
    edit(own, lambda source: source * 40)
    corpus, touched = ingest_and_count(config(own, workers=1))
    assert corpus.samples.num_rows == touched.rows == 40 * len(set(corpus.samples["id"].to_pylist()))


def test_rows_that_are_left_out_are_counted_whatever_was_known(tmp_path: Path) -> None:
    write("slake", tmp_path / "slake", Cohort(train=12, validation=2, test=2, size=48))
    source = DataConfig(adapter="slake", path=str(tmp_path / "slake"), workers=1)
    first, touched = ingest_and_count(source)
    again, nothing = ingest_and_count(source)
    assert sum(first.left_out.values()) == first.rows - first.samples.num_rows > 0
    assert again.left_out == first.left_out
    assert (touched.new_rows, nothing.new_rows) == (first.rows, 0)
    file = tmp_path / "slake" / "train.json"
    file.write_text(json.dumps(json.loads(file.read_text())[1:]))
    changed, touched = ingest_and_count(source)
    assert touched.new_rows == 0
    assert sum(changed.left_out.values()) == changed.rows - changed.samples.num_rows


def test_two_descriptions_of_one_picture_are_in_the_fingerprint_in_any_order(own: Path) -> None:
    shutil.copy(next((own / RELEASE_IMAGES).iterdir()), own / "a.jpg")
    (own / "t.csv").write_text(
        "image,question,answer,body_part\na.jpg,Is it?,yes,CHEST\na.jpg,Why?,no,HEAD\n"
    )
    first = ingest(DataConfig(adapter="table", path=str(own / "t.csv"), workers=1))
    (own / "t.csv").write_text(
        "image,question,answer,body_part\na.jpg,Why?,no,HEAD\na.jpg,Is it?,yes,CHEST\n"
    )
    second = ingest(DataConfig(adapter="table", path=str(own / "t.csv"), workers=1))
    assert first.images.num_rows == second.images.num_rows == 1
    assert first.fingerprint == second.fingerprint
    (own / "t.csv").write_text("image,question,answer,body_part\na.jpg,Why?,no,HEAD\na.jpg,Is it?,yes,HEAD\n")
    assert (
        ingest(DataConfig(adapter="table", path=str(own / "t.csv"), workers=1)).fingerprint
        != first.fingerprint
    )


def test_a_failure_of_the_decoder_is_not_remembered(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {"pixel_hash": "", "perceptual_hash": None, "burnt_in_text": None, "error": "out of memory"}
    nothing = dict.fromkeys(("width", "height", "frames", "blank")) | {"mode": "", "format": ""}
    with monkeypatch.context() as patch:
        patch.setattr(work, "examine", lambda *_: nothing | broken)
        patch.setattr(work, "_seen", {})
        assert set(ingest(config(own, workers=1)).images["error"].to_pylist()) == {"out of memory"}
    monkeypatch.setattr(work, "_seen", {})
    assert set(ingest(config(own, workers=1)).images["error"].to_pylist()) == {""}


def test_a_link_that_leads_elsewhere_later_is_followed_anew(own: Path, tmp_path: Path) -> None:
    images = own / RELEASE_IMAGES
    other = Path(shutil.copytree(images, tmp_path / "other"))
    for image in other.iterdir():
        image.write_bytes(image.read_bytes() + b"\0")
    moved = images.rename(own / "first")
    shutil.copytree(other, own / "second")
    images.symlink_to(moved)
    first = ingest(config(own, workers=1)).fingerprint
    images.unlink()
    images.symlink_to(own / "second")
    assert ingest(config(own, workers=1)).fingerprint != first


def test_a_changed_image_is_read_again_even_with_its_old_size_and_date(own: Path) -> None:
    first = ingest(config(own, workers=1)).fingerprint
    image = next((own / RELEASE_IMAGES).iterdir())
    time.sleep(0.1)
    old, data = image.stat(), bytearray(image.read_bytes())
    data[-3] ^= 1
    image.write_bytes(data)
    os.utime(image, ns=(old.st_atime_ns, old.st_mtime_ns))
    corpus, touched = ingest_and_count(config(own, workers=1))
    assert touched.new_images >= 1
    assert corpus.fingerprint != first


def test_a_corpus_whose_files_changed_later_is_refused(own: Path) -> None:
    corpus = ingest(config(own, workers=1))
    image = next((own / RELEASE_IMAGES).iterdir())
    image.write_bytes(b"another")
    with pytest.raises(DataError, match="has changed since it was read in"):
        list(corpus.encoded_images())


@pytest.mark.parametrize("damage", ["garbage", "folder", "locked", "cut"])
def test_a_useless_index_costs_time_only(own: Path, home: Path, damage: str) -> None:
    first = ingest(config(own, workers=1))
    file = next((home / "ingest").glob("index*.sqlite"))
    holder = None
    if damage == "garbage":
        file.write_bytes(b"no database" * 100)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif damage == "folder":
        for rest in (home / "ingest").glob("index*"):
            rest.unlink()
        file.mkdir()
    else:
        holder = sqlite3.connect(file)
        holder.execute("BEGIN EXCLUSIVE")
    again = ingest(config(own, workers=1))
    assert rows(again) == rows(first)
    if holder:
        holder.close()


def look(root: Path, name: str) -> dict[str, Any]:
    return look_at(([ImageRef("k", str(root), name, None, {})], None, None)).images[0]


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../secret.jpg", "a/../../secret.jpg", "link.jpg", "folder/secret.jpg", "", ".", ".."],
)
def test_no_name_leads_out_of_the_root(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    for secret in (tmp_path / "secret.jpg", tmp_path / "outside" / "secret.jpg"):
        secret.write_bytes(b"secret")
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "folder").symlink_to(tmp_path / "outside")
    found = look(root, name)
    assert found["id"] == f"missing:{name}"
    assert found["error"]
    assert not found.get("uri")


def test_links_inside_the_root_are_followed(release: Path, tmp_path: Path) -> None:
    image = next((release / RELEASE_IMAGES).iterdir())
    (tmp_path / "real.jpg").write_bytes(image.read_bytes())
    (tmp_path / "link.jpg").symlink_to(tmp_path / "real.jpg")
    assert look(tmp_path, "link.jpg")["width"] == 48


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.jpg", "the file is missing"),
        ("folder", "'folder' is no file"),
        ("x\0y", "cannot be found"),
        ("x" * 300, "cannot be found"),
        ("pipe", "'pipe' is no file"),
    ],
)
def test_what_is_no_image_file_says_so(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    assert words in look(tmp_path, name)["error"]


def test_members_of_an_archive_are_read_where_they_are(release: Path, tmp_path: Path) -> None:
    data = next((release / RELEASE_IMAGES).iterdir()).read_bytes()
    with zipfile.ZipFile(tmp_path / "imgs.zip", "w") as archive:
        archive.writestr("imgs/a.jpg", data)
        archive.writestr("../../evil.jpg", data)
    found = look(tmp_path / "imgs.zip", "imgs/a.jpg")
    assert (found["width"], found["bytes"], found.get("uri")) == (48, data, None)
    assert look(tmp_path / "imgs.zip", "imgs/b.jpg")["error"] == "the file is missing"
    assert look(tmp_path / "imgs.zip", "../../evil.jpg")["width"] == 48  # read in memory, written nowhere
    assert not (tmp_path.parent.parent / "evil.jpg").exists()
    (tmp_path / "bad.zip").write_bytes(b"PK no archive")
    assert "cannot be read" in look(tmp_path / "bad.zip", "imgs/a.jpg")["error"]


def test_a_worker_that_is_killed_is_one_clear_error(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_ALONE_S", 0)
    words = r"a worker process was killed.*data\.workers below 2"
    with engines.Local(2) as engine, pytest.raises(DataError, match=words):
        list(engine.map(_killed, [1, 2, 3, 4]))
    get_reusable_executor(2, kill_workers=True)


def _killed(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_an_error_of_a_worker_is_the_error_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_ALONE_S", 0)
    with engines.Local(2) as engine, pytest.raises(DataError, match="row 3 is bad"):
        list(engine.map(_refused, range(6)))


def _refused(number: int) -> int:
    if number == 3:
        raise DataError("row 3 is bad")
    return number


def test_scratch_of_a_killed_process_is_cleared_away_and_that_of_a_running_one_is_not(home: Path) -> None:
    code = "from radloop.data.storage import scratch_folder; import sys; print(scratch_folder()); input()"
    command = [sys.executable, "-c", code]
    killed, running = (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    folders = [Path(process.stdout.readline().strip()) for process in (killed, running) if process.stdout]
    killed.kill()
    killed.wait()
    own = scratch_folder()
    assert set((home / "ingest" / "scratch").iterdir()) == {own, folders[1]}
    running.communicate("\n")
    assert set((home / "ingest" / "scratch").iterdir()) == {own}
    discard(own)
    assert not own.exists()


def test_two_at_once_do_not_disturb_each_other(release: Path) -> None:
    code = (
        "import sys; from radloop.config import DataConfig; from radloop.data.ingest import ingest; "
        "print(ingest(DataConfig(adapter='vqa_rad', path=sys.argv[1], workers=1)).fingerprint)"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(release)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    found = {process.communicate()[0] for process in started}
    assert found == {ingest(config(release, workers=1)).fingerprint + "\n"}


def test_a_full_disk_says_so(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "small"
    home.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", home], capture_output=True, check=False
    ).returncode == 0  # fmt: skip
    if not mounted:
        pytest.skip("only root may mount the small disk that this test fills")
    try:
        monkeypatch.setenv("RADLOOP_HOME", str(home))
        with pytest.raises(DataError, match="the disk is full"):
            ingest(config(release, workers=1))
    finally:
        subprocess.run(["umount", "-l", home], check=True)


def test_several_sources_are_one_corpus(release: Path, tmp_path: Path) -> None:
    sources = [
        {"adapter": "vqa_rad", "path": str(release)},
        {"adapter": "phantoms", "options": {"train_images": 2, "validation_images": 0, "test_images": 0}},
    ]
    corpus = ingest(DataConfig(sources=sources, workers=1))
    assert corpus.facts()["datasets"] == "phantoms, vqa_rad"
    assert corpus.images.num_rows == 18


def test_several_sources_of_one_adapter_need_names(release: Path) -> None:
    sources = [{"adapter": "vqa_rad", "path": str(release)}] * 2
    with pytest.raises(ConfigError, match="called vqa_rad; give each a name"):
        ingest(DataConfig(sources=sources, workers=1))
    named = [source | {"name": f"hospital_{number}"} for number, source in enumerate(sources)]
    corpus = ingest(DataConfig(sources=named, workers=1))
    assert corpus.facts()["datasets"] == "hospital_0, hospital_1"
    assert len(set(corpus.samples["id"].to_pylist())) == corpus.samples.num_rows
    assert corpus.images.num_rows == 16  # the same pictures


def test_wrong_options_are_named(release: Path) -> None:
    with pytest.raises(ConfigError, match=r"vqa_rad.*colour"):
        ingest(config(release, options={"colour": 1}))


def test_a_corpus_survives_saving(release: Path, tmp_path: Path) -> None:
    corpus = ingest(config(release, workers=1))
    (tmp_path / "saved").mkdir()
    corpus.save(tmp_path / "saved")
    again = Corpus.load(tmp_path / "saved")
    assert again.images.equals(corpus.images)
    assert again.samples.equals(corpus.samples)
    assert (again.fingerprint, again.rows, again.facts()) == (corpus.fingerprint, corpus.rows, corpus.facts())
    assert isinstance(again.samples, pa.Table)
