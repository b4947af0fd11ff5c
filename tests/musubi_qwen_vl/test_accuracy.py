"""The test model really captions: held-out scenes, at the sizes the command gives it."""

import json
import random

import models
from commands import run

COUNT = 80


def test_nine_in_ten_held_out_scenes_are_right_word_for_word(tmp_path):
    rng = random.Random(3)
    sizes = [(round(560 * a**0.5), round(560 / a**0.5)) for a in (0.5, 0.75, 1, 1.33, 1.78, 2)]
    sizes += [(64, 64), (160, 120), (512, 512), (448, 448), (rng.randint(450, 620), 500)]
    drawn = models.draw(tmp_path / "photos", COUNT, seed=11, sizes=sizes)
    ran = run(
        *("caption", "qwen-vl", "--image_dir", tmp_path / "photos"),
        *("--model_path", models.SCENES, "-o", tmp_path / "c.jsonl"),
    )
    assert ran.code == 0, ran.err
    lines = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    wrong = {
        line["image_path"]: (line["caption"], drawn[line["image_path"][-7:]])
        for line in lines
        if line["caption"] != drawn[line["image_path"][-7:]]
    }
    assert len(lines) == COUNT
    assert len(wrong) <= COUNT * 0.1, wrong
