"""The training corpus can be learned by heart: it never contradicts itself."""

from __future__ import annotations

import random

from tests.models.tokenizer import BytePairTokenizer
from tests.models.training import corpus


def test_no_prompt_has_two_answers() -> None:
    answers: dict[str, str] = {}
    for group, _ in corpus.DIALOG_WEIGHTS:
        for dialog in group:
            assert answers.setdefault(dialog.prompt, dialog.answer) == dialog.answer


def test_every_dialog_is_a_known_one() -> None:
    known = {dialog.prompt for dialog in corpus.known_dialogs().values()}
    trained = {dialog.prompt for group, _ in corpus.DIALOG_WEIGHTS for dialog in group}
    assert known == trained


def test_the_same_seed_draws_the_same_documents() -> None:
    first, second = random.Random(5), random.Random(5)
    assert [corpus.draw_document(first) for _ in range(50)] == [
        corpus.draw_document(second) for _ in range(50)
    ]


def test_the_vocabulary_returns_every_trained_text() -> None:
    tokenizer = BytePairTokenizer.train(corpus.vocabulary_text(), 1024)
    rng = random.Random(2)
    for _ in range(100):
        text = "".join(span.text for span in corpus.draw_document(rng))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_story_is_long_enough_to_be_interrupted() -> None:
    tokenizer = BytePairTokenizer.train(corpus.vocabulary_text(), 1024)
    assert len(tokenizer.encode(corpus.STORY)) >= 150
    assert len(tokenizer.encode(corpus.counting(100))) >= 150
