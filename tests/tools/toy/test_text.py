from __future__ import annotations

from pathlib import Path

from transformers import CLIPTokenizer

from nitrodistill.toy import scenes
from tools.toy.text import (
    MAX_TOKENS,
    TEXT_WIDTH,
    make_text_encoder,
    make_tokenizer,
    tokenize,
)


def test_every_word_is_one_token_and_its_own():
    tokenizer = make_tokenizer()
    tokens = {word: tuple(tokenizer.tokenize(word)) for word in scenes.WORDS}
    assert tokens == {word: (f"{word}</w>",) for word in scenes.WORDS}


def test_captions_have_start_eight_words_end_and_padding():
    tokenizer = make_tokenizer()
    ids = tokenize(tokenizer, scenes.captions())
    assert ids.shape == (330, MAX_TOKENS)
    assert (ids[:, 0] == tokenizer.bos_token_id).all()
    assert (ids[:, 9:] == tokenizer.eos_token_id).all()
    assert (ids[:, 1:9] != tokenizer.eos_token_id).all()
    assert len({tuple(row) for row in ids.tolist()}) == 330


def test_unknown_words_are_spelt_out():
    assert make_tokenizer().tokenize("zq") == ["z", "q</w>"]


def test_a_saved_tokenizer_reads_the_same(tmp_path: Path):
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert (tokenize(again, scenes.captions()) == tokenize(tokenizer, scenes.captions())).all()


def test_text_encoder_has_the_stated_size():
    tokenizer = make_tokenizer()
    encoder = make_text_encoder(tokenizer)
    assert sum(p.numel() for p in encoder.parameters()) == 75_584
    states = encoder(
        tokenize(tokenizer, ["", "a small red ring on a gray background"])
    ).last_hidden_state
    assert states.shape == (2, MAX_TOKENS, TEXT_WIDTH)
