"""Vocabulary of the tasks in tasks.py. The last third of a list is held out: training never sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def split(words: Sequence[T], held_out: bool) -> Sequence[T]:
    first = len(words) - len(words) // 3
    return words[first:] if held_out else words[:first]


# --- classification: 11 objects x 7 issues ----------------------------------------------------------------------------

OBJECTS = {
    "card": ("card", "debit card", "plastic", "bank card", "contactless card", "Visa"),
    "transfer": ("transfer", "wire", "money I sent", "payment to my landlord", "bank transfer", "remittance"),
    "deposit": ("deposit", "cheque I paid in", "cash I put in", "paid-in money", "check deposit", "top-up"),
    "loan": ("loan", "borrowing", "credit for the car", "personal loan", "instalment plan", "financing"),
    "mortgage": ("mortgage", "home loan", "house financing", "loan on the flat", "property loan", "housing credit"),
    "account": ("account", "current account", "checking account", "main account", "everyday account", "bank account"),
    "savings": ("savings", "savings pot", "rainy day fund", "nest egg", "deposit book", "money put aside"),
    "app": ("app", "phone app", "mobile banking", "application on my phone", "app on my tablet", "mobile client"),
    "debit": ("direct debit", "standing order", "monthly bill payment", "recurring charge", "autopay", "subscription"),
    "atm": ("ATM", "cash machine", "cashpoint", "machine in the lobby", "hole in the wall", "withdrawal terminal"),
    "insurance": ("insurance", "policy", "cover", "travel cover", "insurance plan", "protection plan"),
}
ISSUES = {
    "slow": (
        "how long until the {x} is through", "still waiting on the {x}", "the {x} is taking ages",
        "when can I expect my {x}", "a week now and the {x} is not there", "is the {x} supposed to need this long",
        "nothing has happened with the {x} since Monday", "why is there no progress on the {x}",
        "the {x} should have come by now",
    ),
    "refused": (
        "the {x} did not go through", "you turned down my {x}", "why was the {x} rejected", "my {x} got bounced",
        "the {x} keeps saying no", "it will not accept the {x}", "what made you say no to the {x}",
        "I was denied the {x}", "the {x} got knocked back",
    ),
    "fee": (
        "why was I charged for the {x}", "what does the {x} cost me", "there is a fee on the {x}",
        "you took money for the {x} on top", "how expensive is the {x}", "is the {x} free",
        "an extra pound went off for the {x}", "what am I paying for the {x}", "do I get billed for using the {x}",
    ),
    "stop": (
        "please cancel the {x}", "I no longer want the {x}", "how do I end the {x}", "get rid of the {x} for me",
        "close the {x}", "I want out of the {x}", "put an end to the {x} today", "call the {x} off",
        "I am done with the {x}",
    ),
    "limit": (
        "what is the most I can get from the {x}", "raise the cap on my {x}", "is there a maximum on the {x}",
        "the {x} only lets me have so much", "how high can the {x} go", "I need a larger allowance on the {x}",
        "can the {x} be for more than five hundred", "where does the {x} top out", "how much is allowed with the {x}",
    ),
    "start": (
        "I would like a new {x}", "how do I get the {x}", "set up the {x} for me", "can I apply for the {x}",
        "sign me up for the {x}", "what do I need to open the {x}", "I do not have the {x} yet, what now",
        "which papers do you want for the {x}", "where can someone get hold of the {x}",
    ),
    "fraud": (
        "somebody else used my {x}", "I do not recognise the {x}", "the {x} was not me", "my {x} was stolen",
        "a stranger got into the {x}", "I never agreed to the {x}", "that {x} is none of my doing",
        "there is a thief behind the {x}", "I have been scammed with the {x}",
    ),
}  # fmt: skip
FILLERS = (
    ("", "?"), ("", "."), ("Hi, ", "."), ("Hello! ", ", thanks"), ("", ", please help"), ("So ", "..."),
    ("My wife asks: ", "?"), ("Good evening, ", "?"), ("", ", any idea?"), ("Sorry to bother you, ", "."),
)  # fmt: skip

# --- extraction -------------------------------------------------------------------------------------------------------

PEOPLE = (
    "Anna Berg", "Tom Reyes", "Lucia Marino", "Omar Haddad", "Grace Lin", "Peter Novak", "Ines Duarte", "Kofi Mensah",
    "Marta Kowal", "David Stone", "Yuki Tanaka", "Sara Holm", "Ben Carter", "Nina Petrova", "Leo Fischer", "Asha Rao",
    "Julia Weber", "Sam Okoro", "Clara Nunes", "Ivan Horvat", "Emma Clarke", "Hugo Martin", "Lena Vogel", "Ravi Shah",
)  # fmt: skip
CITIES = (
    "Lisbon", "Graz", "Oslo", "Porto", "Ghent", "Turin", "Leeds", "Lyon", "Basel", "Gdansk", "Malmo", "Cork",
    "Seville", "Bremen", "Tartu",
)  # fmt: skip
THINGS = ("lamps", "chairs", "mugs", "tiles", "books", "pens", "boxes", "shirts", "clocks", "seeds", "apples", "plates")
NOTES = (
    "{name} of {city} wants {count} {item} on {date}.",
    "On {date} we bring {count} {item} to {name}, {city}.",
    "To {city}: {item}, {count} pieces, for {name}, due {date}.",
    "{count} {item} were ordered by {name} in {city}; deliver {date}.",
    "Please ship {item} ({count}) by {date} to {city}, attention {name}.",
    "{name} called from {city} about {date}: it is {count} {item} now.",
    "Van to {city} on {date}. Load {count} {item}. Signed by {name}.",
    "{city} branch, {name}: expects {item}, exactly {count}, on {date}.",
    "We owe {name} {count} {item}. {city}, {date}, no later.",
)

# --- style: plain -> ours ---------------------------------------------------------------------------------------------

DOINGS = {
    "The delivery of the desks": "Desks rolling in", "The repair of the lift": "Lift back in shape",
    "The new website": "Website launch", "The office move": "Moving day", "The monthly report": "Numbers are out",
    "The staff training": "Class is in", "The payroll run": "Payday", "The security audit": "Locks checked",
    "The summer party": "Party time", "The fire drill": "Drill time", "The price update": "Fresh prices",
    "The customer survey": "Survey says",
}  # fmt: skip
REASONS = {
    "the supplier is on strike": "a strike", "it snowed in the mountains": "the snow", "two people are ill": "the flu",
    "the parts are missing": "lost parts", "the server broke down": "a dead server", "the road is closed": "roadworks",
    "the contract is not signed": "a missing pen stroke", "the budget was cut": "the budget",
    "the keys were lost": "lost keys",
}  # fmt: skip
REMEDIES = {
    "We have asked for help from Lisbon": "Lisbon rides to the rescue.",
    "We will work on Saturday": "Saturday shift it is.",
    "We ordered replacements": "Spares are coming.",
    "A second team was put on it": "Team two is in.",
    "The manager will call everybody": "The boss will ring.",
    "There is nothing we can do": "We wait.",
}

# --- arithmetic -------------------------------------------------------------------------------------------------------

STORIES = (
    "{n} has {a} {x}, buys {b} more and gives away {c}. How many are left?",
    "There were {a} {x} in the shop. {b} came in and {c} were sold. How many now?",
    "{n} counts {a} {x}, then {b} others, but {c} are broken. How many are good?",
    "A box holds {a} {x} and another {b}. {n} takes {c} out. How many remain?",
)
