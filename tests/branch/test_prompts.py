"""The book of prompts: what it keeps, and what it forgets."""

from copd.branch.prompts import PromptBook
from copd.domains.digits import DigitsDomain
from copd.types import ProblemId


def test_the_book_forgets_the_oldest_when_full(make_engine):
    engine = make_engine("a")
    book = engine._branches["a"]._book
    names = [ProblemId("image", "train", i) for i in range(4)]
    largest = max(prompt.num_bytes for prompt in book.prompts(names))
    small = PromptBook(book.domains, book._render, max_bytes=2 * largest)
    first = small.prompts(names)
    assert len(first) == 4
    assert 1 <= len(small._entries) <= 3
    assert small.prompts(names[-1:])[0] is first[-1]
    assert small.prompts(names[:1])[0] is not first[0]
    few = PromptBook(book.domains, book._render, size=2)
    few.prompts(names)
    assert list(few._entries) == names[-2:]


def test_a_verifier_renders_nothing(make_engine):
    book = make_engine("a")._branches["a"]._book
    rendered = []

    def render(messages):
        rendered.append(messages)
        return book._render(messages)

    small = PromptBook(book.domains, render, size=1)
    names = [ProblemId("image", "train", i) for i in range(2)]
    small.prompts(names)
    answers = [book.problem(name).answer for name in names]
    assert [small.problem(name).answer for name in names] == answers
    assert small.verify(names[0], f"#{answers[0]}") == 1.0
    assert len(rendered) == 2


def test_a_verifier_decodes_nothing(make_engine):
    book = make_engine("a")._branches["a"]._book
    asked = []

    class Counting(DigitsDomain):
        def problem(self, split, index):
            asked.append(index)
            return super().problem(split, index)

    domains = {name: Counting(**vars(domain)) for name, domain in book.domains.items()}
    small = PromptBook(domains, book._render, size=1)
    names = [ProblemId("image", "train", i) for i in range(3)]
    small.prompts(names)
    answers = [small.problem(name).answer for name in names]
    assert [small.verify(n, f"#{a}") for n, a in zip(names, answers, strict=True)] == [1.0] * 3
    assert asked == [0, 1, 2]
    assert small.problem(names[0]).messages == ()
