"""What a listing of machine code by `nvdisasm` says of a GPU kernel: the instructions of its main loop."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

LABEL = re.compile(r"^(\.L_x_\d+):")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)([^;/]*)")
TARGET = re.compile(r"`\((\.L_x_\d+)\)")
MATRIX = re.compile(r"MMA(?!_)")  # HGMMA, IGMMA, QGMMA of Hopper; UTCHMMA, UTCQMMA, UTCOMMA of Blackwell; HMMA before
LOCAL = re.compile(r"(LDL|STL)(\.|$)")


class Instruction(NamedTuple):
    """One instruction: its opcode with modifiers, where it may jump, and whether what follows it may come next."""

    opcode: str
    target: str | None
    falls_through: bool


def parse(listing: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions of a listing in order, and the position each label stands at."""
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(code)
        elif found := INSTRUCTION.search(line):
            predicate, opcode, operands = found.groups()
            kind = opcode.split(".")[0]
            target = TARGET.search(operands) if kind in ("BRA", "JMP") else None
            conditional = predicate is not None or re.match(r"\s*!?U?P\d", operands) is not None
            ends = kind in ("BRA", "JMP", "BRX", "EXIT", "RET") and not conditional
            code.append(Instruction(opcode, target[1] if target else None, not ends))
    return code, labels


def main_loop(code: Sequence[Instruction], labels: dict[str, int]) -> list[str]:
    """The opcodes of the loop that multiplies matrices: [] where there is none.

    A loop is a set of blocks each of which reaches every other, blocks that wait or start copies out of line included.
    """
    starts = sorted({0, *labels.values(), *(i + 1 for i, c in enumerate(code) if c.target or not c.falls_through)})
    starts = [i for i in starts if i < len(code)]
    ends = [*starts[1:], len(code)]
    block_at = {start: b for b, start in enumerate(starts)}
    after: list[set[int]] = []
    for b, end in enumerate(ends):
        last = code[end - 1]
        jump = {block_at[labels[last.target]]} if last.target and labels[last.target] in block_at else set()
        after.append(jump | ({b + 1} if last.falls_through and b + 1 < len(starts) else set()))
    reached = [_reach(after, b) for b in range(len(starts))]
    loops = [[c for c in sorted(reached[b]) if b in reached[c]] for b in range(len(starts)) if b in reached[b]]
    bodies = [[code[i].opcode for b in loop for i in range(starts[b], ends[b])] for loop in loops]
    return max(bodies, key=lambda body: (len(products(body)), len(body)), default=[])


def products(opcodes: Sequence[str]) -> list[str]:
    """The matrix instructions among them."""
    return [opcode for opcode in opcodes if MATRIX.search(opcode)]


def spills(code: Sequence[Instruction]) -> int:
    """Loads and stores of local memory: registers that did not fit."""
    return sum(LOCAL.match(c.opcode) is not None for c in code)


def _reach(after: Sequence[set[int]], start: int) -> set[int]:
    seen: set[int] = set()
    waiting = [start]
    while waiting:
        new = after[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen
