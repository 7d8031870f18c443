"""Write the three files beside this one: `python examples/support-tickets/make.py`. The same bytes every time.

A customer writes, the answer is one line of JSON for the help desk. Invented from the lists below by Tunery's authors,
so there is nothing in it to license but Tunery itself (Apache-2.0). The held-out files have names, products, order
numbers and whole sentences that the training file does not have.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
SEED = 20_260
TRAIN, VALID, HELD_OUT = 160, 24, 40


@dataclass(frozen=True)
class Words:
    """What a split is made of. {n} is the name, {p} the product, {o} the order."""

    names: tuple[str, ...]
    products: tuple[str, ...]
    sentences: dict[str, tuple[str, ...]]  # by topic
    urgent: tuple[str, ...]
    calm: tuple[str, ...]
    greetings: tuple[str, ...]


SEEN = Words(
    names=(
        "Anna Berg", "Tom Reyes", "Lucia Marino", "Omar Haddad", "Grace Lin", "Peter Novak", "Ines Duarte",
        "Kofi Mensah",
        "Marta Kowal", "David Stone", "Yuki Tanaka", "Sara Holm", "Ben Carter", "Nina Petrova", "Leo Fischer",
        "Asha Rao",
        "Julia Weber", "Sam Okoro", "Clara Nunes", "Ivan Horvat", "Emma Clarke", "Hugo Martin", "Lena Vogel",
        "Ravi Shah",
    ),
    products=(
        "coffee grinder", "desk lamp", "rain jacket", "yoga mat", "office chair", "water bottle",
        "bike helmet", "toaster",
        "phone case", "hiking boots", "electric kettle", "wool blanket", "keyboard", "travel mug",
        "garden hose", "backpack",
        "frying pan", "alarm clock", "sleeping bag", "wall clock", "hair dryer", "tennis racket", "bookshelf",
        "headphones",
    ),
    sentences={
        "delivery": (
            "My {p} from order {o} still has not arrived.",
            "Where is my {p}? Order {o} was promised for last week.",
            "The tracking page for order {o} has not moved in days and I am waiting for my {p}.",
            "I ordered a {p} and nothing came. The order is {o}.",
            "Order {o} says delivered, but there is no {p} at my door.",
            "Can you tell me when the {p} in order {o} will get here?",
            "It has been ten days and there is no sign of my {p}, order {o}.",
            "The driver left order {o} with nobody, so I do not have the {p}.",
            "Is the {p} from order {o} lost in the mail?",
            "I keep waiting for the {p}. Could you look up order {o}?",
        ),
        "broken": (
            "The {p} from order {o} stopped working after two days.",
            "My new {p} has a crack in it. The order is {o}.",
            "Order {o}: the {p} came damaged in its box.",
            "I opened order {o} and the {p} is missing a part.",
            "The {p} makes a strange noise and then dies. I bought it with order {o}.",
            "Something is wrong with the {p} you sent me in order {o}.",
            "The {p} in order {o} does not turn on.",
            "After one week the {p} from order {o} is already falling to pieces.",
            "I think the {p} is faulty. It came with order {o}.",
            "A part of the {p} snapped off while I was using it, order {o}.",
        ),
        "refund": (
            "I want my money back for the {p} in order {o}.",
            "I returned the {p} from order {o} and no refund has come.",
            "Please refund order {o}, the {p} is not what I expected.",
            "The {p} was cheaper elsewhere. I would like to return order {o}.",
            "How do I send back the {p} I got with order {o}?",
            "You charged me twice for the {p}. The order is {o}.",
            "I sent the {p} back two weeks ago and I have not been paid back for order {o}.",
            "I do not like the {p}, please give me my money back for order {o}.",
            "When will I see the money for the {p} that I returned from order {o}?",
            "The {p} is not right for me. I want to return order {o}.",
        ),
        "change": (
            "Can I still change the colour of the {p} in order {o}?",
            "Please send the {p} from order {o} to my office instead.",
            "I would like two of the {p} instead of one in order {o}.",
            "Order {o} has my old address. The {p} should go to the new one.",
            "I picked the wrong size of {p} in order {o}. Can you switch it?",
            "Please add a gift note to the {p} in order {o}.",
            "Could you ship order {o} to my parents? It is the {p}.",
            "I would rather have the {p} in order {o} in a smaller size, is that possible?",
            "Is it too late to swap the {p} in order {o} for another model?",
            "Could you deliver the {p} a week later? The order is {o}.",
        ),
    },
    urgent=(
        "I need this solved today.", "This is urgent.", "Please hurry, I leave tomorrow.",
        "I need an answer right now.",
    ),
    calm=(
        "There is no rush.", "Whenever you have time.", "Thanks a lot.", "Take your time.",
        "Thank you for your help.",
    ),
    greetings=("Hello,", "Hi,", "Good morning,", "Dear team,", "Hi there,"),
)  # fmt: skip
UNSEEN = Words(
    names=("Maya Lindqvist", "Carlos Vega", "Hannah Moss", "Jonas Keller", "Priya Nair", "Elif Demir", "Oscar Dahl"),
    products=("camping stove", "mountain bike", "sewing machine", "rice cooker", "snow shovel", "drum kit", "ladder"),
    sentences={
        "delivery": (
            "Three weeks now and still no {p}. Could you check order {o}?",
            "The courier never showed up with the {p}, order {o}.",
        ),
        "broken": (
            "The {p} in order {o} fell apart when I first used it.",
            "I cannot switch on the {p} that came with order {o}, it seems defective.",
        ),
        "refund": (
            "The {p} does not suit me, so please pay back order {o}.",
            "It has been a month since I sent the {p} back and I still see no money for order {o}.",
        ),
        "change": (
            "Could order {o} be shipped to my sister's address? It is the {p}.",
            "Would it be possible to swap the {p} in order {o} for the larger model?",
        ),
    },
    urgent=("It really cannot wait, I need it today.", "This is very urgent, please answer now."),
    calm=("No hurry at all.", "Many thanks in advance."),
    greetings=("Good evening,", "Hello there,"),
)


def ticket(words: Words, dice: random.Random) -> dict[str, object]:
    """One chat example: the customer's mail, and the line the help desk wants."""
    topic = dice.choice(sorted(words.sentences))
    name, product = dice.choice(words.names), dice.choice(words.products)
    order = f"{dice.choice('ABCDEFGHJKLMNP')}{dice.randint(1000, 9999)}"
    is_urgent = dice.random() < 0.4
    parts = [
        dice.choice(words.greetings),
        dice.choice(words.sentences[topic]).format(p=product, o=order),
        dice.choice(words.urgent if is_urgent else words.calm),
        name,
    ]
    answer = {"topic": topic, "product": product, "order": order, "urgent": is_urgent, "customer": name}
    return {
        "messages": [
            {"role": "user", "content": " ".join(parts)},
            {"role": "assistant", "content": json.dumps(answer)},
        ]
    }


def write(path: Path, words: Words, count: int, dice: random.Random) -> None:
    lines = [json.dumps(ticket(words, dice), ensure_ascii=False) + "\n" for _ in range(count)]
    path.write_text("".join(lines), encoding="utf-8")


def main() -> None:
    dice = random.Random(SEED)
    write(HERE / "train.jsonl", SEEN, TRAIN, dice)
    write(HERE / "valid.jsonl", UNSEEN, VALID, dice)
    write(HERE / "heldout.jsonl", UNSEEN, HELD_OUT, dice)


if __name__ == "__main__":
    main()
