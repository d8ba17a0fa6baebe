"""A language model small enough for tests, as a folder of transformers."""

from __future__ import annotations

import torch
import transformers
from texts import prose
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

VOCABULARY = 60


def write_model(folder, *, tied=True, layers=2, seed=0):
    """A random Llama with a tokenizer of whole words."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=VOCABULARY, special_tokens=["?"], show_progress=False)
    tokenizer.train_from_iterator([prose(4000)], trainer)
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?")
    wrapped.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=layers,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.3,  # so that its predictions are far from certain
    )
    torch.manual_seed(seed)
    transformers.LlamaForCausalLM(config).eval().save_pretrained(folder)
    return folder
