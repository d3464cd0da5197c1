"""A listing finds what is a video, however it is called, and nothing hidden."""

import os
import shutil

import pytest

from extract import files, labels
from tests import media
from tqa_jax import schema

TIMES = [frame / 25 for frame in range(5)]


def _touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def _listed(folder):
    return [path.relative_to(folder).as_posix() for path in files.videos(folder)]


def _read(folder, text, **more):
    path = folder.parent / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return labels.read(path, folder, **more)


def test_a_listing_takes_every_suffix_of_videos(tmp_path):
    names = "a.MP4 b.m2ts c.vob d.mxf e.asf f.qt g.3g2 h.dv i.f4v j.rm".split()
    _touch(tmp_path, *names, "k.txt", "l.wav", "m.mp4.part", "n.csv")
    assert _listed(tmp_path) == names


def test_a_listing_leaves_out_what_is_hidden(tmp_path):
    _touch(tmp_path, "a.mp4", "._a.mp4", ".b.mp4", ".cache/c.mp4", "__MACOSX/._d.mp4")
    assert _listed(tmp_path) == ["a.mp4"]
    assert _listed(tmp_path / ".cache") == ["c.mp4"]  # which was named


def test_links_to_folders_are_followed_and_end(tmp_path):
    folder = tmp_path / "clips"
    _touch(tmp_path, "elsewhere/b.mp4", "other.mp4", "clips/anna/a.mp4")
    links = {"anna/self": ".", "up": "..", "twice": "anna", "ben": "../elsewhere"}
    links |= {"carl": "../elsewhere", "lost": "none", "round": "round"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    # Each folder once, by its own name where it has one inside.
    assert _listed(folder) == ["anna/a.mp4", "ben/b.mp4"]
    (tmp_path / "link").symlink_to(folder)
    assert _listed(tmp_path / "link") == ["anna/a.mp4", "ben/b.mp4"]
    (folder / "c.mp4").symlink_to(folder / "anna" / "a.mp4")
    (folder / "d.mp4").symlink_to("none")
    assert _listed(folder) == ["anna/a.mp4", "ben/b.mp4", "c.mp4"]


@pytest.mark.parametrize(
    "suffix, codec",
    [(name, "mpeg4") for name in ("mp4", "mov", "mkv", "avi", "ts", "m2ts", "asf")]
    + [("mpg", "mpeg4"), ("flv", "flv"), ("rm", "rv20")],
)
def test_a_name_without_suffix_is_a_video_by_its_content(tmp_path, suffix, codec):
    file = media.write(
        tmp_path / f"x.{suffix}",
        times=TIMES,
        picture=media.flash(0.1, size=(176, 144)),
        sound=None,
        codec=codec,
    )
    for name in ("id_-7TM", "take.02"):
        shutil.copyfile(file, tmp_path / name)
    _touch(tmp_path, "LICENSE", "Makefile", "notes.01", "empty")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "sound").write_bytes(b"RIFF\0\0\0\0WAVE")
    os.mkfifo(tmp_path / "pipe")
    assert _listed(tmp_path) == ["id_-7TM", "take.02", f"x.{suffix}"]


def test_names_of_clips_keep_dots_and_are_unique(tmp_path):
    paths = [tmp_path / name for name in ("a.mp4", "a", "b.mov", "s.01", "s/a.mkv")]
    outside = tmp_path.parent / "c.mp4"
    assert files.ids([*paths, outside], tmp_path) == (
        ["a.mp4", "a", "b", "s.01", "s/a", outside.with_suffix("").as_posix()]
    )


def test_a_path_that_a_row_names_is_looked_up(tmp_path):
    folder = tmp_path / "clips"
    _touch(tmp_path, "far/b.mp4", "far/c.dat")
    _touch(folder, "a.mp4", "anna/id_7", "anna/.d.mp4", "x.dat", "e.mp4")
    (folder / "far").symlink_to("../far")
    (tmp_path / "link").symlink_to(folder)
    rows = [str(folder / "a.mp4"), "anna/id_7", "anna/.d.mp4", "x.dat", "far\\b.mp4"]
    rows += [str(tmp_path / "link" / "e.mp4"), str(tmp_path / "far" / "c.dat")]
    text = "clip,split,overall\n" + "".join(f"{row},train,3\n" for row in rows)
    table = _read(folder, text)
    assert [item.clip for item in table.items[:5]] == (
        ["a", "anna/id_7", "anna/.d", "x.dat", "far/b"]
    )
    assert table.items[6].clip == str(tmp_path / "far" / "c.dat")
    assert all(item.path.is_file() for item in table.items)
    table = labels.read(tmp_path / "labels.csv", tmp_path / "link")
    assert [item.clip for item in table.items][5] == "e"
    assert [item.clip for item in table.items][0] == "a"  # by its real path


def test_one_file_by_two_paths_is_a_repeated_row(tmp_path):
    folder = tmp_path / "clips"
    _touch(folder, "a.mp4", "s/b.mp4")
    for other in ("./a.mp4", "s/../a.mp4", "a", str(folder / "a.mp4")):
        with pytest.raises(schema.InputError, match="has a row already, line 2"):
            _read(folder, f"clip,overall\na.mp4,3\n{other},3\n")


def test_only_files_that_no_row_names_are_left_out(tmp_path):
    folder = tmp_path / "clips"
    _touch(folder, "anna/a.mp4", "b.mp4")
    (folder / "link").symlink_to("anna")
    table = _read(folder, "clip,split,overall\nlink/a.mp4,train,3\n")
    assert [path.name for path in table.left_out] == ["b.mp4"]
    assert [item.clip for item in table.items] == ["link/a"]


def test_a_long_or_odd_name_is_not_there(tmp_path):
    (tmp_path / "clips").mkdir()
    for name in ("x" * 5000, "a\0b", "/", "..", "."):
        with pytest.raises(schema.InputError, match="line 2: clip .* is not in"):
            _read(tmp_path / "clips", f"clip,overall\n{name},3\n")
