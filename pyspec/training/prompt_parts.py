# SPDX-License-Identifier: Apache-2.0
"""Pieces that prompts.py puts together: orders, word problems, functions to ask for, and where to look for text."""

from __future__ import annotations

PACKAGES = (
    "click",
    "hypothesis",
    "jinja2",
    "numpy",
    "pytest",
    "rich",
    "safetensors",
    "scipy",
    "tokenizers",
    "torch",
    "tqdm",
    "transformers",
)
STDLIB_MODULES = (
    "argparse", "ast", "base64", "bisect", "calendar", "cmd", "code", "codecs", "collections/__init__", "colorsys", "configparser",
    "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal", "difflib", "dis", "doctest", "email/message", "email/utils", "enum",
    "filecmp", "fileinput", "fnmatch", "fractions", "ftplib", "functools", "getopt", "gettext", "glob", "graphlib", "gzip", "hashlib",
    "heapq", "hmac", "html/__init__", "html/parser", "http/client", "http/cookies", "imaplib", "inspect", "ipaddress", "json/decoder",
    "json/encoder", "keyword", "linecache", "locale", "logging/__init__", "logging/handlers", "mailbox", "mimetypes", "multiprocessing/pool",
    "netrc", "numbers", "operator", "optparse", "os", "pathlib", "pdb", "pkgutil", "platform", "plistlib", "poplib", "posixpath", "pprint",
    "profile", "pyclbr", "pydoc", "queue", "quopri", "random", "reprlib", "sched", "secrets", "selectors", "shelve", "shlex", "shutil",
    "smtplib", "socket", "socketserver", "ssl", "stat", "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading",
    "timeit", "tokenize", "trace", "traceback", "turtle", "types", "typing", "unittest/case", "unittest/mock", "urllib/parse",
    "urllib/request", "uuid", "warnings", "wave", "weakref", "xml/dom/minidom", "xml/etree/ElementTree", "zipfile",
)  # fmt: skip
CODE_STARTS = ("Write a Python function that", "Write Python code to", "How do I", "Fix the bug in this Python code.\n\n```python\n",
                "Explain this code.\n\n```python\n", "Write a Python class that", "Write a program that reads")  # fmt: skip
MATHS_ENDINGS = (
    "",
    "",
    " Think step by step.",
    " Explain how you get the answer.",
    " Show the calculation.",
)
SUMMARY = (
    "Summarise this text in three sentences.", "Summarise the following text.", "Give a short summary of this text.",
    "What are the main points of the following text?", "Explain the following text in simple words.",
    "List the most important facts of this text.", "Write a title and two sentences that sum up this text.",
    "Summarise the text. Quote its sentences where you can.",
)  # fmt: skip
COPY = (
    "Repeat the following text word for word.", "Correct spelling mistakes in this text and print the whole text.",
    "Rewrite this text as a list of bullet points.", "Rewrite the following text in a friendlier tone.",
    "Print this text again with a heading for every paragraph.",
)  # fmt: skip
EDIT = (
    "Rename {old} to {new} everywhere in this Python code and print the whole code.",
    "Add a comment to every step of this Python function and print it.",
    "Add type hints to this Python function and print the whole function.",
    "Print this Python function again, with a better docstring.",
    "Add a parameter {new} with default None to this function and print the whole function.",
)  # fmt: skip
NEW_NAMES = ("amount", "total", "entry", "item", "result", "source", "target", "timeout", "limit", "label")
KEYWORDS = {"and", "def", "for", "not", "none", "return", "self", "while", "with", "from", "import", "try", "except", "else", "raise",
             "pass", "class", "yield", "break", "lambda", "global", "finally", "assert", "continue", "elif", "del"}  # fmt: skip
OPERATIONS = (
    ("count_{w}", "Count the {x} in the given {c}."), ("find_{w}", "Find the first of the {x} in the given {c}, or return None."),
    ("remove_{w}", "Return the {c} without its {x}."), ("split_{w}", "Split the given {c} into its {x} and the rest."),
    ("group_{w}", "Group the {x} of the {c} by their length and return a dictionary."),
    ("longest_{w}", "Return the longest run of {x} in the given {c}."), ("has_{w}", "Check whether the {c} has any {x}."),
    ("replace_{w}", "Replace all {x} in the {c} with the given value and return the new {c}."),
    ("reverse_{w}", "Return the {c} with the order of its {x} reversed."), ("sort_{w}", "Sort the {x} of the {c} from high to low."),
    ("unique_{w}", "Return the {x} of the {c} without repetitions, in the order given."),
    ("sum_{w}", "Add up the values of the {x} in the given {c}."),
)  # fmt: skip
THINGS = (
    ("words", "words", "sentence", "text: str", "str"), ("digits", "digits", "string", "text: str", "str"),
    ("negatives", "negative numbers", "list", "values: list[int]", "list[int]"), ("duplicates", "repeated items", "list", "items: list", "list"),
    ("primes", "prime numbers", "list of integers", "numbers: list[int]", "list[int]"),
    ("leaves", "leaf nodes", "binary tree", "root: Node", "list"), ("columns", "empty columns", "table", "rows: list[list[str]]", "list"),
    ("lines", "blank lines", "file", "path: str", "list[str]"), ("orders", "open orders", "list of orders", "orders: list[dict]", "list[dict]"),
    ("edges", "edges", "graph", "graph: dict[str, list[str]]", "list"), ("dates", "dates", "log", "log: str", "list[str]"),
    ("squares", "perfect squares", "range from low to high", "low: int, high: int", "list[int]"),
    ("keys", "keys with empty values", "dictionary", "data: dict", "dict"), ("brackets", "brackets", "expression", "expression: str", "str"),
)  # fmt: skip
NAMES = ("Ava", "Ben", "Chloe", "Dmitri", "Elena", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kira", "Liam", "Mara", "Noor", "Oscar",
          "Priya", "Quentin", "Rosa", "Sven", "Tara", "Umar", "Vera", "Wei", "Yusuf", "Zoe")  # fmt: skip
ITEMS = ("apples", "stamps", "books", "marbles", "tickets", "eggs", "pencils", "candles", "bottles", "shells", "cards", "cups",
          "balloons", "bricks", "cookies", "photos", "plants", "ribbons")  # fmt: skip
PROBLEMS = (
    "{a} has {m} {x} and buys {n} more. Then {a} gives {k} {x} to {b}. How many {x} does {a} have now?",
    "A box holds {k} {x}. {a} packs {m} boxes on Monday and {n} boxes on Tuesday. How many {x} does {a} pack in all?",
    "{a} sells {x} for ${k} each. On Saturday {a} sells {m} of them and on Sunday half as many. How much money does {a} earn?",
    "{a} reads {k} pages every day. The book has {m}0 pages. How many days does {a} need, and how many pages are left for the last day?",
    "A train travels at {m} km/h for {k} hours and then at {n} km/h for 2 hours. How far does it go?",
    "{a} and {b} share {m} {x}. {a} gets {k} more than {b}. How many {x} does each of them get?",
    "A shop has {m} {x}. It sells a quarter of them in the morning and {k} in the afternoon. How many {x} are left?",
    "A recipe for {k} people needs {m} grams of flour. How much flour does {a} need for {n} people?",
    "{a} earns ${k} an hour and works {m} hours a week. {a} saves 20% of the money. How much does {a} save in {n} weeks?",
    "The price of a coat is ${m}. In the sale it costs {k}% less. {a} also has a voucher over $5. What does {a} pay?",
    "{a} is {k} years older than {b}. In {n} years their ages will add up to {m}. How old is {b} today?",
    "A garden is {k} metres wide and {m} metres long. A fence costs ${n} a metre. What does a fence around the garden cost?",
    "There are {m} students in a school. Three fifths of them take the bus, {k} walk, and the others cycle. How many cycle?",
    "{a} fills a tank of {m} litres. Each minute {k} litres flow in and 2 litres flow out. How long does it take?",
    "{a} runs {k} km on weekdays and twice as far on each day of the weekend. How far does {a} run in {n} weeks?",
    "In a bag there are {m} red, {k} blue and {n} green {x}. What is the probability of drawing a blue one?",
    "What is {m} * {k} - {n}?", "Solve for x: {k}x + {n} = {m}.", "What is {k}% of {m}?",
    "The average of five numbers is {m}. Four of them are {k}, {n}, {m} and {k}. What is the fifth?",
    "{a} buys {k} {x} at ${n} each and {m} {y} at $2 each, and pays with a $500 note. How much change does {a} get?",
    "A rectangle has an area of {m} square metres and is {k} metres wide. What is its perimeter?",
)  # fmt: skip
