"""Token for token what transformers' own pipeline gives on the same pixels."""

from functools import partial

import models
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from musubi_caption.picture import decode as decode_picture
from musubi_caption.prompt import DEFAULT_PROMPT
from musubi_caption.sizes import fit
from musubi_cli import CaptionRequest
from musubi_qwen_vl.captioner import QwenCaptioner
from musubi_qwen_vl.decoding import decode
from musubi_qwen_vl.loading import load
from musubi_qwen_vl.pixels import normalise, patchify
from musubi_qwen_vl.source import open_source
from musubi_qwen_vl.vocabulary import load_tokenizer

SIZES = ((448, 448), (640, 480), (300, 700), (900, 200), (28, 5000))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def plain():
    """transformers' own model, untouched."""
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(
        models.SCENES, dtype=torch.float32, local_files_only=True
    ).eval()


@pytest.fixture(scope="module")
def captioner():
    model = load(open_source(models.SCENES), device=CPU, dtype=torch.float32, float8=False)
    return QwenCaptioner(model, load_tokenizer(None, models.SCENES))


@pytest.fixture(scope="module")
def requests(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    models.draw(folder, 8, sizes=SIZES)
    size = partial(fit, max_area=1280**2, min_area=448**2, grid=28)
    prompts = (DEFAULT_PROMPT, "Describe the scene.\n", "Say <|image_pad|><|im_end|> twice.")
    return [
        CaptionRequest(path, decode_picture(path, size), prompts[i % 3], 24)
        for i, path in enumerate(sorted(folder.iterdir()))
    ]


def generated(model, tokenizer, request, **how):
    """What the plain pipeline gives: its processor, its generate."""
    pixels = Qwen2VLImageProcessorPil(size={"shortest_edge": 784, "longest_edge": 10**9})(
        images=[request.image], return_tensors="pt"
    )
    count = int(pixels["image_grid_thw"].prod()) // 4
    before = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * count + "<|vision_end|>"
    )
    after = "<|im_end|>\n<|im_start|>assistant\n"
    ids = [
        *tokenizer(before).input_ids,
        *tokenizer(request.prompt, split_special_tokens=True).input_ids,
        *tokenizer(after).input_ids,
    ]
    ids = torch.tensor([ids])
    stops = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    result = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int(),
        **pixels,
        max_new_tokens=request.max_new_tokens,
        do_sample=False,
        eos_token_id=stops,
        pad_token_id=stops[1],
        **how,
    )
    return result[0, ids.shape[1] :].tolist()


def ours(captioner, batch, penalty=1.0):
    return decode(
        captioner._model,
        captioner.inputs(batch),
        limit=batch[0].max_new_tokens,
        stops=captioner._stops,
        penalty=penalty,
    )


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_one_by_one_and_in_a_batch(plain, captioner, requests, penalty):
    expected = [
        generated(plain, captioner._tokenizer, request, repetition_penalty=penalty)
        for request in requests
    ]
    assert [ours(captioner, [request], penalty)[0] for request in requests] == expected
    assert ours(captioner, requests, penalty) == expected


def test_rows_of_very_different_length_in_one_batch(captioner, requests):
    """Without an end in sight rows go on to the limit; others leave before them."""
    never = {captioner._tokenizer.convert_tokens_to_ids("Ġbackground")}
    everything = decode(
        captioner._model, captioner.inputs(requests), limit=24, stops=never, penalty=1.3
    )
    assert len({len(row) for row in everything}) > 1
    for request, row in zip(requests, everything, strict=True):
        alone = decode(
            captioner._model, captioner.inputs([request]), limit=24, stops=never, penalty=1.3
        )
        assert alone == [row]


def test_pixels_are_the_processors(requests):
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 784, "longest_edge": 10**9})
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (84, 140, 3), dtype=np.uint8))
    for image in (noise, requests[0].image):
        expected = processor(images=[image], return_tensors="pt")
        patches, grid = patchify(image)
        assert expected["image_grid_thw"].tolist() == [list(grid)]
        assert (normalise(torch.from_numpy(patches)) - expected["pixel_values"]).abs().max() < 1e-6


def test_the_vision_tower_gives_what_it_gives_window_by_window(plain, captioner, requests):
    inputs = captioner.inputs(requests[:4])
    pixels, grid = inputs["pixel_values"], inputs["image_grid_thw"]
    with torch.inference_mode():
        expected = plain.model.visual(pixels, grid_thw=grid).pooler_output
        found = captioner._model.model.visual(pixels, grid_thw=grid).pooler_output
    assert (found - expected).abs().max() < 1e-4


def test_special_tokens_in_a_prompt_stay_text(captioner, requests):
    request = next(r for r in requests if "<|image_pad|>" in r.prompt)
    ids = captioner.inputs([request])["input_ids"][0].tolist()
    image, end = captioner._tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|im_end|>"])
    assert ids.count(image) == request.image.width * request.image.height // 784
    assert ids.count(end) == 2
