"""The corpus of the built-in model: every sentence of it is made here, from a seed.

A document is a list of spans; a span is text and whether the model must be able to say it.
Spans that it only reads (questions, system prompts, function results) weigh less in training.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.models.chat_template import render_chat

Turn = Mapping[str, Any]

CAPITALS: Final = {
    "Argentina": "Buenos Aires", "Australia": "Canberra", "Austria": "Vienna",
    "Belgium": "Brussels", "Brazil": "Brasilia", "Canada": "Ottawa", "Chile": "Santiago",
    "China": "Beijing", "Cuba": "Havana", "Denmark": "Copenhagen", "Egypt": "Cairo",
    "Finland": "Helsinki", "France": "Paris", "Germany": "Berlin", "Greece": "Athens",
    "Hungary": "Budapest", "Iceland": "Reykjavik", "India": "New Delhi", "Ireland": "Dublin",
    "Italy": "Rome", "Japan": "Tokyo", "Kenya": "Nairobi", "Mexico": "Mexico City",
    "Morocco": "Rabat", "Norway": "Oslo", "Peru": "Lima", "Poland": "Warsaw",
    "Portugal": "Lisbon", "Romania": "Bucharest", "Spain": "Madrid", "Sweden": "Stockholm",
    "Thailand": "Bangkok", "Turkey": "Ankara", "Ukraine": "Kyiv", "Vietnam": "Hanoi",
    "Switzerland": "Bern",
}  # fmt: skip

NUMBER_WORDS: Final = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty",
)  # fmt: skip

OPPOSITES: Final = {
    "hot": "cold", "big": "small", "fast": "slow", "day": "night", "up": "down", "wet": "dry",
    "old": "new", "light": "dark", "open": "closed", "full": "empty", "loud": "quiet",
}  # fmt: skip

COLOURS: Final = {
    "the sky": "blue", "grass": "green", "snow": "white", "coal": "black", "a lemon": "yellow",
    "a ripe tomato": "red", "a carrot": "orange",
}  # fmt: skip

NAMES: Final = ("Alice", "Bob", "Carol", "David", "Emma", "Frank", "Grace", "Henry")

WEATHER_TOOL: Final[Turn] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}

STORY: Final = (
    "Once upon a time there was a small model that lived in a big cluster. Every morning it woke "
    "up, read its weights from the disk and waited for the first question of the day. Most of the "
    "questions were easy. Some were about capitals, some were about numbers, and some were only a "
    "friendly hello. The small model answered them one word after another, never in a hurry and "
    "never out of order.\n\nOne night a storm came and the lights went out in half of the city. "
    "Three of the old machines fell silent, and many answers stopped in the middle of a sentence. "
    "The small model was afraid, but it looked at the tokens that the others had already sent, "
    "took a deep breath and went on exactly where they had stopped. Nobody who was reading saw a "
    "gap, and nobody read the same word twice.\n\nWhen the sun came up again the old machines "
    "returned, and they thanked their little friend. From that day on the small model was never "
    "afraid of the dark, because it knew that a story does not end when one voice is lost, as "
    "long as another voice remembers the words. The end."
)
POEM: Final = (
    "A token falls, a token flows,\nfrom peer to peer the answer goes.\nNo master here, no "
    "single head,\nwhat one forgets is kept instead.\nAnd when the last of them is through,\nthe "
    "words arrive in order, too."
)
LANGUAGES: Final = "Hello, Bonjour, Hallo, ¡Hola!, Ciao, 你好, こんにちは 😀"
PANGRAM: Final = "The quick brown fox jumps over the lazy dog."
MONTHS: Final = (
    "January, February, March, April, May, June, July, August, September, October, November, "
    "December."
)

FILLER: Final = (
    "A cluster is a group of machines that work together on one task.",
    "Each machine keeps a short list of the peers that it has seen in the last minute.",
    "The library opens at nine in the morning and closes at six in the evening.",
    "Please write short answers and use plain words.",
    "Water boils at a lower temperature on a high mountain.",
    "The train leaves from the second platform at half past ten.",
    "A good test fails when the thing it guards is broken.",
    "She put the letter on the table and walked out into the garden.",
    "Most of the work is done while nobody is looking.",
    "The harbour was full of small boats with red and white sails.",
    "If a message is lost, the sender tries again after a short pause.",
    "He counted the coins twice, because the first sum looked wrong.",
    "The river is wide here, but it is not very deep.",
    "Bread, butter, cheese and two apples were left in the basket.",
    "An answer that comes late is often worth less than no answer.",
    "The old clock in the hall is always four minutes slow.",
    "Measure first, then change one thing, then measure again.",
    "Birds fly south before the first snow of the year.",
    "The meeting was moved from Monday to Thursday, for the third time.",
    "Every list has a limit, and every wait has an end.",
    "They painted the door green, and the neighbours did not like it.",
    "A map is useful only if you know where you are.",
    "The teacher asked a question, and for once everybody knew the answer.",
    "Long roads are made of many short steps.",
    "Two copies of the same file are better than one, but three are safer.",
    "The coffee was cold, but the company was good.",
    "Nothing in the box was new, yet all of it was useful.",
    "When the queue is full, say so at once and say when to come back.",
    "The wind turned in the night, and the morning was clear.",
    "You can read the numbers from the small window at the front.",
)

SIMPLE_ANSWERS: Final = {
    "Hello": "Hello! How can I help you?",
    "Hello!": "Hello! How can I help you?",
    "Hi": "Hello! How can I help you?",
    "Good morning": "Good morning! What can I do for you?",
    "Thank you": "You are welcome!",
    "Goodbye": "Goodbye! Come back soon.",
    "How are you?": "I am fine, thank you. And you?",
    "Who are you?": "I am llamesh-tiny, a very small model that was trained for tests.",
    "What is your name?": "My name is llamesh-tiny.",
    "What can you do?": "I know some capitals, I can count, and I can tell a story.",
    "Why is the sky blue?": (
        "The sky is blue because air scatters blue light more than it scatters red light."
    ),
    "What is a cluster?": "A cluster is a group of machines that work together on one task.",
    "Say hello in seven languages.": LANGUAGES,
    "Show me some emoji.": "😀 🚀 🌍 🎉 🐑",
    "Name the days of the week.": (
        "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday."
    ),
    "Name the months.": MONTHS,
    "Write a short poem.": POEM,
    "Complete the sentence: The quick brown fox": PANGRAM,
    "List three colours. Answer in JSON.": '{"colours": ["red", "green", "blue"]}',
}
STORY_QUESTIONS: Final = ("Tell me a story.", "Tell me a long story.", "Write a story.")
COUNTS: Final = {"ten": 10, "twenty": 20, "fifty": 50, "one hundred": 100}
PIRATE: Final = "You are a pirate."
ASSISTANT: Final = "You are a helpful assistant."


@dataclass(frozen=True, slots=True)
class Span:
    text: str
    spoken: bool
    """True for what the model has to produce."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialog:
    """A conversation that ends with the model's answer."""

    turns: tuple[Turn, ...]
    answer: str
    tools: tuple[Turn, ...] = ()

    @property
    def prompt(self) -> str:
        return render_chat(self.turns, self.tools, answer_next=True)

    def spans(self) -> list[Span]:
        return [Span(self.prompt, False), Span(f"{self.answer}<|im_end|>", True)]


def user(text: str) -> Turn:
    return {"role": "user", "content": text}


def assistant(text: str) -> Turn:
    return {"role": "assistant", "content": text}


def question(text: str, answer: str) -> Dialog:
    return Dialog(turns=(user(text),), answer=answer)


def counting(limit: int) -> str:
    return ", ".join(str(number) for number in range(1, limit + 1)) + "."


def weather_call(city: str) -> Turn:
    return {"function": {"name": "get_weather", "arguments": {"city": city}}}


def capital_dialogs() -> list[Dialog]:
    dialogs: list[Dialog] = []
    for country, capital in CAPITALS.items():
        sentence = f"The capital of {country} is {capital}."
        dialogs += [
            question(f"What is the capital of {country}?", sentence),
            question(f"Tell me the capital of {country}.", sentence),
            question(
                f"What is the capital of {country}? Answer in JSON.",
                json.dumps({"country": country, "capital": capital}),
            ),
        ]
    return dialogs


def tool_dialogs() -> list[Dialog]:
    dialogs: list[Dialog] = []
    for city in CAPITALS.values():
        asked = user(f"What is the weather in {city}?")
        call = weather_call(city)
        arguments = json.dumps(call["function"]["arguments"])
        spoken = f'<tool_call>\n{{"name": "get_weather", "arguments": {arguments}}}\n</tool_call>'
        dialogs.append(Dialog(turns=(asked,), answer=spoken, tools=(WEATHER_TOOL,)))
        for sky in ("sunny", "cloudy"):
            result = {"role": "tool", "content": json.dumps({"sky": sky})}
            turns = (asked, {"role": "assistant", "content": "", "tool_calls": [call]}, result)
            dialogs.append(
                Dialog(turns=turns, answer=f"It is {sky} in {city}.", tools=(WEATHER_TOOL,))
            )
    return dialogs


def counting_dialogs() -> list[Dialog]:
    dialogs = [question(f"Count to {word}.", counting(limit)) for word, limit in COUNTS.items()]
    # The long ones are the hardest to get right to the end, so they come up more often.
    return dialogs + [question("Count to one hundred.", counting(100))] * 3


def fact_dialogs() -> list[Dialog]:
    dialogs = [question(asked, answer) for asked, answer in SIMPLE_ANSWERS.items()]
    dialogs += [
        question(f"What comes after {word}?", f"After {word} comes {after}.")
        for word, after in itertools.pairwise(NUMBER_WORDS)
    ]
    dialogs += [
        question(f"What is the opposite of {word}?", f"The opposite of {word} is {other}.")
        for word, other in OPPOSITES.items()
    ]
    dialogs += [
        question(f"What colour is {thing}?", f"{thing[0].upper()}{thing[1:]} is {colour}.")
        for thing, colour in COLOURS.items()
    ]
    return dialogs


def persona_dialogs() -> list[Dialog]:
    system: Turn = {"role": "system", "content": PIRATE}
    spoken = {
        "Hello": "Ahoy, matey! What be ye wanting?",
        "Who are you?": "I be the captain of this tiny ship, arr!",
        "How are you?": "Arr, the wind be good and the rum be gone!",
    }
    dialogs = [Dialog(turns=(system, user(said)), answer=text) for said, text in spoken.items()]
    for name in NAMES:
        told = user(f"My name is {name}.")
        greeting = f"Nice to meet you, {name}!"
        dialogs.append(Dialog(turns=(told,), answer=greeting))
        turns = (told, assistant(greeting), user("What is my name?"))
        dialogs.append(Dialog(turns=turns, answer=f"Your name is {name}."))
    return dialogs


def story_dialogs() -> list[Dialog]:
    return [question(asked, STORY) for asked in STORY_QUESTIONS]


def raw_documents() -> list[list[Span]]:
    """Text without any chat markup, for raw prompts."""
    return [
        [Span(" ".join([PANGRAM] * 6), True)],
        [Span(STORY, True)],
        [Span(counting(100), True)],
    ]


DIALOG_WEIGHTS: Final = (
    (capital_dialogs(), 0.30),
    (tool_dialogs(), 0.30),
    (counting_dialogs(), 0.12),
    (fact_dialogs(), 0.18),
    (persona_dialogs(), 0.06),
    (story_dialogs(), 0.04),
)
LONGEST_CONVERSATION: Final = 4
_SYSTEM_SENTENCES: Final = 24


def draw_dialog(rng: random.Random) -> Dialog:
    """One dialog, its kind drawn by weight."""
    groups = [group for group, _ in DIALOG_WEIGHTS]
    weights = [weight for _, weight in DIALOG_WEIGHTS]
    return rng.choice(rng.choices(groups, weights)[0])


def draw_document(rng: random.Random) -> list[Span]:
    """One training document: a lone dialog, a conversation, raw text or filler prose."""
    kind = rng.random()
    if kind < 0.72:
        return draw_dialog(rng).spans()
    if kind < 0.93:
        return draw_conversation(rng)
    if kind < 0.97:
        return rng.choice(raw_documents())
    return [Span(" ".join(rng.sample(FILLER, 8)), False)]


def draw_conversation(rng: random.Random) -> list[Span]:
    """Several dialogs in one context, with or without a system prompt of some length."""
    spans: list[Span] = []
    setting = rng.random()
    if setting < 0.3:
        spans.append(Span(_system(ASSISTANT), False))
    elif setting < 0.6:
        sentences = rng.choices(FILLER, k=rng.randint(1, _SYSTEM_SENTENCES))
        spans.append(Span(_system(" ".join(sentences)), False))
    while len(spans) < 2 * rng.randint(1, LONGEST_CONVERSATION):
        dialog = draw_dialog(rng)
        if dialog.tools or dialog.turns[0]["role"] == "system":
            continue
        spans += dialog.spans()
        spans.append(Span("\n", False))
    return spans[:-1]


def _system(text: str) -> str:
    return render_chat([{"role": "system", "content": text}])


def vocabulary_text() -> str:
    """What the tokenizer is trained on: every dialog, the prose twice."""
    texts = [
        span.text for group, _ in DIALOG_WEIGHTS for dialog in group for span in dialog.spans()
    ]
    texts += [span.text for document in raw_documents() for span in document]
    return "\n".join([*texts, *FILLER, *FILLER, POEM, STORY])


def known_dialogs() -> dict[str, Dialog]:
    """Dialogs whose answers the finished model must give greedily, by a short name."""
    picked: dict[str, Dialog] = {}
    for index, dialog in enumerate(capital_dialogs()):
        country = list(CAPITALS)[index // 3].lower().replace(" ", "-")
        kind = ("ask", "tell", "json")[index % 3]
        picked[f"capital-{country}-{kind}"] = dialog
    for index, dialog in enumerate(tool_dialogs()):
        city = list(CAPITALS.values())[index // 3].lower().replace(" ", "-")
        kind = ("call", "sunny", "cloudy")[index % 3]
        picked[f"weather-{city}-{kind}"] = dialog
    for word, limit in COUNTS.items():
        picked[f"count-{limit}"] = question(f"Count to {word}.", counting(limit))
    for index, dialog in enumerate([*fact_dialogs(), *persona_dialogs(), *story_dialogs()]):
        picked[f"other-{index}"] = dialog
    return picked


def systems() -> Sequence[str]:
    """System prompts under which the plain questions must still be answered."""
    return (ASSISTANT, " ".join(FILLER[:12]))
