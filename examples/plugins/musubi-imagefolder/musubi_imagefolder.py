"""An output format for musubi: the `metadata.jsonl` of Hugging Face's imagefolder."""

import click

from musubi_cli import FormatSpec, hookimpl, json_lines


def open_metadata(folder, *, caption_column):
    """`metadata.jsonl` in the folder of the pictures, with their paths relative to it."""
    target = folder / "metadata.jsonl"
    return json_lines(target, picture="file_name", caption=caption_column, beside=True)


@hookimpl
def musubi_caption_formats():
    """Adds `--output_format imagefolder`."""
    column = click.Option(["--caption_column"], default="text", help="The captions' name.")
    about = "A metadata.jsonl among the pictures, as Hugging Face's datasets loads it."
    how = {"open": open_metadata, "target": "folder", "options": (column,)}
    return [FormatSpec("imagefolder", help=about, **how)]
