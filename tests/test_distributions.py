"""Plugins as strangers meet them: wheels, installed with pip into a fresh environment, used, gone.

The environment is made once and lends itself to one plugin after another.
"""

import ast
import json
import re
import shlex
import shutil

import pytest
from environments import SAMPLES


def completions(environment, typed):
    """What the shell offers after Tab."""
    words = shlex.split(typed)
    ran = environment.run(
        "musubi",
        _MUSUBI_COMPLETE="bash_complete",
        COMP_WORDS=typed,
        COMP_CWORD=str(len(words) - 1),
    )
    return [line.split(",", 1)[1] for line in ran.out.split()]


def settings(environment, text):
    (environment.folder / "musubi.toml").write_text(text)


def listed(environment, name):
    """A plugin's line in `musubi plugins`, without the table's spaces."""
    lines = environment.run("musubi", "plugins").out.splitlines()
    return next((" ".join(line.split()) for line in lines if line.split()[:1] == [name]), None)


def readme_commands(name):
    text = (SAMPLES / name / "README.md").read_text()
    block = re.search(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)[1]
    return [line for line in block.splitlines() if line.startswith("musubi ")]


def own_tests_pass(environment, project):
    copy = environment.folder / "tests" / project.name
    shutil.copytree(project, copy)
    ran = environment.run("pytest", "-q", "-W", "error", cwd=copy)
    assert ran.code == 0, ran.out
    return int(re.search(r"(\d+) passed", ran.out)[1])


MERGE = ("musubi", "merge", "ema", "run/toy-000001.safetensors", "run/toy-000002.safetensors")
MERGE = (*MERGE, "run/toy-000003.safetensors", "--no_sort", "--output_file")


def test_a_schedule(environment):
    def rates(*options, **env):
        ran = environment.run(*MERGE, "x.safetensors", "--dry_run", "--json", *options, **env)
        assert ran.code == 0, ran.err
        return [file["decay_rate"] for file in json.loads(ran.out)["files"]][1:]

    with environment.plugin("musubi-cosine"):
        assert listed(environment, "cosine") == "cosine 1.0 musubi-cosine ok schedule cosine"
        helped = environment.run("musubi", "merge", "ema", "--help").out
        assert "Schedule cosine: Rise along half a cosine" in helped
        assert "--cosine_end" in helped
        assert completions(environment, "musubi merge ema --cos") == ["--cosine_end"]
        assert "cosine" in completions(environment, "musubi merge ema --schedule co")
        assert rates("--cosine_end", "0.8") == pytest.approx([0.4, 0.8])
        assert rates("--schedule", "cosine") == pytest.approx([0.45, 0.9])
        assert rates(MUSUBI_MERGE_EMA_COSINE_END="0.5") == pytest.approx([0.25, 0.5])
        settings(environment, "[merge.ema]\ncosine-end = 0.6\n")
        assert rates() == pytest.approx([0.3, 0.6])
        wrong = environment.run(*MERGE, "x.safetensors", "--cosine_end", "1.5")
        assert (wrong.code, "--cosine_end" in wrong.err) == (2, True)

        for rate, name in (("0.8", "a"), ("0.9", "b")):
            ran = environment.run(*MERGE, f"{name}.safetensors", "--cosine_end", rate)
            assert ran.code == 0, ran.err
        written = [(environment.folder / f"{name}.safetensors").read_bytes() for name in "ab"]
        assert written[0] != written[1]
        for line in readme_commands("musubi-cosine"):
            ran = environment.run("bash", "-c", line)
            assert ran.code == 0, ran.err
        (environment.folder / "out.safetensors").unlink()
        assert own_tests_pass(environment, SAMPLES / "musubi-cosine") == 5

    gone = environment.run(*MERGE, "x.safetensors", "--dry_run")
    assert gone.code == 2
    assert "'cosine-end' is no option of merge ema" in gone.err
    (environment.folder / "musubi.toml").unlink()
    assert listed(environment, "cosine") is None
    assert "cosine" not in environment.run("musubi", "merge", "ema", "--help").out
    assert completions(environment, "musubi merge ema --cos") == []


def test_a_backend(environment):
    def captions(*options):
        output = environment.folder / "captions.jsonl"
        output.unlink(missing_ok=True)
        base = ("musubi", "caption", "palette", "--image_dir", "photos", "--output_file", output)
        ran = environment.run(*base, *options)
        assert ran.code == 0, ran.err
        return [json.loads(line)["caption"] for line in output.read_text().splitlines()]

    with environment.plugin("musubi-palette"):
        line = "palette 1.0 musubi-palette ok caption palette"
        assert listed(environment, "palette") == line
        assert "palette" in environment.run("musubi", "caption", "--help").out
        assert "--colours" in environment.run("musubi", "caption", "palette", "--help").out
        assert completions(environment, "musubi caption pal") == ["palette"]
        assert completions(environment, "musubi caption palette --col") == ["--colours"]
        first, *others = captions()
        assert first == (
            "a picture of 600 by 400 pixels, mostly gray and red, brightest at the middle right"
        )
        assert len({first, *others}) == 6
        assert captions("--colours", "1")[0].startswith(
            "a picture of 600 by 400 pixels, mostly gray,"
        )
        settings(environment, "[caption.palette]\ncolours = 3\n")
        assert "mostly gray and red and yellow," in captions()[0]
        for command in readme_commands("musubi-palette"):
            ran = environment.run("bash", "-c", command)
            assert ran.code == 0, ran.err
        assert own_tests_pass(environment, SAMPLES / "musubi-palette") == 5

    gone = environment.run("musubi", "caption", "palette", "--image_dir", "photos")
    assert gone.code == 2
    assert "No such command 'palette'" in gone.err
    (environment.folder / "musubi.toml").unlink()
    assert listed(environment, "palette") is None
    assert completions(environment, "musubi caption pal") == []


def test_a_format(environment):
    def written(*options):
        base = ("musubi", "caption", "palette", "--image_dir", "photos", "--output_format")
        ran = environment.run(*base, "imagefolder", *options)
        assert ran.code == 0, ran.err
        metadata = environment.folder / "photos" / "metadata.jsonl"
        lines = [json.loads(line) for line in metadata.read_text().splitlines()]
        metadata.unlink()
        return lines

    with environment.plugin("musubi-imagefolder", "musubi-palette"):
        line = "imagefolder 1.0 musubi-imagefolder ok format imagefolder"
        assert listed(environment, "imagefolder") == line
        helped = environment.run("musubi", "caption", "palette", "--help").out
        assert "Format imagefolder" in helped
        assert "--caption_column" in helped
        typed = "musubi caption palette --output_format im"
        assert completions(environment, typed) == ["imagefolder"]
        assert completions(environment, "musubi caption palette --capt") == [
            "--caption_extension",
            "--caption_column",
        ]
        names = sorted(path.name for path in (environment.folder / "photos").iterdir())
        assert [line["file_name"] for line in written()] == names
        assert {*written("--caption_column", "prompt")[0]} == {"file_name", "prompt"}
        settings(environment, '[caption.palette]\ncaption_column = "tags"\n')
        assert {*written()[0]} == {"file_name", "tags"}
        assert own_tests_pass(environment, SAMPLES / "musubi-imagefolder") == 4

        environment.pip("uninstall", "-y", "musubi-imagefolder")
        base = ("musubi", "caption", "palette", "--image_dir", "photos", "--output_format")
        (environment.folder / "musubi.toml").unlink()
        gone = environment.run(*base, "imagefolder")
        assert gone.code == 2
        assert "'imagefolder' is not one of 'jsonl', 'text'" in gone.err
        assert listed(environment, "imagefolder") is None
        assert completions(environment, typed) == []


LINES = {"musubi-cosine": 10, "musubi-palette": 20, "musubi-imagefolder": 20}


@pytest.mark.parametrize("name", LINES)
def test_a_plugin_costs_its_author_few_lines(name):
    source = (SAMPLES / name / f"{name.replace('-', '_')}.py").read_text()
    documented = (ast.Module, ast.FunctionDef)
    described = [n.body[0] for n in ast.walk(ast.parse(source)) if isinstance(n, documented)]
    prose = {line for d in described for line in range(d.lineno, d.end_lineno + 1)}
    lines = enumerate(source.splitlines(), 1)
    assert len([n for n, line in lines if line.strip() and n not in prose]) <= LINES[name]


@pytest.mark.parametrize("kind", ["schedule", "backend", "format"])
def test_a_new_project_installs_and_passes_its_own_tests(kind, environment, tmp_path):
    name = f"night-{kind}"
    ran = environment.run("musubi", "plugins", "new", name, "--kind", kind, cwd=tmp_path)
    assert (ran.code, ran.out) == (0, f"musubi-{name}\n"), ran.err
    project = tmp_path / f"musubi-{name}"
    environment.pip("install", "--no-build-isolation", "-e", ".[test]", cwd=project)
    try:
        assert own_tests_pass(environment, project) == 3
        readme = (project / "README.md").read_text()
        (usage,) = re.findall(r"^musubi (?:merge|caption).*$", readme, re.MULTILINE)
        usage = usage.replace("*.safetensors", "run/*.safetensors").replace("BACKEND", "qwen-vl")
        ran = environment.run("bash", "-c", usage)
        if kind == "format":  # no captioner without torch is there; it gets as far as that
            assert "Missing option '--model_path'" in ran.err
        else:
            assert ran.code == 0, ran.err
        again = environment.run("musubi", "plugins", "new", name, "--kind", kind, cwd=tmp_path)
        assert again.code == 2
        assert f"the name {name} is taken by plugin {name} (musubi-{name})" in again.err
    finally:
        environment.pip("uninstall", "-y", f"musubi-{name}")
    there = environment.run("musubi", "plugins", "new", name, "--kind", kind, cwd=tmp_path)
    assert "exists already" in there.err
