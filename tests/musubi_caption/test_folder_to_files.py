"""A folder of pictures becomes captions: what is written, in which order, and what is kept."""

import json
import os

import pytest
from pictures import eye, plain


@pytest.fixture
def caption(tmp_path, monkeypatch):
    return eye(tmp_path, monkeypatch)


def lines(path="c.jsonl"):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_each_picture_becomes_a_line_in_sorted_order(caption):
    for name in ("b.png", "a.JPG", "c.webp"):
        plain(f"photos/{name}")
    ran = caption("--image_dir", "photos", "--output_file", "c.jsonl")
    assert ran.code == 0, ran.err
    assert [line["image_path"] for line in lines()] == [
        "photos/a.JPG",
        "photos/b.png",
        "photos/c.webp",
    ]
    assert lines()[1] == {"image_path": "photos/b.png", "caption": "p|40x32 200 100 50"}
    assert "3 captioned" in ran.err


def test_answers_in_any_order_are_written_in_the_pictures_order(caption):
    for name in "dbca":
        plain(f"photos/{name}.png")
    assert caption("--image_dir", "photos", "-o", "c.jsonl", "--backwards").code == 0
    assert [line["image_path"][-5] for line in lines()] == [*"abcd"]


def test_text_files_stand_beside_the_pictures_on_one_line(caption):
    plain("photos/a.b.png")
    ran = caption("--image_dir", "photos", "--output_format", "text", "--prompt", r"one\ntwo")
    assert ran.code == 0, ran.err
    with open("photos/a.b.txt", encoding="utf-8") as file:
        assert file.read() == "one two|40x32 200 100 50"


def test_lines_are_kept_if_asked_for(caption):
    plain("photos/a.png")
    caption(
        "--image_dir=photos",
        "--output_format=text",
        r"--prompt=one\ntwo",
        "--keep_lines",
        "--caption_extension=caption",
    )
    with open("photos/a.caption", encoding="utf-8") as file:
        assert file.read() == "one\ntwo|40x32 200 100 50"


def test_two_formats_in_one_run_and_each_is_filled_where_it_has_gaps(caption):
    for name in "ab":
        plain(f"photos/{name}.png")
    with open("photos/a.txt", "w") as file:
        file.write("by hand")
    both = ("--output_format", "jsonl", "--output_format", "text", "-o", "c.jsonl")
    assert caption("--image_dir", "photos", *both).code == 0
    assert len(lines()) == 2
    with open("photos/a.txt") as file:
        assert file.read() == "by hand"
    assert os.path.exists("photos/b.txt")
    os.remove("photos/b.txt")
    ran = caption("--image_dir", "photos", *both)
    assert "1 captioned, 1 already done" in ran.err
    assert len(lines()) == 2


def test_a_second_run_goes_on_where_the_first_stopped(caption):
    for name in "abc":
        plain(f"photos/{name}.png")
    assert caption("--image_dir", "photos", "-o", "c.jsonl", "--limit", "2").code == 0
    ran = caption("--image_dir", os.path.abspath("photos"), "-o", "c.jsonl", "--opened", "log")
    assert "1 captioned, 2 already done" in ran.err
    assert len(lines()) == 3
    assert os.path.exists("log")


def test_the_model_is_not_loaded_when_all_is_done(caption):
    plain("photos/a.png")
    caption("--image_dir", "photos", "-o", "c.jsonl")
    ran = caption("--image_dir", "photos", "-o", "c.jsonl", "--opened", "log")
    assert ran.code == 0
    assert "0 captioned, 1 already done" in ran.err
    assert not os.path.exists("log")


def test_overwriting_replaces_lines_in_their_places_and_keeps_all_others(caption):
    for name in "ab":
        plain(f"photos/{name}.png")
    kept = '{"video_path": "x.mp4", "caption": "a film",  "other": 1}\n'
    with open("c.jsonl", "w") as file:
        file.write('{"image_path": "photos/a.png", "caption": "old"}\n')
        file.write(kept)
    ran = caption("--image_dir", "photos", "-o", "c.jsonl", "--existing", "overwrite")
    assert ran.code == 0, ran.err
    first, second, third = lines()
    assert first["caption"] == "p|40x32 200 100 50"
    assert second["other"] == 1
    assert third["image_path"] == "photos/b.png"
    with open("c.jsonl") as file:
        assert file.readlines()[1] == kept


def test_a_line_torn_by_a_kill_is_dropped_and_made_again(caption):
    for name in "ab":
        plain(f"photos/{name}.png")
    whole = '{"image_path": "photos/a.png", "caption": "first"}\n'
    with open("c.jsonl", "w") as file:
        file.write(whole + '{"image_path": "photos/b.p')
    assert caption("--image_dir", "photos", "-o", "c.jsonl").code == 0
    assert [line["image_path"] for line in lines()] == ["photos/a.png", "photos/b.png"]
    assert lines()[0]["caption"] == "first"


def test_a_missing_last_line_break_is_added(caption):
    for name in "ab":
        plain(f"photos/{name}.png")
    with open("c.jsonl", "w") as file:
        file.write('{"image_path": "photos/a.png", "caption": "first"}')
    assert caption("--image_dir", "photos", "-o", "c.jsonl").code == 0
    assert len(lines()) == 2


@pytest.mark.parametrize(
    "content",
    ["dear diary", "dear diary\n", '{"a": 1}', '{\n  "a": 1\n}', '{"caption": "x"}\n[]\n', "\0\0"],
)
def test_a_file_that_holds_something_else_is_left_alone(caption, content):
    plain("photos/a.png")
    with open("c.jsonl", "w") as file:
        file.write(content)
    ran = caption("--image_dir", "photos", "-o", "c.jsonl", "--opened", "log")
    assert ran.code == 2
    assert "is no caption" in ran.err
    with open("c.jsonl") as file:
        assert file.read() == content
    assert not os.path.exists("log")


@pytest.mark.parametrize(
    "end",
    [
        '{"image_path":"d/b.png","caption":"says "open", took an hour"}',
        '{"image_path":"d/b.png","caption":"b"}{"image_path":"d/c.png","caption":"c"}',
        '{"image_path":"d/b.png","caption":"b"},',
        "[" * 100_000,
    ],
)
def test_a_last_line_with_a_mistake_is_not_taken_for_a_torn_one(caption, end):
    plain("photos/a.png")
    with open("c.jsonl", "w") as file:
        file.write('{"image_path": "d/a.png", "caption": "a"}\n' + end)
    before = os.path.getsize("c.jsonl")
    ran = caption("--image_dir", "photos", "-o", "c.jsonl")
    assert ran.code == 2
    assert "line 2 is no caption, so the file is left alone" in ran.err
    assert os.path.getsize("c.jsonl") == before


def test_several_lines_for_one_picture_are_kept(caption):
    for name in "ab":
        plain(f"photos/{name}.png")
    doubled = [
        {"image_path": "photos/a.png", "caption": "one", "control_path": "x.png"},
        {"image_path": "photos/a.png", "caption": "two", "control_path": "y.png"},
    ]
    with open("c.jsonl", "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in doubled)
    assert caption("--image_dir", "photos", "-o", "c.jsonl").code == 0
    assert lines()[:2] == doubled
    assert caption("--image_dir", "photos", "-o", "c.jsonl", "--existing=overwrite").code == 0
    first, second, third = lines()
    assert (first["control_path"], second["control_path"]) == ("x.png", "y.png")
    assert first["caption"] == second["caption"] == third["caption"] == "p|40x32 200 100 50"


def test_overwriting_keeps_the_files_permissions_and_lines_with_strange_breaks(caption):
    plain("photos/a.png")
    with open("c.jsonl", "w", newline="") as file:
        file.write('{"image_path": "photos/a.png", "caption": "x"}\r\n')
        file.write('{"caption":\r"one \u2028 line"}\n')
    os.chmod("c.jsonl", 0o600)
    ran = caption("--image_dir", "photos", "-o", "c.jsonl", "--existing=overwrite")
    assert ran.code == 0, ran.err
    assert os.stat("c.jsonl").st_mode & 0o777 == 0o600
    assert sorted(os.listdir()) == ["c.jsonl", "photos"]
    with open("c.jsonl", newline="") as file:
        assert file.read().endswith('{"caption":\r"one \u2028 line"}\n')


def test_a_renewed_file_of_somebody_else_is_found_before_the_model_is_loaded(caption):
    plain("photos/a.png")
    with open("c.jsonl.musubi-new", "w") as file:
        file.write("dear diary\n")
    ran = caption("--image_dir", "photos", "-o", "c.jsonl", "--opened", "log")
    assert ran.code == 2
    assert "c.jsonl.musubi-new: line 1 is no caption" in ran.err
    assert not os.path.exists("log")


def test_resuming_from_another_folder_and_through_a_link_doubles_nothing(caption, monkeypatch):
    for name in "ab":
        plain(f"photos/{name}.png")
    caption("--image_dir", "photos", "-o", "c.jsonl")
    os.symlink("photos", "linked")
    assert "2 already done" in caption("--image_dir", "linked", "-o", "c.jsonl").err
    os.mkdir("elsewhere")
    monkeypatch.chdir("elsewhere")
    assert "2 already done" in caption("--image_dir", "../photos", "-o", "../c.jsonl").err


def test_names_that_are_no_text_and_names_with_line_breaks(caption):
    strange = ["new\nline.png", "smile \N{GRINNING FACE}.png", os.fsdecode(b"raw\xff.png")]
    for name in strange:
        plain(f"photos/{name}")
    ran = caption("--image_dir", "photos", "-o", "c.jsonl")
    assert ran.code == 0, ran.err
    assert sorted(line["image_path"] for line in lines()) == sorted(f"photos/{s}" for s in strange)
    assert "0 captioned, 3 already done" in caption("--image_dir", "photos", "-o", "c.jsonl").err


def test_a_caption_cut_at_the_limit_is_marked_and_counted(caption):
    plain("photos/a.png")
    plain("photos/long.png")
    ran = caption("--image_dir", "photos", "-o", "c.jsonl")
    assert ran.code == 0
    assert "c.jsonl: 2 captioned" in ran.err
    assert "cut off at 1024 tokens: photos/long.png" in ran.err
    assert "1 captioned" not in ran.err
    assert "2 captioned, 1 cut off" in ran.err
    assert "raise --max_new_tokens, and add --existing overwrite" in ran.err
    assert [line.get("stop") for line in lines()] == [None, "length"]


def test_a_pictures_failure_is_listed_and_tried_again_next_time(caption):
    plain("photos/a.png")
    plain("photos/unlucky.png")
    plain("photos/z.png")
    ran = caption("--image_dir", "photos", "-o", "c.jsonl")
    assert ran.code == 3
    assert "failed: photos/unlucky.png: it was not my day" in ran.err
    assert len(lines()) == 2
    assert "2 already done" in caption("--image_dir", "photos", "-o", "c.jsonl").err


def test_a_picture_without_an_answer_is_a_failure(caption):
    for name in "abc":
        plain(f"photos/{name}.png")
    ran = caption("--image_dir", "photos", "-o", "c.jsonl", "--silent_about", "b.png")
    assert ran.code == 3
    assert "photos/b.png: backend eye gave no answer for it" in ran.err
    assert len(lines()) == 2


def test_the_outcome_for_a_program(caption):
    plain("photos/a.png")
    plain("photos/unlucky.png")
    ran = caption("--image_dir", "photos", "-o", "c.jsonl", "--json")
    outcome = json.loads(ran.out)
    assert ran.code == 3
    assert outcome["captioned"] == 1
    assert outcome["failed"] == [{"path": "photos/unlucky.png", "error": "it was not my day"}]
    assert outcome["outputs"] == [{"format": "jsonl", "target": "c.jsonl"}]


def test_a_dry_run_writes_and_loads_nothing(caption):
    plain("photos/a.png", (400, 300))
    plain("photos/b.png")
    with open("c.jsonl", "w") as file:
        file.write('{"image_path": "photos/b.png", "caption": "x"}\n{"image_pa')
    dry = ("--image_dir", "photos", "-o", "c.jsonl", "--opened", "log", "--dry_run")
    ran = caption(*dry)
    assert ran.code == 0, ran.err
    assert "2 in photos, 1 already done and kept, 1 to caption" in ran.out
    assert "7500  400 x 300  photos/a.png" in ran.out
    plan = json.loads(caption(*dry, "--json").out)
    assert plan["files"][0]["visual_tokens"] == 7500
    assert plan["to_do"] == 1
    assert os.path.getsize("c.jsonl") == 57
    assert not os.path.exists("log")


def test_settings_come_from_the_file_too(caption):
    plain("photos/a.png")
    with open("musubi.toml", "w") as file:
        file.write('[caption.eye]\nimage_dir = "photos"\noutput_file = "c.jsonl"\nmax_size = 64\n')
    ran = caption("--dry_run")
    assert ran.code == 0, ran.err
    assert "1 to caption" in ran.out
