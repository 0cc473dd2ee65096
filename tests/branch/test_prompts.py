"""The cache of prompts: what it keeps, and what it forgets."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from copd.branch.prompts import PromptCache
from copd.domains.digits import DigitsDomain
from copd.types import Image, Message, ProblemId


def test_the_book_forgets_the_oldest_when_full(make_engine):
    engine = make_engine("a")
    cache = engine._branches["a"]._prompt_cache
    names = [ProblemId("image", "train", i) for i in range(4)]
    largest = max(prompt.num_bytes for prompt in cache.prompts(names))
    small = PromptCache(cache.domains, cache._render, max_bytes=2 * largest)
    first = small.prompts(names)
    assert len(first) == 4
    assert 1 <= len(small._entries) <= 3
    assert small.prompts(names[-1:])[0] is first[-1]
    assert small.prompts(names[:1])[0] is not first[0]
    few = PromptCache(cache.domains, cache._render, size=2)
    few.prompts(names)
    assert list(few._entries) == names[-2:]


def test_a_verifier_renders_nothing(make_engine):
    cache = make_engine("a")._branches["a"]._prompt_cache
    rendered = []

    def render(conversations):
        rendered.extend(conversations)
        return cache._render(conversations)

    small = PromptCache(cache.domains, render, size=1)
    names = [ProblemId("image", "train", i) for i in range(2)]
    small.prompts(names)
    answers = [cache.problem(name).answer for name in names]
    assert [small.problem(name).answer for name in names] == answers
    assert small.verify(names[0], f"#{answers[0]}") == 1.0
    assert len(rendered) == 2


def test_a_prompt_that_is_asked_for_twice_is_rendered_once(make_engine):
    cache = make_engine("a")._branches["a"]._prompt_cache
    rendered = []

    def render(conversations):
        rendered.append(len(conversations))
        return cache._render(conversations)

    small = PromptCache(cache.domains, render, size=20)
    names = [ProblemId("image", "train", i % 18) for i in range(40)]
    prompts = small.prompts(names)
    assert rendered == [16, 2]
    assert prompts[0] is prompts[18]
    for name, prompt in zip(names, prompts, strict=True):
        assert torch.equal(prompt.media["pixel_values"], pixels_of(cache, name))
    small.prompts([names[0], ProblemId("image", "train", 18), ProblemId("image", "train", 19)])
    assert rendered == [16, 2, 2]
    small.prompts([ProblemId("image", "train", 20)])  # the one not asked for longest leaves
    assert {names[0], names[5]} <= small._entries.keys()
    assert names[4] not in small._entries


def pixels_of(cache, name):
    [prompt] = cache._render([cache.domains[name.domain].problem(name.split, name.index).messages])
    return prompt.media["pixel_values"]


def test_a_prompt_that_cannot_be_rendered_says_which(make_engine):
    cache = make_engine("a")._branches["a"]._prompt_cache

    class Odd(DigitsDomain):
        def problem(self, split, index):
            problem = super().problem(split, index)
            if index != 2:
                return problem
            grey = Image(np.zeros((16, 16), dtype=np.uint8))
            return replace(problem, messages=(Message("user", (grey,)),))

    domains = {name: Odd(**vars(domain)) for name, domain in cache.domains.items()}
    names = [ProblemId("image", "train", i) for i in range(4)]
    with pytest.raises(ValueError, match="image pixels must be RGB") as caught:
        PromptCache(domains, cache._render).prompts(names)
    assert caught.value.__notes__ == ["raised when rendering train problem 2 of domain 'image'"]


def test_a_verifier_decodes_nothing(make_engine):
    cache = make_engine("a")._branches["a"]._prompt_cache
    asked = []

    class Counting(DigitsDomain):
        def problem(self, split, index):
            asked.append(index)
            return super().problem(split, index)

    domains = {name: Counting(**vars(domain)) for name, domain in cache.domains.items()}
    small = PromptCache(domains, cache._render, size=1)
    names = [ProblemId("image", "train", i) for i in range(3)]
    small.prompts(names)
    answers = [small.problem(name).answer for name in names]
    assert [small.verify(n, f"#{a}") for n, a in zip(names, answers, strict=True)] == [1.0] * 3
    assert asked == [0, 1, 2]
    assert small.problem(names[0]).messages == ()
