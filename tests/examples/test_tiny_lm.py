"""The example's language model: a plain checkpoint that has learned something and can be spoken to."""

from __future__ import annotations

import torch
import transformers


def test_the_checkpoint_is_a_plain_one_that_speaks_like_its_play(tiny_language):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_language.folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_language.folder)
    prompt = tokenizer("SAILOR:\n", return_tensors="pt").input_ids
    said = tokenizer.decode(model.generate(prompt, max_new_tokens=24, do_sample=False)[0, prompt.shape[1] :])
    words = {word for speech in tiny_language.speeches("SAILOR") for word in speech.split()}
    assert len([word for word in said.split() if word in words]) >= 4, said


def test_text_and_its_tokens_are_the_same_thing(tiny_language):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_language.folder)
    for text in ("Aye, the tide turns!", "naïve — 鳥", "  two  spaces ,and a comma\n\n"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_conversation_ends_where_the_assistant_ends(tiny_language):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_language.folder)
    messages = [{"role": "user", "content": "Who goes?"}, {"role": "assistant", "content": "I."}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "USER:\nWho goes?\n\nASSISTANT:\nI.</s>"
    opened = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert text.startswith(opened)


def test_the_same_seed_trains_the_same_model(tmp_path, tiny_language):
    from importlib.util import module_from_spec, spec_from_file_location
    from pathlib import Path

    spec = spec_from_file_location("train", Path(__file__).parents[2] / "examples" / "tiny_lm" / "train.py")
    training = module_from_spec(spec)
    spec.loader.exec_module(training)
    small = {"steps": 3, "batch": 2, "length": 16, "vocabulary": 300, "context": 32, "shape": training.SMALL}
    for name in ("one", "two"):
        training.train_lm(tmp_path / name, tiny_language.text[:20_000], **small)
    weights = [transformers.AutoModelForCausalLM.from_pretrained(tmp_path / n).state_dict() for n in ("one", "two")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
