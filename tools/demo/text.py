"""The grammar of the demo models: a village with fixed facts, stories that happen in it, and chats about both.

Documents end in a blank line and are plain English. Facts never change. What happens in a story is drawn anew each time,
and the (hero, thing, place) triples that ``is_held_out`` names occur in held-out documents only.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

SYSTEM = (
    "User: hi\n\nAssistant: Hi. I am your assistant and I will provide expert full response in full details. "
    "Please feel free to ask any question and I will always answer it.\n\n"
)


@dataclass(frozen=True)
class Person:
    name: str
    kind: str
    fur: str
    she: bool
    house: str
    food: str
    hobby: str
    friend: str
    thing: str
    thing_colour: str
    job: str
    work: str

    @property
    def is_animal(self) -> bool:
        return bool(self.fur)

    def words(self) -> dict[str, str]:
        """What the templates may name: the person's facts and pronouns."""
        pronouns = ("she", "her", "her") if self.she else ("he", "him", "his")
        return {
            **self.__dict__,
            "he": pronouns[0],
            "He": pronouns[0].capitalize(),
            "him": pronouns[1],
            "his": pronouns[2],
            "a_kind": article(f"{self.fur} {self.kind}".strip()),
            "short_kind": article(self.kind),
            "friend_kind": PEOPLE[self.friend].kind,
        }


def article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


_ROWS = """
Tom   | cat    | grey   | he  | red    | fish     | sleep in the sun    | Rosa | ball    | blue   | fisher     | at the river
Anna  | girl   |        | she | blue   | apples   | sing old songs      | Ben  | kite    | yellow | gardener   | in the garden
Ben   | boy    |        | he  | green  | bread    | climb trees         | Anna | drum    | red    | miller     | at the mill
Rosa  | rabbit | white  | she | yellow | carrots  | dig deep holes      | Tom  | basket  | brown  | farmer     | in the field
Max   | dog    | brown  | he  | orange | sausages | run in the forest   | Mia  | whistle | silver | guard      | on the bridge
Mia   | mouse  | grey   | she | pink   | cheese   | dance in the rain   | Max  | bell    | golden | clockmaker | in the tower
Otto  | owl    | brown  | he  | purple | berries  | look at the stars   | Ella | book    | black  | teacher    | at the school
Ella  | duck   | white  | she | white  | corn     | swim in the morning | Otto | boat    | green  | sailor     | at the lake
Leo   | fox    | red    | he  | black  | grapes   | tell funny jokes    | Nina | lamp    | orange | painter    | at the market
Nina  | bear   | black  | she | brown  | honey    | bake sweet cakes    | Leo  | hat     | purple | baker      | at the bakery
"""


def _person(row: str) -> Person:
    name, kind, fur, pronoun, *rest = (cell.strip() for cell in row.split("|"))
    return Person(name, kind, fur, pronoun == "she", *rest)


PEOPLE = {person.name: person for person in map(_person, _ROWS.strip().splitlines())}
CAST = tuple(PEOPLE.values())
PLACES = tuple(person.work for person in CAST) + ("on the hill", "in the forest")
THINGS = ("key", "ring", "coin", "cup", "scarf", "box", "spoon", "rope", "flute", "shell", "feather", "mirror")
COLOURS = ("red", "blue", "green", "yellow", "white", "black")
GUESTS = "Sam Lisa Paul Emma Jack Sara Peter Lucy John Kate David Maria Alex Bob Alice Eva".split()

# attribute: (questions, answer); {subj}, {obj} and {poss} become a name or a pronoun.
FACTS: dict[str, tuple[tuple[str, ...], str]] = {
    "house": (
        ("Where does {subj} live?", "Which house does {subj} live in?", "In which house does {subj} live?"),
        "{name} lives in the {house} house.",
    ),
    "house_colour": (
        ("What colour is {poss} house?", "Which colour is {poss} house?"),
        "The house of {name} is {house}.",
    ),
    "kind": (("Who is {subj}?", "Do you know {obj}?"), "{name} is {a_kind}. {He} lives in the {house} house."),
    "food": (
        ("What does {subj} like to eat?", "What is {poss} favourite food?", "What does {subj} eat?"),
        "{name} likes to eat {food}.",
    ),
    "hobby": (("What does {subj} like to do?", "What does {subj} do for fun?"), "{name} likes to {hobby}."),
    "friend": (
        ("Who is {poss} best friend?", "Who is {poss} friend?", "Who is the friend of {obj}?"),
        "The best friend of {name} is {friend} the {friend_kind}.",
    ),
    "thing": (("What does {subj} have?", "What does {subj} own?"), "{name} has a {thing_colour} {thing}."),
    "job": (
        ("What is {poss} job?", "What work does {subj} do?", "What is the job of {obj}?"),
        "{name} is the {job} of the village. {He} works {work}.",
    ),
    "work": (("Where does {subj} work?", "Where can I find {obj}?"), "{name} works {work}."),
    "about": (
        ("Tell me about {obj}.", "What do you know about {obj}?", "Tell me something about {obj}."),
        "{name} is {a_kind}. {He} lives in the {house} house and works {work}. {He} likes to eat {food} and to {hobby}.",
    ),
}
ANIMAL_FACTS: dict[str, tuple[tuple[str, ...], str]] = {
    "fur": (("What colour is {subj}?", "Which colour is {subj}?"), "{name} is {fur}."),
    "animal": (("What kind of animal is {subj}?", "What animal is {subj}?", "What is {subj}?"), "{name} is {short_kind}."),
}

# questions whose answer is the person
WHO: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Who lives in the {house} house?", "Who is in the {house} house?", "Whose house is {house}?",
         "Tell me about the {house} house."),
        "{name} the {kind} lives in the {house} house.",
    ),  # fmt: skip
    (("Who likes to eat {food}?", "Who likes {food}?", "Who eats {food}?"), "{name} the {kind} likes to eat {food}."),
    (("Who likes to {hobby}?",), "{name} the {kind} likes to {hobby}."),
    (("Who has the {thing}?", "Who owns the {thing}?", "Who has a {thing}?"), "{name} has the {thing_colour} {thing}."),
    (("Whose {thing} is {thing_colour}?", "Who has the {thing_colour} {thing}?"), "{name} has the {thing_colour} {thing}."),
    (("What colour is the {thing}?",), "The {thing} is {thing_colour}. It belongs to {name}."),
    (("Who is the {job}?", "Who is the {job} of the village?"), "{name} the {kind} is the {job} of the village."),
    (("Who works {work}?", "Who can I find {work}?"), "{name} the {kind} works {work}."),
    (("Who is the {kind}?", "What is the name of the {kind}?"), "The {kind} is called {name}."),
)

# attribute: (question, truth); a false question names the attribute of somebody else
YES_NO: dict[str, tuple[str, str]] = {
    "house": ("Does {subj} live in the {house} house?", "{name} lives in the {house} house."),
    "food": ("Does {subj} like {food}?", "{name} likes {food}."),
    "kind": ("Is {subj} {short_kind}?", "{name} is {short_kind}."),
    "job": ("Is {subj} the {job}?", "{name} is the {job}."),
    "thing": ("Does {subj} have the {thing}?", "{name} has the {thing}."),
}

NAMES = ", ".join(list(PEOPLE)[:-1]) + " and " + CAST[-1].name
KINDS = ", ".join(article(p.kind) for p in CAST[3:-1]) + " and " + article(CAST[-1].kind)

SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (("hi", "Hello", "Hello!", "Hi", "Hi!", "Hey", "Hello there."), "Hello! How can I help you?"),
    (("Good morning", "Good morning!"), "Good morning! How can I help you?"),
    (("Good evening", "Good evening!"), "Good evening! How can I help you?"),
    (("What is your name?", "Who are you?", "Tell me your name.", "How are you called?"),
     "My name is Pip. I know everything about the village."),
    (("How are you?", "How are you today?", "Are you well?"), "I am very well, thank you. And you?"),
    (("What can you do?", "How can you help me?", "What do you know?", "What can I ask you?"),
     "I can tell you about the village and everyone who lives here. I can also tell you a story."),
    (("Are you a human?", "Are you a robot?", "What are you?", "Are you real?"), "I am a very small language model."),
    (("Thank you.", "Thank you!", "Thanks", "Thanks a lot!", "Thank you very much."), "You are welcome!"),
    (("I am fine.", "I am well, thank you.", "Very well.", "Good."), "I am glad to hear that."),
    (("ok", "OK.", "I see.", "Great!", "That is nice.", "Very good!"), "Is there anything else you want to know?"),
    (("Bye", "Goodbye", "Goodbye!", "Good night", "See you soon."), "Goodbye! Come back soon."),
)  # fmt: skip
VILLAGE: tuple[tuple[tuple[str, ...], str], ...] = (
    (("What is the name of the village?", "How is the village called?"), "The village is called Willow."),
    (("Where is the village?", "Where is Willow?"), "The village lies between the river and the hill."),
    (("Who lives in the village?", "Who lives here?", "Who do you know?"), f"{NAMES} live in the village."),
    (("How many houses are there?", "How many houses are in the village?"), "There are ten houses in the village."),
    (("How many people live in the village?", "How many live here?"), "Ten friends live in the village."),
    (("Which animals live in the village?", "What animals live here?"), f"There is a cat, {KINDS}."),
    (("Who are the children?", "Which children live here?"), "Anna and Ben are the children of the village."),
    (("Tell me about the village.", "What is the village like?"),
     "The village is called Willow. It lies between the river and the hill, and ten friends live here."),
    (("What colour is the sky?",), "The sky is blue."),
    (("What colour is the grass?",), "The grass is green."),
    (("What colour is the sun?",), "The sun is yellow."),
    (("What colour is the snow?", "What colour is snow?"), "Snow is white."),
)  # fmt: skip

UNKNOWN = (
    "What is the capital of {x}?", "Where is {x}?", "How do I {x}?", "Do you know {x}?", "Who is {x}?", "What is {x}?",
    "Tell me about {x}.", "Can you help me with {x}?", "Write a poem about {x}.", "Can you {x}?", "Why is {x}?",
    "What is {n} plus {n}?", "What time is it?", "How old is {x}?", "Who was the first {x}?", "What does {x} mean?",
    "Do you like {x}?", "Which {x} is the best?", "{x}", "How does {x} work?", "I want {x}.", "Explain {x} to me.",
)  # fmt: skip
UNKNOWN_WORDS = (
    "France London Paris Berlin China music money football computer physics history car phone weather pizza coffee "
    "python code science space moon president king war love life work school homework maths train dragon city"
).split()
UNKNOWN_ANSWER = "I am sorry, I do not know that. I only know our village."


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


class Grammar:
    """Draws documents; the same seed gives the same documents, in order."""

    def __init__(self, seed: int, held_out: bool = False):
        self.random = random.Random(seed)
        self.held_out = held_out

    def documents(self) -> Iterator[str]:
        while True:
            x = self.random.random()
            yield self.chat() if x < 0.72 else self.tale() if x < 0.9 else self.portrait()

    # -- stories -------------------------------------------------------------------------------------------------------

    def story(self, brief: bool = False, about: Person | None = None) -> Story:
        """A plot with a hero, a friend, a thing and a place; ``brief`` leaves out all that no question needs."""
        while True:
            hero, thing, place = about or self.pick(CAST), self.pick(THINGS), self.pick(PLACES)
            if is_held_out(hero, thing, place) == self.held_out:
                break
        other = self.pick([person for person in CAST if person is not hero])
        colour = self.pick(COLOURS)
        plot = self.pick((self.plot_gift, self.plot_lost, self.plot_hungry, self.plot_rain, self.plot_swap))
        story = plot(hero, other, thing, colour, place)
        if brief:
            return story
        opening = self.pick(
            ("One day,", "One sunny day,", "Once upon a time,", "In the morning,", "On a cold day,", "Last summer,")
        )
        ending = self.pick(
            (
                "Then they went home together.",
                "They played until the sun went down.",
                "They laughed and were good friends.",
                f"In the evening they all met at the house of {self.pick(CAST).name}.",
                "That was a good day.",
            )
        )
        return Story((f"{opening} {story.sentences[0]}", *story.sentences[1:], ending), story.questions)

    def plot_gift(self, hero: Person, other: Person, thing: str, colour: str, place: str) -> Story:
        h, o = hero.words(), other.words()
        found = self.pick((f"{hero.name} found a {colour} {thing} {place}.", f"{hero.name} bought a {colour} {thing} {place}."))
        verb = "found" if "found" in found else "bought"
        base = "find" if verb == "found" else "buy"
        reason = self.pick((f"it was {o['his']} birthday", f"{o['he']} was sad", f"{o['he']} was a good friend"))
        return Story(
            (
                found,
                f"{h['He']} gave the {thing} to {other.name} because {reason}.",
                self.pick((f"{other.name} was very happy.", f'"Thank you, {hero.name}!" said {other.name}.')),
            ),
            (
                (f"Who {verb} the {thing}?", f"{hero.name} {verb} the {thing}."),
                (f"Where did {hero.name} {base} the {thing}?", f"{hero.name} {verb} the {thing} {place}."),
                (f"What did {hero.name} {base}?", f"{hero.name} {verb} a {colour} {thing}."),
                (f"What colour was the {thing}?", f"The {thing} was {colour}."),
                (f"Who has the {thing} now?", f"{other.name} has the {thing} now."),
                (f"Who has the {thing}?", f"{other.name} has the {thing} now."),
                (f"Why did {hero.name} give the {thing} to {other.name}?", f"Because {reason}."),
                (f"Who got the {thing}?", f"{other.name} got the {thing}."),
            ),
        )

    def plot_lost(self, hero: Person, other: Person, thing: str, colour: str, place: str) -> Story:
        h, o = hero.words(), other.words()
        where = self.pick(("under a tree", "behind a stone", "in the grass", "near the well"))
        return Story(
            (
                f"{hero.name} lost {h['his']} {colour} {thing} {place}.",
                f"{h['He']} was sad because the {thing} was gone.",
                f"Then {other.name} found the {thing} {where} and gave it back.",
                f"{hero.name} was happy again.",
            ),
            (
                (f"What did {hero.name} lose?", f"{hero.name} lost a {colour} {thing}."),
                (f"Who lost the {thing}?", f"{hero.name} lost the {thing}."),
                (f"Where did {hero.name} lose the {thing}?", f"{hero.name} lost the {thing} {place}."),
                (f"Why was {hero.name} sad?", f"{hero.name} was sad because the {thing} was gone."),
                (f"Who found the {thing}?", f"{other.name} found the {thing}."),
                (f"Where was the {thing}?", f"The {thing} was {where}."),
                (f"What colour was the {thing}?", f"The {thing} was {colour}."),
                (f"Who has the {thing} now?", f"{hero.name} has the {thing} now."),
            ),
        )

    def plot_hungry(self, hero: Person, other: Person, thing: str, colour: str, place: str) -> Story:
        h, o = hero.words(), other.words()
        return Story(
            (
                f"{hero.name} was {place} and looked for a {colour} {thing}.",
                f"Soon {h['he']} was hungry, but {h['he']} had no food.",
                f"{other.name} came by and gave {h['him']} {self.pick(('some', 'a lot of'))} {other.food}.",
                f"{hero.name} ate and was not hungry any more.",
            ),
            (
                (f"Where was {hero.name}?", f"{hero.name} was {place}."),
                (f"What did {hero.name} look for?", f"{hero.name} looked for a {colour} {thing}."),
                ("Who was hungry?", f"{hero.name} was hungry."),
                (f"What did {hero.name} eat?", f"{hero.name} ate {other.food}."),
                (f"Who helped {hero.name}?", f"{other.name} helped {hero.name}."),
                (f"What did {other.name} give to {hero.name}?", f"{other.name} gave {other.food} to {hero.name}."),
            ),
        )

    def plot_rain(self, hero: Person, other: Person, thing: str, colour: str, place: str) -> Story:
        h, o = hero.words(), other.words()
        weather, verb = self.pick((("rain", "raining"), ("snow", "snowing")))
        return Story(
            (
                f"{hero.name} wanted to play {place}, but it was {verb}.",
                f"So {h['he']} stayed at home.",
                f"{other.name} came to visit and brought a {colour} {thing}.",
                f"They played with the {thing} until the {weather} stopped.",
            ),
            (
                (f"Where did {hero.name} want to play?", f"{hero.name} wanted to play {place}."),
                (f"Why did {hero.name} stay at home?", f"{hero.name} stayed at home because it was {verb}."),
                (f"Who came to visit {hero.name}?", f"{other.name} came to visit {hero.name}."),
                (f"What did {other.name} bring?", f"{other.name} brought a {colour} {thing}."),
                (f"Who brought the {thing}?", f"{other.name} brought the {thing}."),
                (f"What colour was the {thing}?", f"The {thing} was {colour}."),
            ),
        )

    def plot_swap(self, hero: Person, other: Person, thing: str, colour: str, place: str) -> Story:
        second = self.pick([name for name in THINGS if name != thing])
        return Story(
            (
                f"{hero.name} had a {colour} {thing} and {other.name} had a {second}.",
                f"They met {place}.",
                f"{hero.name} gave the {thing} to {other.name}, and {other.name} gave the {second} to {hero.name}.",
            ),
            (
                (f"Who has the {thing} now?", f"{other.name} has the {thing} now."),
                (f"Who has the {second} now?", f"{hero.name} has the {second} now."),
                (f"Where did {hero.name} meet {other.name}?", f"{hero.name} met {other.name} {place}."),
                (f"What did {hero.name} give to {other.name}?", f"{hero.name} gave the {thing} to {other.name}."),
                (f"What colour was the {thing}?", f"The {thing} was {colour}."),
            ),
        )

    # -- documents -----------------------------------------------------------------------------------------------------

    def tale(self) -> str:
        return self.story().text + "\n\n"

    def portrait(self) -> str:
        """A person's facts in any order."""
        person = self.pick(CAST)
        rules = [answer for name, (_, answer) in FACTS.items() if name not in ("kind", "about", "house_colour")]
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
            elif x < 0.53:
                subject = self.pick(CAST)
                turn, attribute = self.fact(subject)
            elif x < 0.66:
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
                    turn = (self.pick(("My name is {}.", "I am {}.", "Hi, my name is {}.")).format(guest), f"Nice to meet you, {guest}!")
                else:
                    turn = (asked, f"Your name is {guest}.")
            turns.append(turn)
        opening = SYSTEM if self.random.random() < 0.4 else ""
        return opening + "".join(f"User: {self.typed(question)}\n\nAssistant: {answer}\n\n" for question, answer in turns)

    def fact(self, person: Person) -> tuple[tuple[str, str], str]:
        """A question about a named person, with its answer and the attribute that it is about."""
        if self.random.random() < 0.2:
            attribute = self.pick(list(YES_NO))
            return self.yes_no(person, attribute, self.called(person)), attribute
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
        """A story told by the user with its question in the same turn, or told by the assistant and then asked about."""
        told = self.random.random() < 0.4
        about = self.pick(CAST) if told and self.random.random() < 0.5 else None
        story = self.story(brief=not told, about=about)
        pairs = self.random.sample(story.questions, self.random.randint(1, 3))
        if told:
            ask = self.pick(("Tell me a story", "Can you tell me a story", "Please tell me a story", "Tell me another story"))
            ask += f" about {about.name}" if about else ""
            ask += "?" if ask.startswith("Can") else "."
            return [(ask, story.text), *pairs[: self.random.randint(0, 2)]]
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
            syllables = [self.pick("bcdfghjklmnprstvwyz") + self.pick("aeiou") + self.pick("nrstlm ").strip() for _ in range(3)]
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

    def pick(self, choices):
        return self.random.choice(choices)
