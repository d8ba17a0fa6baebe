"""Mutants of recipes and of unit files."""

from __future__ import annotations

import re

import yaml
from fuzz.mutations import mutated_bytes, mutated_json, paths_of
from fuzz.outcomes import WrongContentError

from mpochain.units import Listing, WordNet
from mpochain.workflows.recipe import Recipe
from mpochain.workflows.recipe_file import read_recipe

_RECIPES = (
    """
model: small
method: svd
budget: 60%
calibration: {text: a.txt, windows: 4, window: 32}
evaluation: {text: b.txt, windows: 3, window: 32, stride: 16}
targets: ['re:layers.*', head]
ignore: [lm_head]
settings: {weighted: true}
prompts: [once, twice]
seed: 3
""",
    """
model: dense
finetune:
  text: a.txt
  windows: 8
  window: 64
  training: {steps: 300, batch_size: 8, accumulate: 2, learning_rate: 1.0e-4, warmup_steps: 20, distillation: 0.5}
stages:
  - name: embedding
    groups:
      - {targets: [transformer.wte], factors: [[1, 2], [1, 2]]}
  - name: units
    groups:
      - {targets: [transformer.wte], units: {listing: units.tsv}, budget: 0.5}
  - name: mlps
    training: {trainable: [transformer.wte]}
    groups:
      - {targets: ['re:mlp'], factors: [[4, 2]], terms: 4, permuted: false}
""",
)
_LISTING = "undo\tun do\nredo\tre do\nuntie\tun tie\n\nwörter\twort er\n"
_WORDNET = {
    "index.noun": "dog n 1 1 @ 1 1 00000002\nanimal n 1 0 1 0 00000001\n",
    "data.noun": "00000001 03 n 01 animal 0 000 | lives\n00000002 05 n 01 dog 0 001 @ 00000001 n 0000 | barks\n",
    "index.verb": "run v 1 1 @ 1 0 00000003\n",
    "data.verb": "00000003 38 v 01 run 0 000 01 + 02 00 | moves\n",
    "index.adj": "big a 1 1 & 1 0 00000004\n",
    "data.adj": "00000004 00 s 01 big(a) 0 001 & 00000005 a 0000 | large\n00000005 00 a 01 large 0 000 | not small\n",
    "index.adv": "",
    "data.adv": "",
    "noun.exc": "geese goose\n",
}


class Recipes:
    """Recipes in a folder."""

    def __init__(self, folder):
        self.file = folder / "recipe.yaml"
        self.recipes = [yaml.safe_load(text) for text in _RECIPES]

    def mutant(self, random):
        """Write a mutant, or a valid file without a generator; return reader, names of files and of fields."""
        if random is None:
            return self._read_valid, (self.file,), []
        data, names = random.choice(self.recipes), []
        if random.random() < 0.7:
            data, names = mutated_json(random, data)
            text = yaml.safe_dump(data, allow_unicode=random.random() < 0.5).encode("utf-8", "surrogatepass")
        else:
            text = mutated_bytes(random, random.choice(_RECIPES).encode())
        self.file.write_bytes(text)
        words = re.findall(r"\w{3,}", text.decode("utf-8", "replace"))
        return self._read, (self.file,), [*names, *words, *(str(key) for path in paths_of(data) for key in path)]

    def _read_valid(self):
        for text in _RECIPES:
            self.file.write_text(text, encoding="utf-8")
            self._read()
        return "same"

    def _read(self):
        recipe = read_recipe(self.file)
        if Recipe.model_validate(recipe.model_dump(exclude_unset=True)) != recipe:
            raise WrongContentError("the recipe is not the one that its own values describe")
        return "same"


class Listings:
    """Files that list the units of words."""

    def __init__(self, folder):
        self.file = folder / "units.tsv"

    def mutant(self, random):
        """Write a mutant, or a valid file without a generator; return reader, names of files and of fields."""
        data = _LISTING.encode()
        self.file.write_bytes(data if random is None else mutated_bytes(random, data))
        return self._read, (self.file,), [":"]

    def _read(self):
        listing = Listing(self.file)
        words = {}
        for line in self.file.read_bytes().decode("utf-8-sig").split("\n"):
            if line.strip():
                word, _, units = line.rstrip("\r").partition("\t")
                words[word] = tuple(units.split())
        if any(listing(word) != units for word, units in words.items()) or len(listing) != len(words):
            raise WrongContentError("the listing is not what the lines say")
        return "same"


class WordNets:
    """Folders with the files of WordNet."""

    def __init__(self, folder):
        self.folder = folder / "wordnet"
        self.folder.mkdir()

    def mutant(self, random):
        """Write a mutant, or a valid file without a generator; return reader, names of files and of fields."""
        changed = None if random is None else random.choice([name for name, text in _WORDNET.items() if text])
        for name, text in _WORDNET.items():
            data = mutated_bytes(random, text.encode()) if name == changed else text.encode()
            (self.folder / name).write_bytes(data)
        if changed is not None and random.random() < 0.02:
            (self.folder / changed).unlink()
        return self._read, (self.folder,), [":"]

    def _read(self):
        wordnet = WordNet(self.folder, senses=2)
        for word in ("dogs", "geese", "run", "big", "cat", ""):
            if not all(isinstance(unit, str) and unit for unit in wordnet(word)):
                raise WrongContentError(f"the units of {word!r} are {wordnet(word)!r}")
        return "same"
