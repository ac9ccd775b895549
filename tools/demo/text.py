"""The grammar of the demo models: chats, tales and portraits from one small village."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

from .stories import tell
from .world import (
    ANIMAL_FACTS,
    CAST,
    FACTS,
    GUESTS,
    SMALL_TALK,
    STORY_REQUESTS,
    SYSTEM,
    UNKNOWN,
    UNKNOWN_ANSWER,
    UNKNOWN_WORDS,
    VILLAGE,
    WHO,
    YES_NO,
    Person,
)

T = TypeVar("T")


class Grammar:
    """Draws documents; the same seed gives the same documents, in order."""

    def __init__(self, seed: int, held_out: bool = False):
        self.random = random.Random(seed)
        self.held_out = held_out

    def documents(self) -> Iterator[str]:
        while True:
            x = self.random.random()
            yield self.chat() if x < 0.86 else self.tale() if x < 0.94 else self.portrait()

    def tale(self) -> str:
        return tell(self.random, self.held_out).text + "\n\n"

    def portrait(self) -> str:
        """A person's facts in any order."""
        person = self.pick(CAST)
        rules = [answer for name, (_, answer) in FACTS.items() if name not in ("kind", "about", "house_color")]
        self.random.shuffle(rules)
        first = "{name} is {a_kind}."
        return " ".join(rule.format(**person.words()) for rule in [first, *rules[: self.random.randint(2, 5)]]) + "\n\n"

    def chat(self) -> str:
        """A chat in the World form, often under the World system prompt."""
        turns = []
        subject: Person | None = None
        attribute: str | None = None
        guest: str | None = None
        if self.random.random() < 0.25:
            turns.append(self.small_talk(first=True))
        for _ in range(self.random.choice((1, 1, 2, 2, 3, 3, 4, 5, 6))):
            x = self.random.random()
            if subject and x < 0.35:
                turn, subject, attribute = self.follow_up(subject, attribute)
            elif x < 0.48:
                subject = self.pick(CAST)
                turn, attribute = self.fact(subject)
            elif x < 0.57:
                subject, attribute = self.pick(CAST), None
                questions, answer = self.pick(WHO)
                turn = (self.pick(questions).format(**subject.words()), answer.format(**subject.words()))
            elif x < 0.85:
                turns += self.about_story()
                subject = None
                continue
            elif x < 0.89:
                turn = self.village()
            elif x < 0.925:
                turn = self.unknown()
            elif x < 0.965:
                turn = self.small_talk()
            else:
                asked = self.pick(("What is my name?", "Do you know my name?", "Who am I?"))
                if guest is None and self.random.random() < 0.2:
                    turn = (asked, "I do not know your name. What is your name?")
                elif guest is None:
                    guest = self.pick(GUESTS)
                    told = self.pick(("My name is {}.", "I am {}.", "Hi, my name is {}."))
                    turn = (told.format(guest), f"Nice to meet you, {guest}!")
                else:
                    turn = (asked, f"Your name is {guest}.")
            turns.append(turn)
        opening = SYSTEM if self.random.random() < 0.4 else ""
        return opening + "".join(f"User: {self.typed(asked)}\n\nAssistant: {answer}\n\n" for asked, answer in turns)

    def fact(self, person: Person) -> tuple[tuple[str, str], str]:
        """A question about a named person, with its answer and the attribute that it is about."""
        if self.random.random() < 0.2:
            attribute = self.pick(list(YES_NO))
            called = person.name if attribute in ("kind", "job") else self.called(person)
            return self.yes_no(person, attribute, called), attribute
        facts = {**FACTS, **ANIMAL_FACTS} if person.is_animal else FACTS
        attribute = self.pick(list(facts))
        questions, answer = facts[attribute]
        called = self.called(person)
        named = {"subj": called, "obj": called, "poss": f"{called}'s"}
        return (self.pick(questions).format(**named), answer.format(**person.words())), attribute

    def called(self, person: Person) -> str:
        others = (f"{person.name} the {person.kind}", f"the {person.kind}", f"the {person.job}")
        return person.name if self.random.random() < 0.7 else self.pick(others)

    def yes_no(self, person: Person, attribute: str, subject: str) -> tuple[str, str]:
        question, truth = YES_NO[attribute]
        asked = self.pick((person, self.pick(CAST)))
        same = getattr(asked, attribute) == getattr(person, attribute)
        return (
            question.format(**{**asked.words(), "subj": subject}),
            ("Yes, " if same else "No, ") + truth.format(**person.words()),
        )

    def follow_up(self, person: Person, attribute: str | None) -> tuple[tuple[str, str], Person, str | None]:
        """A question with a pronoun, or "And Tom?" after a question about somebody else."""
        if attribute in FACTS and self.random.random() < 0.3:
            person = self.pick([other for other in CAST if other is not person])
            question = self.pick(("And {name}?", "And what about {name}?", "What about {name}?"))
            return (question.format(name=person.name), FACTS[attribute][1].format(**person.words())), person, attribute
        words = person.words()
        pronouns = {"subj": words["he"], "obj": words["him"], "poss": words["his"]}
        if self.random.random() < 0.15:
            attribute = self.pick(list(YES_NO))
            return self.yes_no(person, attribute, words["he"]), person, attribute
        attribute = self.pick([name for name in FACTS if name != "kind"])
        questions, answer = FACTS[attribute]
        question = self.pick(questions).format(**pronouns)
        if self.random.random() < 0.3:
            question = f"And {question[0].lower()}{question[1:]}"
        return (question, answer.format(**words)), person, attribute

    def about_story(self) -> list[tuple[str, str]]:
        """A story by the user with a question in the same turn, or one by the assistant, and questions about it."""
        told = self.random.random() < 0.4
        about = self.pick(CAST) if told and self.random.random() < 0.5 else None
        story = tell(self.random, self.held_out, about, brief=not told)
        pairs = self.random.sample(story.questions, self.random.randint(1, 4))
        if told:
            ask = self.pick(STORY_REQUESTS)
            ask += f" about {about.name}" if about else ""
            ask += "?" if ask.startswith("Can") else "."
            return [(ask, story.text), *pairs[: self.random.randint(0, 4)]]
        (question, answer), *others = pairs
        return [(f"{story.text} {question}", answer), *others]

    def village(self) -> tuple[str, str]:
        questions, answer = self.pick(VILLAGE)
        return self.pick(questions), answer

    def small_talk(self, first: bool = False) -> tuple[str, str]:
        questions, answer = self.pick(SMALL_TALK[:5] if first else SMALL_TALK)
        return self.pick(questions), answer

    def unknown(self) -> tuple[str, str]:
        """A question about another world, half of the time with a word that nobody has heard before."""
        words = []
        for _ in range(self.random.choice((1, 1, 2))):
            syllables = ["".join(map(self.pick, ("bcdfghjklmnprstvwyz", "aeiou", "nrstlm "))).strip() for _ in range(3)]
            word = "".join(syllables[: self.random.randint(1, 3)])
            words.append(self.pick((word, word.capitalize(), self.pick(UNKNOWN_WORDS))))
        question = self.pick(UNKNOWN)
        while "{n}" in question:
            question = question.replace("{n}", str(self.random.randint(1, 99)), 1)
        return question.format(x=" ".join(words)), UNKNOWN_ANSWER

    def typed(self, question: str) -> str:
        """As people type: sometimes in American spelling, without capitals or without the last mark."""
        if self.random.random() < 0.15:
            question = question.replace("colour", "color")
        x = self.random.random()
        if x < 0.06:
            return question.lower().rstrip("?.!")
        if x < 0.1:
            return question.rstrip("?.!")
        return question.lower() if x < 0.12 else question

    def pick(self, choices: Sequence[T]) -> T:
        return self.random.choice(choices)
