import json

import pytest
from musubi_cosine import musubi_ema_schedules

from musubi_cli.testing import check_plugin, check_schedule, run, write_checkpoints


def test_it_is_installed_and_loads():
    check_plugin("cosine")


@pytest.mark.parametrize("end", [0.0, 0.9, 1.0])
def test_it_keeps_the_contract(end):
    (spec,) = musubi_ema_schedules()
    check_schedule(spec, cosine_end=end)


def test_the_rates_of_a_merge(tmp_path):
    files = write_checkpoints(tmp_path, 5)
    output = tmp_path / "out.safetensors"
    ran = run("merge", "ema", *files, "-o", output, "--cosine_end", 0.8, "--dry_run", "--json")
    assert ran.code == 0, ran.err
    rates = [file["decay_rate"] for file in json.loads(ran.out)["files"]]
    assert rates[1:] == pytest.approx([0.117157, 0.4, 0.682843, 0.8], abs=1e-6)
