# SPDX-License-Identifier: GPL-2.0
"""The offsets of the fields of the interface's structs, as the compiler chooses them."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

INCLUDES = ["sys/socket.h", "linux/netlink.h", "linux/connector.h", "linux/cn_proc.h"]
STRUCTS = ["nlmsghdr", "cn_msg", "proc_input", "proc_listen", "proc_event",
           "proc_event_identity"]
# NLMSG_HDRLEN is the distance between the start of a message and its payload.
CONSTANTS = ["NLMSG_HDRLEN", "NLMSG_DONE", "CN_IDX_PROC", "CN_VAL_PROC",
             "PROC_CN_BATCH_SIZE"]

START = re.compile(r"^\s*(?:struct|union)(?: (\w+))? \{$")
END = re.compile(r"^\s*\}\s*(\w+); */\* +(\d+) +(\d+) \*/$")
FIELD = re.compile(r"^\s.*?(\w+)(?:\[\d*\])?(?: __attribute__\S*)?; */\* +(\d+) +(\d+) \*/$")
SIZE = re.compile(r"/\* size: (\d+),")


class Field(NamedTuple):
    """A field that is no struct or union itself."""
    path: tuple
    offset: int
    size: int


class Struct(NamedTuple):
    fields: list
    size: int

    def offset(self, member):
        """The offset of a member, which is a field, or a struct or union with fields."""
        return min(field.offset for field in self.fields if member in field.path)

    def under(self, member):
        """The fields of a member that is a struct or union."""
        return [field for field in self.fields if member in field.path[:-1]]


def parse(text):
    """The structs that pahole printed, by name."""
    structs, open_at, fields, name = {}, [], [], None
    for line in text.splitlines():
        if start := START.match(line):
            if not open_at:
                name, fields = start[1], []
            open_at.append(len(fields))
        elif end := END.match(line):
            # The name of a struct or union is put before those of the fields in it.
            first = open_at.pop()
            fields[first:] = [Field((end[1], *field.path), *field[1:]) for field in fields[first:]]
        elif field := FIELD.match(line):
            fields.append(Field((field[1],), int(field[2]), int(field[3])))
        elif size := SIZE.search(line):
            structs[name] = Struct(fields, int(size[1]))
        elif line.startswith("}"):
            open_at.pop()
    return structs


def compiled(headers):
    """The structs by name, and the constants, as in a program that includes HEADERS."""
    includes = "".join(f"#include <{include}>\n" for include in INCLUDES)
    values = "".join(f"char value_{name}[{name}];\n" for name in CONSTANTS)
    instances = "".join(f"struct {name} a_{name};\n" for name in STRUCTS)
    with tempfile.TemporaryDirectory() as directory:
        compiled_file = Path(directory, "structs.o")
        subprocess.run(["gcc", "-g", "-isystem", headers, "-xc", "-", "-c", "-o", compiled_file],
                       input=includes + values + instances, text=True, check=True)
        # Runs pahole for one at a time: it prints structs in its own order, and skips missing ones.
        layouts = {}
        for name in STRUCTS:
            command = ["pahole", "--expand_types", "--class_name", name, compiled_file]
            layouts.update(parse(subprocess.run(command, text=True, check=True,
                                                capture_output=True).stdout))
        symbols = subprocess.run(["nm", "--print-size", compiled_file], text=True, check=True,
                                 capture_output=True).stdout
    constants = {name: int(size, 16) for size, name in
                 re.findall(r"^\w+ (\w+) \w value_(\w+)$", symbols, re.MULTILINE)}
    missing = set(STRUCTS) - set(layouts) | set(CONSTANTS) - set(constants)
    assert not missing, f"neither pahole nor nm found {missing}"
    return layouts, constants
