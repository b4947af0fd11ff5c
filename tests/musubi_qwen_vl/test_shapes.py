"""The configuration is read off the shapes, 3B to 72B, and a file with nothing beside it runs."""

import json

import models
import pytest
import torch
from accelerate import init_empty_weights
from commands import run
from safetensors.torch import save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from musubi_qwen_vl.contents import canonical
from musubi_qwen_vl.shapes import infer_config, size_name
from musubi_qwen_vl.vocabulary import packaged_tokenizer

PUBLISHED = {
    "3B": (2048, 36, 16, 2, 11008, True),
    "7B": (3584, 28, 28, 4, 18944, False),
    "32B": (5120, 64, 40, 8, 27648, False),
    "72B": (8192, 80, 64, 8, 29568, False),
}


def config_of(hidden, layers, heads, kv, intermediate, tied):
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 152064,
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv,
            "intermediate_size": intermediate,
            "rms_norm_eps": 1e-6,
        },
        vision_config={"hidden_size": 1280, "out_hidden_size": hidden, "intermediate_size": 3420},
        tie_word_embeddings=tied,
    )


def shapes_of(config):
    with init_empty_weights():
        model = Qwen2_5_VLForConditionalGeneration(config)
    return {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes(size):
    shapes = shapes_of(config_of(*PUBLISHED[size]))
    if PUBLISHED[size][-1]:
        shapes.pop("lm_head.weight", None)
    assert size_name(shapes) == size
    inferred = Qwen2_5_VLConfig.from_dict(infer_config(shapes))
    again = shapes_of(inferred)
    if PUBLISHED[size][-1]:
        again.pop("lm_head.weight", None)
    assert again == shapes
    assert inferred.vision_config.fullatt_block_indexes == [7, 15, 23, 31]
    text = inferred.text_config
    assert text.rope_parameters["mrope_section"] == [16, 24, 24]
    assert text.rope_parameters["rope_theta"] == 1e6
    assert inferred.tie_word_embeddings is PUBLISHED[size][-1]


FLAT = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "image_token_id": 151655,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "sliding_window": 32768,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 152064,
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 3584,
        "spatial_patch_size": 14,
        "tokens_per_second": 2,
    },
}
"""What the published 7B model's config.json says, in the flat form of its time."""


def test_the_published_configuration_and_the_inferred_one_agree():
    published = Qwen2_5_VLConfig.from_dict(FLAT)
    inferred = Qwen2_5_VLConfig.from_dict(infer_config(shapes_of(published)))
    assert shapes_of(inferred) == shapes_of(published)
    for part in ("text_config", "vision_config"):
        one, other = (getattr(config, part).to_dict() for config in (published, inferred))
        one["rope_parameters"].pop("type", None)  # the old name of rope_type
        matters = {"rope_parameters", "rms_norm_eps", "fullatt_block_indexes", "window_size"}
        for name in matters & {*one}:
            assert one[name] == other[name], name
    assert published.image_token_id == inferred.image_token_id


def test_names_of_both_styles_are_brought_to_one():
    for name in models.tensors():
        assert canonical(name) == canonical(models.new(name)) == models.new(name)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    """A model of the real proportions, random and thin, as one file with nothing beside it."""
    torch.manual_seed(0)
    config = config_of(128, 2, 1, 1, 64, False)
    config.vision_config.hidden_size = 64
    config.vision_config.intermediate_size = 64
    config.vision_config.depth = 9
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    path = tmp_path_factory.mktemp("random") / "qwen_2.5_vl.safetensors"
    save_file({models.old(n): p.detach().bfloat16() for n, p in model.named_parameters()}, path)
    return path


def test_a_file_with_nothing_beside_it_is_captioned_with(random_model, tmp_path):
    models.draw(tmp_path / "photos", 2)
    ran = run(
        *("caption", "qwen-vl", "--image_dir", tmp_path / "photos", "--model_path", random_model),
        *("-o", tmp_path / "c.jsonl", "--max_new_tokens", "8", "--max_size", "448"),
    )
    assert ran.code == 0, ran.err
    lines = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert [line["stop"] for line in lines] == ["length"] * 2
    assert all(line["caption"] for line in lines)


def test_the_packaged_tokenizer_is_qwens():
    words = packaged_tokenizer()
    assert words.encode("user\nassistant") == [872, 198, 77091]
    ids = words.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>", "<|image_pad|>"])
    assert ids == [151643, 151645, 151655]
    assert words.encode("<|im_start|>system\n") == [151644, 8948, 198]
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    from musubi_qwen_vl.vocabulary import vocabulary_file

    pattern = words.backend_tokenizer.pre_tokenizer
    text = "Hello, wörld! 日本語 naïve  \n\n 12345 a_b c'est I'll see\tthe 👩‍👩‍👧 at 7:30."
    pieces = [piece for piece, _ in pattern.pre_tokenize_str(text)]
    assert len(pieces) > 20
    reference = tiktoken.Encoding(
        "qwen",
        pat_str=r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"""
        r"""| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
        mergeable_ranks=load_tiktoken_bpe(str(vocabulary_file())),
        special_tokens={},
    )
    assert words.encode(text) == reference.encode(text)
