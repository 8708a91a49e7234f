# SPDX-License-Identifier: Apache-2.0
"""Prompts of the end-to-end bench, by what is asked: how much an answer copies decides what speculation can give."""

from __future__ import annotations

from pyspec.cli.demo import TEXT as HARBOUR

CODE = """\
def total_price(items, tax_rate):
    subtotal = 0
    for item in items:
        subtotal += item["price"] * item["quantity"]
    return subtotal * (1 + tax_rate)


def average_price(items):
    if not items:
        return 0
    subtotal = 0
    for item in items:
        subtotal += item["price"] * item["quantity"]
    return subtotal / len(items)
"""

CONFIG = """\
class Settings:
    def __init__(self, host, port, user, password):
        self.host = host
        self.port = port
        self.user = user
        self.password = password

    def as_dict(self):
        return {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "password": self.password,
        }
"""

BRIDGE = """\
The council has decided to close the Mill Lane bridge for repairs from the third of March to the end of May. During the
repairs, cars must take the road through Easton, which adds about four miles. Pedestrians and cyclists can use a
temporary footbridge beside the mill. Buses on line 12 will stop at the church instead of the school. The council
expects costs of 240,000 pounds, of which half is paid by the county. Shops on both sides of the bridge stay open. The
council asks residents to report problems with the diversion to the office in the town hall.
"""

CLASSES: dict[str, tuple[str, ...]] = {
    "code-copying": (
        f"Rename the variable subtotal to amount everywhere in this Python code and print the whole code.\n\n```python\n{CODE}```",
        f"Add an attribute timeout to this Python class and print the whole class.\n\n```python\n{CONFIG}```",
    ),
    "summarising": (
        f"Summarise this text in three sentences, using its own words.\n\n{HARBOUR}",
        f"List the facts of this notice that a driver must know, in the words of the notice.\n\n{BRIDGE}",
    ),
    "chat": (
        "I have a free weekend and would like to do something outside with two small children. What do you suggest?",
        "What is the difference between a violin and a viola?",
    ),
    "maths": (
        "A train leaves at 9:40 and travels 210 km at 84 km/h. When does it arrive? Explain step by step.",
        "Anna has 3 boxes with 12 pencils each. She gives 7 pencils to each of 4 friends. How many are left? Think step by step.",
    ),
    "free-writing": (
        "Write a short story about a lighthouse keeper who finds a message in a bottle.",
        "Write a poem about the first snow in a big city.",
    ),
}
