"""The village of the demo models: its fixed facts, and the questions and answers about them."""

from __future__ import annotations

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
    thing_color: str
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
Tom,  cat,    grey,  he,  red,    fish,     sleep in the sun,    Rosa, ball,    blue,   fisher,     at the river
Anna, girl,   ,      she, blue,   apples,   sing old songs,      Ben,  kite,    yellow, gardener,   in the garden
Ben,  boy,    ,      he,  green,  bread,    climb trees,         Anna, drum,    red,    miller,     at the mill
Rosa, rabbit, white, she, yellow, carrots,  dig deep holes,      Tom,  basket,  brown,  farmer,     in the field
Max,  dog,    brown, he,  orange, sausages, run in the forest,   Mia,  whistle, silver, guard,      on the bridge
Mia,  mouse,  grey,  she, pink,   cheese,   dance in the rain,   Max,  bell,    golden, clockmaker, in the tower
Otto, owl,    brown, he,  purple, berries,  look at the stars,   Ella, book,    black,  teacher,    at the school
Ella, duck,   white, she, white,  corn,     swim in the morning, Otto, boat,    green,  sailor,     at the lake
Leo,  fox,    red,   he,  black,  grapes,   tell funny jokes,    Nina, lamp,    orange, painter,    at the market
Nina, bear,   black, she, brown,  honey,    bake sweet cakes,    Leo,  hat,     purple, baker,      at the bakery
"""


def _person(row: str) -> Person:
    name, kind, fur, pronoun, *rest = (cell.strip() for cell in row.split(","))
    return Person(name, kind, fur, pronoun == "she", *rest)


PEOPLE = {person.name: person for person in map(_person, _ROWS.strip().splitlines())}
CAST = tuple(PEOPLE.values())
PLACES = (*(person.work for person in CAST), "on the hill", "in the forest")
THINGS = ("key", "ring", "coin", "cup", "scarf", "box", "spoon", "rope", "flute", "shell", "feather", "mirror")
COLORS = ("red", "blue", "green", "yellow", "white", "black")
GUESTS = "Sam Lisa Paul Emma Jack Sara Peter Lucy John Kate David Maria Alex Bob Alice Eva".split()

# attribute: (questions, answer); {subj}, {obj} and {poss} become a name or a pronoun.
FACTS: dict[str, tuple[tuple[str, ...], str]] = {
    "house": (
        ("Where does {subj} live?", "Which house does {subj} live in?", "In which house does {subj} live?"),
        "{name} lives in the {house} house.",
    ),
    "house_color": (
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
    "thing": (("What does {subj} have?", "What does {subj} own?"), "{name} has a {thing_color} {thing}."),
    "job": (
        ("What is {poss} job?", "What work does {subj} do?", "What is the job of {obj}?"),
        "{name} is the {job} of the village. {He} works {work}.",
    ),
    "work": (("Where does {subj} work?", "Where can I find {obj}?"), "{name} works {work}."),
    "about": (
        ("Tell me about {obj}.", "What do you know about {obj}?", "Tell me something about {obj}."),
        "{name} is {a_kind}. {He} lives in the {house} house and works {work}. "
        "{He} likes to eat {food} and to {hobby}.",
    ),
}
ANIMAL_FACTS: dict[str, tuple[tuple[str, ...], str]] = {
    "fur": (("What colour is {subj}?", "Which colour is {subj}?"), "{name} is {fur}."),
    "animal": (
        ("What kind of animal is {subj}?", "What animal is {subj}?", "What is {subj}?"),
        "{name} is {short_kind}.",
    ),
}

STORY_REQUESTS = ("Tell me a story", "Can you tell me a story", "Please tell me a story", "Tell me another story")

# questions whose answer is the person
WHO: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (
            "Who lives in the {house} house?",
            "Who is in the {house} house?",
            "Whose house is {house}?",
            "Tell me about the {house} house.",
        ),
        "{name} the {kind} lives in the {house} house.",
    ),
    (("Who likes to eat {food}?", "Who likes {food}?", "Who eats {food}?"), "{name} the {kind} likes to eat {food}."),
    (("Who likes to {hobby}?",), "{name} the {kind} likes to {hobby}."),
    (("Who has the {thing}?", "Who owns the {thing}?", "Who has a {thing}?"), "{name} has the {thing_color} {thing}."),
    (
        ("Whose {thing} is {thing_color}?", "Who has the {thing_color} {thing}?"),
        "{name} has the {thing_color} {thing}.",
    ),
    (("What colour is the {thing}?",), "The {thing} is {thing_color}. It belongs to {name}."),
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
