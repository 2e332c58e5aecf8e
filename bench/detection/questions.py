"""The fixed prompts of the detection bench: sixteen kinds of request, eight subjects each.

Chosen before anything was measured. Two kinds in sixteen, code and facts, have answers that hardly depend on the
noise, as real traffic has; such answers hide a cheat best.
"""

from collections.abc import Mapping

KINDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "explain": (
        "Explain {} to a ten year old.",
        (
            "how a rainbow forms",
            "gravity",
            "why we dream",
            "electricity",
            "how trees drink",
            "money",
            "echoes",
            "time",
        ),
    ),
    "poem": (
        "Write a short poem about {}.",
        (
            "the sea in winter",
            "an old bridge",
            "bread",
            "a night train",
            "moths",
            "a lost key",
            "frost",
            "my brother",
        ),
    ),
    "how": (
        "How does {} work?",
        (
            "a heat pump",
            "a vaccine",
            "a zip",
            "a steam engine",
            "a loom",
            "sonar",
            "a lock on a canal",
            "yeast",
        ),
    ),
    "history": (
        "Tell me about the history of {}.",
        (
            "the bicycle",
            "chess",
            "paper",
            "tea",
            "the umbrella",
            "glass",
            "libraries",
            "the zero",
        ),
    ),
    "tips": (
        "Give me five tips for {}.",
        (
            "sleeping better",
            "a first marathon",
            "learning Spanish",
            "saving money",
            "drawing",
            "a job interview",
            "growing tomatoes",
            "travelling alone",
        ),
    ),
    "fable": (
        "Invent a fable about {}.",
        (
            "a fox and a clock",
            "two rivers",
            "a proud ant",
            "a crow and a mirror",
            "a blind cat",
            "a tired wind",
            "a snail king",
            "three bells",
        ),
    ),
    "day": (
        "Describe a day in the life of {}.",
        (
            "a lighthouse keeper",
            "a baker",
            "a Roman soldier",
            "a whale",
            "a street musician",
            "an astronaut",
            "a shepherd",
            "a court clerk",
        ),
    ),
    "why": (
        "What is {} and why does it matter?",
        (
            "inflation",
            "biodiversity",
            "a constitution",
            "entropy",
            "a vowel",
            "a budget",
            "herd immunity",
            "irony",
        ),
    ),
    "recipe": (
        "Give me a recipe for {}.",
        (
            "tomato soup",
            "lentil stew",
            "apple cake",
            "flatbread",
            "mushroom risotto",
            "lemonade",
            "pea curry",
            "granola",
        ),
    ),
    "compare": (
        "Compare {}.",
        (
            "cats and dogs as pets",
            "trains and planes",
            "wood and steel",
            "novels and films",
            "tea and coffee",
            "cities and villages",
            "chess and poker",
            "rivers and canals",
        ),
    ),
    "names": (
        "Suggest names for {} and say why.",
        (
            "a small bakery",
            "a sailing boat",
            "a book club",
            "a robot",
            "a ginger cat",
            "a cycling team",
            "a jazz band",
            "a garden",
        ),
    ),
    "summary": (
        "Summarize {} in a few sentences.",
        (
            "the causes of the First World War",
            "the water cycle",
            "the story of Odysseus",
            "the theory of evolution",
            "the French Revolution",
            "how laws are made",
            "the life of a star",
            "the rules of football",
        ),
    ),
    "email": (
        "Write a polite email {}.",
        (
            "asking for a deadline extension",
            "declining an invitation",
            "thanking a teacher",
            "complaining of noise",
            "asking for a refund",
            "inviting a friend",
            "cancelling a lesson",
            "introducing a colleague",
        ),
    ),
    "code": (
        "Write a Python function that {}.",
        (
            "reverses a string",
            "counts vowels",
            "sorts a list of pairs",
            "computes a factorial",
            "reads a CSV file",
            "finds prime numbers",
            "merges two dictionaries",
            "checks a palindrome",
        ),
    ),
    "fact": (
        "What is {}? Answer in one sentence.",
        (
            "the capital of Norway",
            "the largest planet",
            "the boiling point of water",
            "the square root of 144",
            "the longest river in Africa",
            "the chemical symbol of gold",
            "the speed of light",
            "the smallest prime",
        ),
    ),
    "opinion": (
        "Is it better to {}? Give reasons.",
        (
            "rent or to own a home",
            "read news or books",
            "work early or late",
            "plan or improvise",
            "walk or run",
            "learn one skill or many",
            "cook or eat out",
            "write by hand or type",
        ),
    ),
}

QUESTIONS: tuple[str, ...] = tuple(
    pattern.format(subjects[place]) for place in range(8) for pattern, subjects in KINDS.values()
)
"""128 prompts; neighbours are of different kinds."""


def kind_of(question: int) -> str:
    """Name of the kind of a question."""
    return list(KINDS)[question % len(KINDS)]
