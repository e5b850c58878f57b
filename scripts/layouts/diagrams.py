# SPDX-License-Identifier: GPL-2.0
"""The diagrams of messages in a document: boxes made of +, - and |, with offsets at their margins.

The first line of a diagram has the offsets of its columns. The border above a row may have the
offset of the row on the left, and the end of the row above on the right. To the right of a row
may be the name of the struct that begins in it, or of the member of event_data that it shows. A
box that is open at the end of a row continues where the next row is open at its start.
"""

import re
from typing import NamedTuple

HEADING = re.compile(r"^PROC_EVENT_\w+ \(0x")
# Short names for fields whose names are too long for their box.
SHORT = {"type": "nlmsg_type", "op": "mcast_op", "mask": "event_type"}
MEMBERS = {"uid": "id", "gid": "id"}


class Diagram(NamedTuple):
    """The lines of a diagram, the number of the first one, and the headings above the diagram."""
    first: int
    lines: list
    headings: list


class Box(NamedTuple):
    text: str
    line: int
    offset: int
    end: int


def diagrams(text):
    """The diagrams of a reST document: literal blocks with borders."""
    lines = text.splitlines()
    headings, number = [], 0
    while number < len(lines):
        if set(lines[number]) in ({"-"}, {"="}) and number and lines[number - 1].strip():
            headings = lines[number - 1].split(", ")
        if lines[number].endswith("::") and not lines[number].startswith(".."):
            first = number + 2
            number = first
            while number < len(lines) and (not lines[number] or lines[number].startswith("  ")):
                number += 1
            block = lines[first:number]
            if any("+--" in line for line in block):
                yield Diagram(first + 1, [line for line in block if line], headings)
        else:
            number += 1


class Grid:
    """A diagram's characters, and which bytes they stand for."""

    def __init__(self, diagram):
        self.problems = []
        self.first = diagram.first
        header, *self.lines = diagram.lines
        border = self.lines[0]
        self.left, self.right = border.index("+"), border.rindex("+")
        columns = list(re.finditer(r"\d+", header))
        self.start, end = int(columns[0][0]), int(columns[-1][0])
        self.width = end - self.start
        self.characters = self.right - self.left
        for column in columns:
            covered = [self.column(at) for at in range(column.start(), column.end())]
            if int(column[0]) - self.start not in covered:
                self.problem(-1, f"the column {column[0]} is above another one")
        self.rows()

    def problem(self, index, what):
        self.problems.append((self.first + 1 + index, what))

    def column(self, at):
        """The byte in a row that the position of a character stands for, or None."""
        byte, rest = divmod((at - self.left) * self.width, self.characters)
        return None if rest else byte

    def rows(self):
        """Finds the row of each line, and checks the offsets at the margins."""
        self.row_of = []
        row, content = self.start, False
        for index, line in enumerate(self.lines):
            is_border = line[self.left:self.left + 1] not in ("|", " ")
            if is_border and content:
                row, content = row + self.width, False
            content = content or not is_border
            self.row_of.append(None if is_border else row)
            if not is_border:
                continue
            margin = re.match(r"\s*(\d+)", line)
            if margin and int(margin[1]) != row:
                self.problem(index, f"this row starts at {row}, not at {margin[1]}")
            total = re.search(r"\+\s+(\d+)$", line)
            if total:
                # This border is below the row that ends there.
                end = row - self.width + self.column(total.start())
                if int(total[1]) != end:
                    self.problem(index, f"the row above ends at {end}, not {total[1]}")

    def is_border(self, index, at):
        line = self.lines[index]
        character = line[at:at + 1] or " "
        if character == "|":
            return True
        if character not in "+-" and not (at <= self.left and character.isdigit()):
            return False
        # A sum has spaces around its sign.
        return "-" in (line[at - 1:at], line[at + 1:at + 2], character) or at == self.left

    def boxes(self):
        """The boxes. A box that continues in the next row is one box."""
        seen, regions = set(), []
        for index, row in enumerate(self.row_of):
            for at in range(self.left + 1, self.right):
                if row is not None and (index, at) not in seen and not self.is_border(index, at):
                    region = self.region(index, at)
                    seen |= region
                    # A region that reaches the last border is the empty space beside a short row.
                    if all(index < len(self.lines) - 1 for index, _ in region):
                        regions.append(self.box(region))
        return self.joined(regions)

    def region(self, index, at):
        """The positions that no border separates from each other."""
        region, left = set(), [(index, at)]
        while left:
            index, at = left.pop()
            if (index, at) in region or not 0 <= index < len(self.lines):
                continue
            if not self.left <= at < self.right or self.is_border(index, at):
                continue
            region.add((index, at))
            left += [(index - 1, at), (index + 1, at), (index, at - 1), (index, at + 1)]
        return region

    def box(self, region):
        text, bytes_of_rows = "", set()
        for index in sorted({index for index, _ in region}):
            places = sorted(at for line, at in region if line == index)
            text += self.lines[index][places[0]:places[-1] + 1] + " "
            row = self.row_of[index]
            if row is not None:
                first = self.column(max(places[0] - 1, self.left))
                if places[0] == self.left:
                    first = 0
                end = self.column(places[-1] + 1)
                if first is None or end is None:
                    self.problem(index, f"a box without whole bytes: {text.strip()}")
                    first = end = 0
                bytes_of_rows |= set(range(row + first, row + end))
        line = min(index for index, _ in region)
        name = " ".join(text.split())
        if not bytes_of_rows:
            return Box(name, line, 0, 0)
        if len(bytes_of_rows) != max(bytes_of_rows) + 1 - min(bytes_of_rows):
            self.problem(line, f"a box whose bytes are not adjacent: {name}")
        return Box(name, line, min(bytes_of_rows), max(bytes_of_rows) + 1)

    def joined(self, boxes):
        """Joins the box at the open end of a row with the one at the open start of the next."""
        boxes = sorted(boxes, key=lambda box: box.offset)
        whole = []
        for box in boxes:
            opens = self.lines[box.line][self.left:self.left + 1] == " "
            if opens and whole and (box.offset - self.start) % self.width == 0:
                before = whole.pop()
                box = Box(before.text + box.text, before.line, before.offset, box.end)
            whole.append(box)
        return whole

    def remarks(self):
        """The names on the right: structs, and members of event_data."""
        return [remark for line in self.lines
                for remark in re.findall(r"struct \w+$|\.\w+$", line[self.right + 1:])]


def events_of(headings):
    """The members of event_data that a section is about."""
    names = [heading.split("_", 2)[2].split(" ")[0].lower() for heading in headings]
    return {MEMBERS.get(name, name) for name in names}


def not_drawn(text, structs):
    """The members of event_data that no diagram shows. The one of answers is in another section."""
    drawn = {"ack"}
    for diagram in diagrams(text):
        if HEADING.match(diagram.headings[0]):
            drawn |= events_of(diagram.headings)
    union = structs["proc_event"].under("event_data")
    return sorted({field.path[1] for field in union} - drawn)


def fields_of(diagram, grid, structs, constants):
    """The fields that a diagram has to show, from the start of the message."""
    event = constants["NLMSG_HDRLEN"] + structs["cn_msg"].size
    if HEADING.match(diagram.headings[0]):
        for name in events_of(diagram.headings):
            for field in structs["proc_event"].under(name):
                yield field._replace(offset=event + field.offset)
        return
    remarks = grid.remarks()
    # A struct that follows an event is drawn without the event.
    base = event + structs["proc_event"].size if follows_event(grid) else 0
    members = [remark[1:] for remark in remarks if remark.startswith(".")]
    for name in [remark.split()[1] for remark in remarks if remark.startswith("struct ")]:
        struct = structs[name]
        union = struct.under("event_data")
        shown = [field for field in struct.fields if field not in union and field.size]
        for member in members:
            shown += [field for field in union if member in field.path]
        if union and not members:
            offset = struct.offset("event_data")
            shown.append(Shown(("event_data",), offset, struct.size - offset))
        for field in shown:
            yield field._replace(offset=base + field.offset)
        base += constants["NLMSG_HDRLEN"] if name == "nlmsghdr" else struct.size


def follows_event(grid):
    return "struct proc_event_identity" in grid.remarks()


class Shown(NamedTuple):
    """A whole union, which a box may show instead of fields."""
    path: tuple
    offset: int
    size: int


def place(name, field):
    """The offset and end of a field, if a box with this name shows it; otherwise None. A box may
    show a slice of an array."""
    part = re.fullmatch(r"(\w+)\[(\d+)\.\.(\d+)\]", name)
    if part and part[1] == field.path[-1]:
        return field.offset + int(part[2]), field.offset + int(part[3]) + 1
    known = {field.path[-1], field.path[-1].removeprefix("nlmsg_")}
    if name in known or SHORT.get(name) in known:
        return field.offset, field.offset + field.size
    return None


def value_problem(box, number, field, total, constants, structs):
    """The problem with a number in a box, or None."""
    payload = total - constants["NLMSG_HDRLEN"] - structs["cn_msg"].size
    expected = {"nlmsg_len": total, "len": payload, "nlmsg_type": constants["NLMSG_DONE"],
                "idx": constants["CN_IDX_PROC"], "val": constants["CN_VAL_PROC"]}
    name = field.path[-1]
    if name in expected and expected[name] != number:
        return f"{name} is {expected[name]}, not {number} ({box.text})"
    return None


def check(diagram, structs, constants):
    """The problems of a diagram, with line numbers."""
    grid = Grid(diagram)
    fields = list(fields_of(diagram, grid, structs, constants))
    if not fields:
        return [*grid.problems, (diagram.first, "a diagram of no known struct")]
    total = constants["NLMSG_HDRLEN"] + structs["cn_msg"].size + structs["proc_event"].size
    if any("mcast_op" in field.path for field in fields):
        total += structs["proc_listen"].size - structs["proc_event"].size
    if follows_event(grid):
        total += structs["proc_event_identity"].size
    boxes = grid.boxes()
    drawn = max(box.end for box in boxes)
    if drawn != total:
        grid.problem(boxes[-1].line, f"the message has {total} bytes, {drawn} are drawn")
    shown = set()
    for box in boxes:
        value = re.fullmatch(r"(?:(.*?)\s+)?(\d+)", box.text)
        name = value[1] if value else box.text
        name = re.sub(r" \+$", "", name) if name else name
        at = box.offset, box.end
        here = [field for field in fields if (field.offset, field.offset + field.size) == at]
        for alternative in name.split(" / ") if name else []:
            places = [place(alternative, field) for field in fields]
            if at not in places:
                known = " or ".join(f"{start}..{end}" for start, end in filter(None, places))
                grid.problem(box.line, f"{alternative} is drawn at {at[0]}..{at[1]}, "
                             f"and is at {known or 'no place'}")
        if name or value:
            shown |= set(range(*at))
        if value and here and not box.text.endswith("+ 1"):
            problem = value_problem(box, int(value[2]), here[0], total, constants, structs)
            if problem:
                grid.problem(box.line, problem)
        elif value and not name and not here and int(value[2]):
            grid.problem(box.line, f"{box.text} is in no field")
    for field in fields:
        if not set(range(field.offset, field.offset + field.size)) <= shown:
            grid.problem(0, f"{'.'.join(field.path)} at {field.offset} is not shown")
    return grid.problems
