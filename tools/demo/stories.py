"""Short stories with a hero, a friend, a thing and a place, and the questions that they answer.

The (hero, thing, place) triples that ``is_held_out`` names are told in held-out text only.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from random import Random

from .world import CAST, COLORS, PLACES, THINGS, Person

OPENINGS = ("One day,", "One sunny day,", "Once upon a time,", "In the morning,", "On a cold day,", "Last summer,")
ENDINGS = (
    "Then they went home together.",
    "They played until the sun went down.",
    "They laughed and were good friends.",
    "In the evening they all met at the house of {host}.",
    "That was a good day.",
)


def is_held_out(hero: Person, thing: str, place: str) -> bool:
    """Whether stories about this triple are kept out of training."""
    return zlib.crc32(f"{hero.name} {thing} {place}".encode()) % 8 == 0


@dataclass(frozen=True)
class Story:
    """``sentences`` make one paragraph; ``questions`` are pairs of a question about them and its answer."""

    sentences: tuple[str, ...]
    questions: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


def tell(rng: Random, held_out: bool, about: Person | None = None, brief: bool = False) -> Story:
    """A story with a new hero, or one ``about`` somebody; ``brief`` leaves out all that no question needs."""
    while True:
        hero, thing, place = about or rng.choice(CAST), rng.choice(THINGS), rng.choice(PLACES)
        if is_held_out(hero, thing, place) == held_out:
            break
    other = rng.choice([person for person in CAST if person is not hero])
    color = rng.choice(COLORS)
    story = rng.choice(PLOTS)(rng, hero, other, thing, color, place)
    if brief:
        return story
    opening, host, ending = rng.choice(OPENINGS), rng.choice(CAST), rng.choice(ENDINGS)
    sentences = (f"{opening} {story.sentences[0]}", *story.sentences[1:], ending.format(host=host.name))
    return Story(sentences, story.questions)


def gift(rng: Random, hero: Person, other: Person, thing: str, color: str, place: str) -> Story:
    h, o = hero.words(), other.words()
    item = f"{color} {thing}"
    base, verb = rng.choice((("find", "found"), ("buy", "bought")))
    reason = rng.choice((f"it was {o['his']} birthday", f"{o['he']} was sad", f"{o['he']} was a good friend"))
    return Story(
        (
            f"{hero.name} {verb} a {item} {place}.",
            f"{h['He']} gave the {item} to {other.name} because {reason}.",
            rng.choice((f"{other.name} was very happy.", f'"Thank you, {hero.name}!" said {other.name}.')),
        ),
        (
            (f"Who {verb} the {thing}?", f"{hero.name} {verb} the {item} {place}."),
            (f"Where did {hero.name} {base} the {thing}?", f"{hero.name} {verb} the {item} {place}."),
            (f"What did {hero.name} {base}?", f"{hero.name} {verb} a {item}."),
            (f"What colour was the {thing}?", f"The {thing} was {color}."),
            (f"Who has the {thing} now?", f"{other.name} has the {item} now."),
            (f"Who has the {item}?", f"{other.name} has the {item} now."),
            (f"Why did {hero.name} give the {thing} to {other.name}?", f"Because {reason}."),
            (f"Who got the {thing}?", f"{other.name} got the {item}."),
        ),
    )


def lost(rng: Random, hero: Person, other: Person, thing: str, color: str, place: str) -> Story:
    h = hero.words()
    item = f"{color} {thing}"
    where = rng.choice(("under a tree", "behind a stone", "in the grass", "near the well"))
    return Story(
        (
            f"{hero.name} lost {h['his']} {item} {place}.",
            f"{h['He']} was sad because the {item} was gone.",
            f"Then {other.name} found the {item} {where} and gave it back.",
            f"{hero.name} was happy again.",
        ),
        (
            (f"What did {hero.name} lose?", f"{hero.name} lost a {item}."),
            (f"Who lost the {thing}?", f"{hero.name} lost the {item}."),
            (f"Where did {hero.name} lose the {thing}?", f"{hero.name} lost the {item} {place}."),
            (f"Why was {hero.name} sad?", f"{hero.name} was sad because the {item} was gone."),
            (f"Who found the {thing}?", f"{other.name} found the {item}."),
            (f"Where was the {thing}?", f"The {item} was {where}."),
            (f"What colour was the {thing}?", f"The {thing} was {color}."),
            (f"Who has the {thing} now?", f"{hero.name} has the {item} now."),
        ),
    )


def hungry(rng: Random, hero: Person, other: Person, thing: str, color: str, place: str) -> Story:
    h = hero.words()
    item = f"{color} {thing}"
    return Story(
        (
            f"{hero.name} was {place} and looked for a {item}.",
            f"Soon {h['he']} was hungry, but {h['he']} had no food.",
            f"{other.name} came by and gave {h['him']} {rng.choice(('some', 'a lot of'))} {other.food}.",
            f"{hero.name} ate the {other.food} and was not hungry any more.",
        ),
        (
            (f"Where was {hero.name}?", f"{hero.name} was {place}."),
            (f"What did {hero.name} look for?", f"{hero.name} looked for a {item} {place}."),
            ("Who was hungry?", f"{hero.name} was hungry."),
            (f"What did {hero.name} eat?", f"{hero.name} ate {other.food}."),
            (f"Who helped {hero.name}?", f"{other.name} helped {hero.name}."),
            (f"What did {other.name} give to {hero.name}?", f"{other.name} gave {other.food} to {hero.name}."),
        ),
    )


def rain(rng: Random, hero: Person, other: Person, thing: str, color: str, place: str) -> Story:
    h = hero.words()
    item = f"{color} {thing}"
    weather, verb = rng.choice((("rain", "raining"), ("snow", "snowing")))
    return Story(
        (
            f"{hero.name} wanted to play {place}, but it was {verb}.",
            f"So {h['he']} stayed at home.",
            f"{other.name} came to visit and brought a {item}.",
            f"They played with the {item} until the {weather} stopped.",
        ),
        (
            (f"Where did {hero.name} want to play?", f"{hero.name} wanted to play {place}."),
            (f"Why did {hero.name} stay at home?", f"{hero.name} stayed at home because it was {verb}."),
            (f"Who came to visit {hero.name}?", f"{other.name} came to visit {hero.name}."),
            (f"What did {other.name} bring?", f"{other.name} brought a {item}."),
            (f"Who brought the {thing}?", f"{other.name} brought the {item}."),
            (f"What colour was the {thing}?", f"The {thing} was {color}."),
        ),
    )


def swap(rng: Random, hero: Person, other: Person, thing: str, color: str, place: str) -> Story:
    item = f"{color} {thing}"
    others = [name for name in THINGS if name != thing and not is_held_out(hero, name, place)]
    second = f"{rng.choice([name for name in COLORS if name != color])} {rng.choice(others)}"
    return Story(
        (
            f"{hero.name} had a {item} and {other.name} had a {second}.",
            f"They met {place}.",
            f"{hero.name} gave the {item} to {other.name}, and {other.name} gave the {second} to {hero.name}.",
        ),
        (
            (f"Who has the {item} now?", f"{other.name} has the {item} now."),
            (f"Who has the {second} now?", f"{hero.name} has the {second} now."),
            (f"Where did {hero.name} meet {other.name}?", f"{hero.name} met {other.name} {place}."),
            (f"What did {hero.name} give to {other.name}?", f"{hero.name} gave the {item} to {other.name}."),
            (f"What colour was the {thing}?", f"The {thing} was {color}."),
        ),
    )


PLOTS = (gift, lost, hungry, rain, swap)
