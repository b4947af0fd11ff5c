"""A file of JSON lines: resumed, renewed, torn, edited meanwhile, and nothing in it lost."""

import json
from pathlib import Path

import pytest
from pictures import plain

from musubi_cli import CaptionResult, InputError, json_lines, picture_key
from musubi_cli.json_lines import JsonLinesWriter, Layout


def writer_of(path):
    return JsonLinesWriter(path, Layout("image_path", "caption", "stop", path.parent))


def lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_a_second_run_on_the_same_file_is_refused(tmp_path):
    path = tmp_path / "c.jsonl"
    first, second = writer_of(path), writer_of(path)
    first.write(CaptionResult(tmp_path / "a.png", "a"))
    with pytest.raises(InputError, match="another run is writing"):
        second.write(CaptionResult(tmp_path / "b.png", "b"))
    first.close()
    assert len(lines(path)) == 1


def test_lines_that_come_while_the_model_is_loaded_are_kept(tmp_path):
    path = tmp_path / "c.jsonl"
    patient, quick = writer_of(path), writer_of(path)
    for name in "ab":
        quick.write(CaptionResult(tmp_path / f"{name}.png", name))
    quick.close()
    patient.write(CaptionResult(tmp_path / "c.png", "c"))
    patient.write(CaptionResult(tmp_path / "b.png", "new"))
    patient.close()
    assert [line["caption"] for line in lines(path)] == ["a", "new", "c"]


def test_a_file_that_is_replaced_during_the_run_gets_the_further_lines(tmp_path):
    path = tmp_path / "c.jsonl"
    writer = writer_of(path)
    writer.write(CaptionResult(tmp_path / "a.png", "a"))
    edited = path.read_text().replace('"a"', '"edited"')
    (tmp_path / "other").write_text(edited)
    (tmp_path / "other").replace(path)
    writer.write(CaptionResult(tmp_path / "b.png", "b"))
    path.unlink()
    writer.write(CaptionResult(tmp_path / "c.png", "c"))
    (tmp_path / "again").write_text(edited)
    writer.close()
    assert [line["caption"] for line in lines(path)] == ["c"]


def test_a_line_torn_anywhere_is_mended(tmp_path):
    whole = json.dumps(
        {"image_path": 'a \u00e4 " \\ \n.png', "caption": "\u00fc, \U0001f600"}, ensure_ascii=False
    ).encode()
    path = tmp_path / "c.jsonl"
    for torn in (whole, json.dumps(json.loads(whole)).encode()):
        for length in range(len(torn)):
            path.write_bytes(b'{"image_path": "z.png", "caption": "z"}\n' + torn[:length])
            writer = writer_of(path)
            writer.write(CaptionResult(tmp_path / "b.png", "b"))
            writer.close()
            assert [line["caption"] for line in lines(path)] == ["z", "b"], torn[:length]


def interrupted_overwrite(path, *names, folder=None):
    """A renewed file as a killed run leaves it."""
    writer = writer_of(path)
    for name in names:
        writer.write(CaptionResult(Path(folder or path.parent, name), "new"))
    writer._renewed.close()
    writer._main.close()


def test_what_a_killed_run_left_is_put_in_place_but_not_over_edited_lines(tmp_path):
    path = tmp_path / "c.jsonl"
    first = writer_of(path)
    for name in "abc":
        first.write(CaptionResult(tmp_path / f"{name}.png", "old"))
    first.close()
    interrupted_overwrite(path, "a.png", "b.png")
    assert [line["caption"] for line in lines(path)] == ["old"] * 3
    path.write_text(path.read_text().replace("old", "by hand", 1))
    later = writer_of(path)
    later.write(CaptionResult(tmp_path / "d.png", "d"))
    later.close()
    assert [line["caption"] for line in lines(path)] == ["by hand", "new", "old", "d"]
    assert all({*line} == {"image_path", "caption"} for line in lines(path))
    assert [file.name for file in tmp_path.iterdir()] == ["c.jsonl"]


def test_renewed_captions_whose_lines_are_gone_are_added(tmp_path):
    path = tmp_path / "c.jsonl"
    first = writer_of(path)
    first.write(CaptionResult(tmp_path / "a.png", "old"))
    first.close()
    interrupted_overwrite(path, "a.png")
    path.unlink()
    later = writer_of(path)
    later.write(CaptionResult(tmp_path / "b.png", "b"))
    later.close()
    assert [line["caption"] for line in lines(path)] == ["new", "b"]


def test_what_was_left_is_taken_up_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    plain(tmp_path / "ph" / "a.png")
    path = tmp_path / "c.jsonl"
    first = writer_of(path)
    first.write(CaptionResult(tmp_path / "ph" / "a.png", "old"))
    first.close()
    monkeypatch.chdir(tmp_path)
    interrupted_overwrite(path, "ph/a.png", folder=".")
    monkeypatch.chdir(tmp_path / "elsewhere")
    later = writer_of(path)
    later.write(CaptionResult(tmp_path / "b.png", "b"))
    later.close()
    assert [line["caption"] for line in lines(path)] == ["new", "b"]


def test_a_renewed_line_torn_within_a_word_is_dropped(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"image_path": "a.png"}\n')
    renewed = path.with_name("c.jsonl.musubi-new")
    renewed.write_text('{"image_path": "a.png", "caption": "x", "musubi_replaces": [nu')
    later = writer_of(path)
    later.write(CaptionResult(tmp_path / "b.png", "b"))
    later.close()
    assert [line.get("caption") for line in lines(path)] == [None, "b"]


@pytest.mark.parametrize("name", ["\\ud800/a.png", "\\u0000.png"])
def test_paths_that_no_file_can_have_are_kept(tmp_path, name):
    path = tmp_path / "c.jsonl"
    line = f'{{"image_path": "{name}", "caption": "x"}}\n'
    path.write_text(line)
    writer = writer_of(path)
    writer.write(CaptionResult(tmp_path / "b.png", "b"))
    writer.close()
    assert path.read_text().startswith(line)


def test_a_link_and_its_target_share_what_a_killed_run_left(tmp_path):
    (tmp_path / "real").mkdir()
    path, link = tmp_path / "real" / "x.jsonl", tmp_path / "c.jsonl"
    link.symlink_to(path)
    first = writer_of(link)
    first.write(CaptionResult(tmp_path / "a.png", "old"))
    first.close()
    interrupted_overwrite(link, tmp_path / "a.png")
    later = writer_of(path)
    later.write(CaptionResult(tmp_path / "b.png", "b"))
    later.close()
    assert link.is_symlink()
    assert [line["caption"] for line in lines(link)] == ["new", "b"]


def test_somebody_elses_line_without_a_break_is_not_glued_to(tmp_path):
    path = tmp_path / "c.jsonl"
    writer = writer_of(path)
    writer.write(CaptionResult(tmp_path / "a.png", "a"))
    with path.open("a") as other:
        other.write('{"image_path": "x.png", "caption": "x"}')
    writer.write(CaptionResult(tmp_path / "b.png", "b"))
    writer.close()
    assert [line["caption"] for line in lines(path)] == ["a", "x", "b"]


def paths_in(path, *pictures, **layout):
    with json_lines(path, **layout) as writer:
        for picture in pictures:
            writer.write(CaptionResult(picture, "new", stop="length"))
    return lines(path)


def test_paths_beside_the_file_are_relative_to_it_wherever_one_stands(tmp_path, monkeypatch):
    picture = plain(tmp_path / "photos" / "far" / "a.png")
    path = tmp_path / "photos" / "metadata.jsonl"
    layout = {"picture": "file_name", "caption": "text", "beside": True}
    assert paths_in(path, picture, **layout) == [{"file_name": "far/a.png", "text": "new"}]
    monkeypatch.chdir(tmp_path)
    with json_lines(Path("photos/metadata.jsonl"), **layout) as writer:
        assert Path("photos/far/a.png") in writer.done()
        assert Path("far/a.png") not in writer.done()


def test_other_keys_are_renewed_too_and_all_else_in_a_line_stays(tmp_path):
    path = tmp_path / "metadata.jsonl"
    path.write_text(
        '{"text": "old", "cut": "length", "by": "me", "file_name": "a.png"}\n{"text": 7}\n'
    )
    layout = {"picture": "file_name", "caption": "text", "beside": True}
    renewed, other = paths_in(path, tmp_path / "a.png", stop="cut", **layout)
    assert renewed == {"text": "new", "cut": "length", "by": "me", "file_name": "a.png"}
    assert other == {"text": 7}


def test_a_torn_line_of_another_layout_is_not_ours_to_drop(tmp_path):
    path = tmp_path / "metadata.jsonl"
    path.write_text('{"file_name": "a.png", "text": "x"}\n{"image_path": "b.p')
    with (
        pytest.raises(InputError, match="line 2 is no caption"),
        json_lines(path, picture="file_name", caption="text"),
    ):
        pass
    path.write_text('{"file_name": "a.png", "text": "x"}\n{"file_name": "b.p')
    assert len(paths_in(path, tmp_path / "b.png", picture="file_name", caption="text")) == 2


def test_a_line_with_a_key_in_any_script_is_mended_wherever_it_is_torn(tmp_path):
    path = tmp_path / "c.jsonl"
    entry = {"bild_\u00fc": "a.png", "text": "x"}
    for whole in (json.dumps(entry), json.dumps(entry, ensure_ascii=False)):
        torn = whole.encode()
        for length in range(len(torn)):
            path.write_bytes(b'{"text": "z"}\n' + torn[:length])
            assert (
                len(paths_in(path, tmp_path / "b.png", picture="bild_\u00fc", caption="text")) == 2
            )


def test_a_line_by_hand_with_a_wrong_escape_is_not_cut_off(tmp_path):
    path = tmp_path / "c.jsonl"
    by_hand = '{"image_path": "C:\\users\\b.png", "caption": "a long caption by hand"}'
    path.write_text('{"caption": "z"}\n' + by_hand)
    with pytest.raises(InputError, match="line 2 is no caption"):
        writer_of(path)
    assert path.read_text().endswith(by_hand)


def test_a_path_through_a_link_and_up_is_the_picture_that_the_system_finds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/deep")
    assert picture_key("link/../a.png") == picture_key("far/a.png")
    assert picture_key("link/../a.png") != picture_key("a.png")


def test_paths_beside_a_linked_file_lead_to_the_picture(tmp_path):
    (tmp_path / "data" / "set").mkdir(parents=True)
    (tmp_path / "link").symlink_to("data/set")
    picture = plain(tmp_path / "data" / "set" / "a.png")
    layout = {"picture": "file_name", "caption": "text", "beside": True}
    (line,) = paths_in(tmp_path / "link" / "m.jsonl", picture, **layout)
    assert line["file_name"] == "a.png"
    with json_lines(tmp_path / "data" / "set" / "m.jsonl", **layout) as writer:
        assert picture in writer.done()


def test_renewed_captions_under_another_key_are_not_lost(tmp_path):
    path = tmp_path / "c.jsonl"
    first = writer_of(path)
    first.write(CaptionResult(tmp_path / "a.png", "old"))
    first.close()
    interrupted_overwrite(path, "a.png")
    with (
        pytest.raises(InputError, match="other options; finish that run with its options"),
        json_lines(path, picture="image_path", caption="tags"),
    ):
        pass
    writer_of(path)
    later = writer_of(path)
    later.write(CaptionResult(tmp_path / "b.png", "b"))
    later.close()
    assert [line["caption"] for line in lines(path)] == ["new", "b"]


@pytest.mark.parametrize("keys", [("a", "a"), ("a", "musubi_picture"), ("musubi_replaces", "b")])
def test_keys_that_would_meet_are_refused(tmp_path, keys):
    with (
        pytest.raises(InputError, match="keys of their own"),
        json_lines(tmp_path / "c.jsonl", picture=keys[0], caption=keys[1]),
    ):
        pass
